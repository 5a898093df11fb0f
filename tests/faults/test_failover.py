"""Servers that die, stand still and come back while a job runs: nothing that was told is lost."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from tests.processes import PATIENCE_S, Bench, Finished, Ranks, wait_until

SAMPLES = 400
SCRIPT = """
    import dataclasses, functools, json, os, pathlib, sys, time, torch, psrpc
    from torch.utils.data import TensorDataset

    mode, plane, servers, epochs, seconds = sys.argv[1:6]
    modes = {
        "sync": psrpc.Synchronous(),
        "bounded": psrpc.BoundedStaleness(2),
        "async": psrpc.Asynchronous(),
    }
    rank = os.environ["RANK"]

    def train(worker):
        for _ in range(int(epochs)):
            for (x,) in worker.batches(TensorDataset(torch.ones(400, 4)), 5):
                worker.model(x).sum().backward()
                time.sleep(float(seconds))
                worker.step()
                pathlib.Path(f"steps-{rank}").write_text(str(worker.steps))

    result = psrpc.run(
        train,
        model=functools.partial(torch.nn.Linear, 4, 3),
        optimizer=functools.partial(torch.optim.SGD, lr=2.0**-12),
        mode=modes[mode],
        plane=plane,
        servers=int(servers),
        replicas=1,
        elastic=psrpc.Elastic(dead_after_s=2.0, rejoin_timeout_s=20.0),
    )
    if result.is_main:
        report = dataclasses.asdict(result.report)
        report["weights"] = result.model.weight.tolist()
        report["plane"] = result.plane
        print(json.dumps(report))
"""


@dataclass
class Job:
    """A running job, and the store of its launcher, which this test keeps."""

    bench: Bench
    ranks: Ranks
    store: TCPStore
    servers: int

    def reign(self, shard: int = 0) -> dict[str, Any]:
        """Who reigns, as the servers' authority says; empty before anybody does."""
        store = PrefixStore("psrpc/job/0/replicas", self.store)
        key = f"reign/{shard}"
        return json.loads(store.get(key)) if store.check([key]) else {}

    def paired(self, shard: int = 0) -> bool:
        """Whether a shard has a backup now."""
        return self.reign(shard).get("backup") is not None

    def until_paired(self, shard: int = 0) -> None:
        """Wait for a backup that has all."""
        wait_until(lambda: self.paired(shard), PATIENCE_S, self.ranks.shown)

    def until_steps(self, worker: int, steps: int) -> None:
        """Wait until a worker has made so many steps."""
        path = self.bench.folder / f"steps-{2 * self.servers + worker}"
        wait_until(
            lambda: path.exists() and int(path.read_text() or 0) >= steps,
            PATIENCE_S,
            self.ranks.shown,
        )

    def steps(self, worker: int) -> int:
        """How many steps a worker has made."""
        return int((self.bench.folder / f"steps-{2 * self.servers + worker}").read_text() or 0)


@pytest.fixture
def begin(bench: Bench) -> Iterator[Any]:
    """Starts jobs with a backup for each server."""
    stores = []

    def begin(
        mode: str,
        plane: str = "rpc",
        *,
        servers: int = 1,
        workers: int = 2,
        epochs: int = 2,
        seconds: float = 0.01,
    ) -> Job:
        bench.write("script.py", SCRIPT)
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        stores.append(store)
        count = 2 * servers + workers
        words = ("script.py", mode, plane, str(servers), str(epochs), str(seconds))
        ranks = bench.ranks(
            *words,
            count=count,
            port=store.port,
            TORCHELASTIC_USE_AGENT_STORE="True",
        )
        return Job(bench, ranks, store, servers)

    yield begin


def check(job: Job, ended: Sequence[Finished], epochs: int = 2) -> dict[str, Any]:
    """Every sample is in the weights once, and the weights are what they must be."""
    (out,) = [each.out for each in ended if each.out]
    report: dict[str, Any] = json.loads(out)
    assert report["samples_counted_once"] is True, report
    assert report["epoch_accounts"] == [
        {"epoch": e, "samples": SAMPLES, "lost": 0, "doubled": 0, "skipped": 0, "over": True}
        for e in range(epochs)
    ]
    return report


def test_a_job_with_a_backup(begin: Any) -> None:
    job = begin("bounded")
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [0, 0, 0, 0], job.ranks.shown()
    check(job, ended)


def test_kill_9_of_a_primary(begin: Any) -> None:
    job = begin("bounded")
    job.until_steps(0, 5)
    os.kill(job.ranks.pid(0), signal.SIGKILL)
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [-9, 0, 0, 0], job.ranks.shown()
    check(job, ended)
