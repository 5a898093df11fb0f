"""Servers that die, stand still and come back while a job runs: nothing that was told is lost."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
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

    # A file tells which process is the server of a number.
    reign_as = psrpc.replicas.ReplicaNode._reign

    def tell_and_reign(self, reign, *more):
        pathlib.Path(f"server-{reign.primary}").write_text(str(os.getpid()))
        reign_as(self, reign, *more)

    psrpc.replicas.ReplicaNode._reign = tell_and_reign

    def model():
        made = torch.nn.Linear(4, 3)
        torch.nn.init.zeros_(made.weight)
        return made

    def train(worker):
        for _ in range(int(epochs)):
            for (x,) in worker.batches(TensorDataset(torch.ones(400, 4)), 5):
                worker.model(x).sum().backward()
                time.sleep(float(seconds))
                worker.step()
                pathlib.Path(f"steps-{rank}").write_text(str(worker.steps))

    result = psrpc.run(
        train,
        model=model,
        optimizer=functools.partial(torch.optim.SGD, lr=2.0**-12),
        mode=modes[mode],
        plane=plane,
        servers=int(servers),
        replicas=1,
        elastic=psrpc.Elastic(dead_after_s=1.0, rejoin_timeout_s=float(sys.argv[6])),
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
    mode: str
    servers: int

    def reign(self, shard: int = 0) -> dict[str, Any]:
        """Who reigns, as the servers' authority says; empty before anybody does."""
        store = PrefixStore("psrpc/job/0/replicas", self.store)
        key = f"reign/{shard}"
        return json.loads(store.get(key)) if store.check([key]) else {}

    def paired(self, shard: int = 0) -> bool:
        """Whether a shard has a backup now."""
        return self.reign(shard).get("backup") is not None

    def primary(self, shard: int = 0) -> int:
        """The process id of who reigns."""
        path = self.bench.folder / f"server-{self.reign(shard)['primary']}"
        wait_until(lambda: path.exists() and path.read_text(), PATIENCE_S, self.ranks.shown)
        return int(path.read_text())

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
def begin(bench: Bench) -> Any:
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
        rejoin_s: float = 30.0,
    ) -> Job:
        bench.write("script.py", SCRIPT)
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        stores.append(store)
        count = 2 * servers + workers
        words = ("script.py", mode, plane, str(servers), str(epochs), str(seconds), str(rejoin_s))
        ranks = bench.ranks(
            *words,
            count=count,
            MASTER_PORT=str(store.port),
            TORCHELASTIC_USE_AGENT_STORE="True",
        )
        return Job(bench, ranks, store, mode, servers)

    return begin


def check(job: Job, ended: Sequence[Finished], epochs: int = 2) -> dict[str, Any]:
    """Every sample is in the weights once, and the weights are what they must be."""
    (out,) = [each.out for each in ended if each.out]
    report: dict[str, Any] = json.loads(out)
    assert report["samples_counted_once"] is True, report
    assert report["epoch_accounts"] == [
        {
            "epoch": e,
            "samples": SAMPLES,
            "lost": 0,
            "doubled": 0,
            "skipped": 0,
            "skipped_at": [],
            "over": True,
        }
        for e in range(epochs)
    ]
    if job.mode != "sync":
        # Each of the updates has moved each weight by the same power of two times five.
        moved = -5 * 2.0**-12 * epochs * SAMPLES / 5
        assert report["weights"] == [[moved] * 4] * 3
    return report


def test_a_job_with_a_backup(begin: Any) -> None:
    job = begin("bounded", "auto")
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [0, 0, 0, 0], job.ranks.shown()
    assert check(job, ended)["plane"] == "shm"


@pytest.mark.parametrize(("mode", "plane"), [("sync", "rpc"), ("bounded", "shm"), ("async", "rpc")])
def test_kill_9_of_a_primary(begin: Any, mode: str, plane: str) -> None:
    """Workers go on with the backup, which coordinates as well from then on."""
    job = begin(mode, plane)
    job.until_steps(0, 5)
    os.kill(job.ranks.pid(0), signal.SIGKILL)
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [-9, 0, 0, 0], job.ranks.shown()
    report = check(job, ended)
    assert (report["plane"], report["workers_lost"]) == (plane, 0)


def test_kill_9_of_a_backup(begin: Any) -> None:
    job = begin("bounded")
    job.until_steps(0, 5)
    os.kill(job.ranks.pid(1), signal.SIGKILL)
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [0, -9, 0, 0], job.ranks.shown()
    check(job, ended)


def test_a_killed_server_comes_back_as_backup_and_takes_over_again(begin: Any) -> None:
    job = begin("async", servers=2, epochs=4, seconds=0.02)
    job.until_steps(0, 5)
    os.kill(job.ranks.pid(1), signal.SIGKILL)
    again = job.bench.again(job.ranks, 1)
    wait_until(lambda: job.reign(1)["epoch"] > 2, PATIENCE_S, job.ranks.shown)
    job.until_paired(1)
    os.kill(job.ranks.pid(3), signal.SIGKILL)
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [0, -9, 0, -9, 0, 0, 0], job.ranks.shown()
    assert again.process.poll() == 0
    check(job, ended, epochs=4)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_stood_still_is_deposed(begin: Any, rank: int) -> None:
    """Rank 0 is primary, rank 1 its backup; whoever was too slow can follow as a new process."""
    job = begin("bounded", epochs=6, seconds=0.02)
    job.until_steps(0, 5)
    os.kill(job.ranks.pid(rank), signal.SIGSTOP)
    wait_until(lambda: job.reign()["epoch"] > 2, PATIENCE_S, job.ranks.shown)
    steps = job.steps(0)
    job.until_steps(0, steps + 5)
    os.kill(job.ranks.pid(rank), signal.SIGCONT)
    wait_until(lambda: job.ranks.over(rank), PATIENCE_S, job.ranks.shown)
    job.bench.again(job.ranks, rank)
    job.until_paired()
    ended = job.ranks.finish()
    codes = [0, 0, 0, 0, 0]
    codes[rank] = 1
    assert [each.code for each in ended] == codes, job.ranks.shown()
    check(job, ended, epochs=6)


def test_a_primary_and_a_worker_at_once(begin: Any) -> None:
    job = begin("sync", workers=3)
    job.until_steps(1, 5)
    for rank in (0, 3):
        os.kill(job.ranks.pid(rank), signal.SIGKILL)
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [-9, 0, 0, -9, 0], job.ranks.shown()
    assert check(job, ended)["workers_lost"] == 1


def test_twenty_kills_in_one_run(begin: Any) -> None:
    """Always of the primary, as soon as there is a backup."""
    job = begin("sync", "shm", epochs=12, seconds=0.01)
    for kill in range(20):
        job.until_paired()
        epoch, victim = job.reign()["epoch"], job.primary()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda e=epoch: job.reign()["epoch"] > e, PATIENCE_S, job.ranks.shown)  # type: ignore[misc]
        job.bench.again(job.ranks, kill % 2)
    ended = job.ranks.finish()
    assert sum(each.code == -9 for each in ended) == 20
    assert all(each.code in (0, -9) for each in ended), job.ranks.shown()
    check(job, ended, epochs=12)


def test_without_the_other_a_death_ends_the_job(begin: Any) -> None:
    """One death is promised to be survived, not two at once."""
    job = begin("bounded", epochs=50, rejoin_s=2.0)
    job.until_steps(0, 5)
    for rank in (0, 1):
        os.kill(job.ranks.pid(rank), signal.SIGKILL)
    ended = job.ranks.finish()
    assert [each.code for each in ended[:2]] == [-9, -9]
    for worker in ended[2:]:
        assert worker.code == 1
        assert "server0_" in worker.err
