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

from psrpc.secret import MAC_BYTES
from tests.processes import PATIENCE_S, Bench, Finished, Ranks, wait_until
from tests.stores import keep_store

SAMPLES = 400
# The silence that tells of a death, where it must: a machine that is busy with something else may
# keep those that live from the processor for seconds. A killed one is heard of at once.
SILENT_S = "6"
SCRIPT = """
    import dataclasses, functools, itertools, json, os, pathlib, sys, time, torch, psrpc
    import psrpc.replication.primary
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
        for name in (f"server-{reign.primary}", f"shard-{self.index}"):
            pathlib.Path(name).write_text(str(os.getpid()))
        reign_as(self, reign, *more)

    psrpc.replicas.ReplicaNode._reign = tell_and_reign

    if os.environ.get("LOSES_LATE") == rank:  # it notices its backup's silence at its end only
        lose = psrpc.replication.primary.PrimaryService._lose

        def lose_late(self, line):
            while not self._closed:
                time.sleep(0.01)
            lose(self, line)

        psrpc.replication.primary.PrimaryService._lose = lose_late

    def model():
        made = torch.nn.Linear(4, 3)
        torch.nn.init.zeros_(made.weight)
        return made

    def train(worker):
        # So many, of which the last one waits as long as there is a file "hold"; or until there
        # is a file "enough".
        last = None if epochs == "some" else int(epochs) - 1
        for epoch in itertools.count() if last is None else range(last + 1):
            if worker.leaving or last is None and pathlib.Path("enough").exists():
                return
            while epoch == last and pathlib.Path("hold").exists():
                time.sleep(0.01)
            for (x,) in worker.batches(TensorDataset(torch.ones(400, 4)), 5):
                worker.model(x).sum().backward()
                time.sleep(float(seconds))
                worker.step()
                pathlib.Path(f"steps-{rank}").with_suffix(".new").write_text(str(worker.steps))
                os.replace(f"steps-{rank}.new", f"steps-{rank}")

    checkpointing = None
    if sys.argv[7] != "never":
        every_s = 0.2 if sys.argv[7] == "auto" else 1000.0
        checkpointing = psrpc.Checkpointing("kept", every_s=every_s, keep=1, resume="auto")
    result = psrpc.run(
        train,
        model=model,
        optimizer=functools.partial(torch.optim.SGD, lr=2.0**-12),
        mode=modes[mode],
        plane=plane,
        servers=int(servers),
        replicas=1,
        checkpointing=checkpointing,
        elastic=psrpc.Elastic(
            dead_after_s=float(os.environ.get("DEAD_AFTER_S", "30")),
            rejoin_timeout_s=float(sys.argv[6]),
        ),
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
        return json.loads(store.get(key)[2 * MAC_BYTES :]) if store.check([key]) else {}

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
        wait_until(lambda: self.steps(worker) >= steps, PATIENCE_S, self.ranks.shown)

    def until_more_steps(self, worker: int, more: int) -> None:
        """Wait until a worker has made so many steps from now on."""
        self.until_steps(worker, self.steps(worker) + more)

    def steps(self, worker: int) -> int:
        """How many steps a worker has made."""
        path = self.bench.folder / f"steps-{2 * self.servers + worker}"
        return int(path.read_text()) if path.exists() else 0

    def until_reign(self, epoch: int, shard: int = 0) -> None:
        """Wait until a shard's reign is not an earlier one than that."""
        wait_until(lambda: self.reign(shard)["epoch"] >= epoch, PATIENCE_S, self.ranks.shown)

    def kill(self, rank: int) -> None:
        """End a process of the job at once."""
        os.kill(self.ranks.pid(rank), signal.SIGKILL)

    def enough(self) -> list[Finished]:
        """Let it end with the epoch under way, and see how all of it did."""
        (self.bench.folder / "enough").touch()
        return self.ranks.finish()


@pytest.fixture
def begin(bench: Bench) -> Any:
    """Starts jobs with a backup for each server; they go on until `enough`, or for some epochs."""
    stores = []

    def begin(
        mode: str,
        plane: str = "rpc",
        *,
        servers: int = 1,
        workers: int = 2,
        epochs: int | None = None,
        seconds: float = 0.01,
        rejoin_s: float = 30.0,
        checkpoints: str = "never",
        **variables: str,
    ) -> Job:
        bench.write("script.py", SCRIPT)
        store = keep_store()
        stores.append(store)
        count = 2 * servers + workers
        number = "some" if epochs is None else str(epochs)
        words = ["script.py", mode, plane, str(servers), number, str(seconds), str(rejoin_s)]
        words.append(checkpoints)
        (bench.folder / "enough").unlink(missing_ok=True)
        ranks = bench.ranks(
            *words,
            count=count,
            MASTER_PORT=str(store.port),
            TORCHELASTIC_USE_AGENT_STORE="True",
            **variables,
        )
        return Job(bench, ranks, store, mode, servers)

    return begin


def check(job: Job, ended: Sequence[Finished], epochs: int = 0) -> dict[str, Any]:
    """Every sample is in the weights once, and the weights are what they must be."""
    (out,) = [each.out for each in ended if each.out]
    report: dict[str, Any] = json.loads(out)
    assert report["samples_counted_once"] is True, report
    epochs = epochs or len(report["epoch_accounts"])
    assert epochs
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
    job = begin("bounded", "auto", epochs=2)
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [0, 0, 0, 0], job.ranks.shown()
    assert check(job, ended, epochs=2)["plane"] == "shm"


@pytest.mark.parametrize(("mode", "plane"), [("sync", "rpc"), ("bounded", "shm"), ("async", "rpc")])
def test_kill_9_of_a_primary(begin: Any, mode: str, plane: str) -> None:
    """Workers go on with the backup, which coordinates as well from then on."""
    job = begin(mode, plane)
    job.until_steps(0, 5)
    job.kill(0)
    job.until_reign(3)
    job.until_more_steps(0, 5)
    ended = job.enough()
    assert [each.code for each in ended] == [-9, 0, 0, 0], job.ranks.shown()
    assert "shard 0 has lost its server, and its backup has taken over" in ended[1].err
    report = check(job, ended)
    assert (report["plane"], report["workers_lost"]) == (plane, 0)


def test_kill_9_of_a_backup(begin: Any) -> None:
    job = begin("bounded")
    job.until_steps(0, 5)
    job.kill(1)
    job.until_reign(3)
    job.until_more_steps(0, 5)
    ended = job.enough()
    assert [each.code for each in ended] == [0, -9, 0, 0], job.ranks.shown()
    check(job, ended)


def test_a_killed_server_comes_back_as_backup_and_takes_over_again(begin: Any) -> None:
    job = begin("async", servers=2, seconds=0.02)
    job.until_steps(0, 5)
    job.kill(1)
    again = job.bench.again(job.ranks, 1)
    job.until_reign(3, 1)
    job.until_paired(1)
    job.kill(3)
    job.until_reign(5, 1)
    job.until_more_steps(0, 5)
    ended = job.enough()
    assert [each.code for each in ended] == [0, -9, 0, -9, 0, 0, 0], job.ranks.shown()
    assert again.process.poll() == 0
    check(job, ended)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_stood_still_is_deposed(begin: Any, rank: int) -> None:
    """Rank 0 is primary, rank 1 its backup; whoever was too slow can follow as a new process."""
    stand_still(begin("bounded", seconds=0.02, DEAD_AFTER_S=SILENT_S), rank, 0)


def test_one_that_stood_still_does_not_say_that_its_shard_has_ended(begin: Any) -> None:
    """The primary of the second shard: its backup asks in its place, and so it is answered."""
    job = begin("bounded", servers=2, seconds=0.02, LOSES_LATE="1", DEAD_AFTER_S=SILENT_S)
    stand_still(job, 1, 1)


def stand_still(job: Job, rank: int, shard: int) -> None:
    """Let a server stand still until the other one reigns alone, and go on; it comes again."""
    job.until_steps(0, 5)
    os.kill(job.ranks.pid(rank), signal.SIGSTOP)
    job.until_reign(3, shard)
    job.until_more_steps(0, 5)
    os.kill(job.ranks.pid(rank), signal.SIGCONT)
    wait_until(lambda: job.ranks.over(rank), PATIENCE_S, job.ranks.shown)
    job.bench.again(job.ranks, rank)
    job.until_paired(shard)
    ended = job.enough()
    codes = [0] * len(ended)
    codes[rank] = 1
    assert [each.code for each in ended] == codes, job.ranks.shown()
    check(job, ended)


def test_a_primary_and_a_worker_at_once(begin: Any) -> None:
    # Who is to hear of the worker's death may be gone before that: then its silence tells.
    job = begin("sync", workers=3, DEAD_AFTER_S=SILENT_S)
    job.until_steps(1, 5)
    for rank in (0, 3):
        job.kill(rank)
    job.until_reign(3)
    ended = job.enough()
    assert [each.code for each in ended] == [-9, 0, 0, -9, 0], job.ranks.shown()
    assert check(job, ended)["workers_lost"] == 1


@pytest.mark.parametrize(("plane", "kills"), [("shm", 20), ("collective", 10)])
def test_many_kills_in_one_run(begin: Any, plane: str, kills: int) -> None:
    """Always of the primary, as soon as there is a backup."""
    job = begin("sync", plane, epochs=12, seconds=0.01, DEAD_AFTER_S=SILENT_S)
    hold = job.bench.folder / "hold"
    hold.touch()  # the last epoch waits for the last kill
    for kill in range(kills):
        job.until_paired()
        victim = job.primary()
        reign = job.reign()
        assert reign["backup"] is not None, job.ranks.shown()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda e=reign["epoch"]: job.reign()["epoch"] > e, PATIENCE_S, job.ranks.shown)  # type: ignore[misc]
        job.bench.again(job.ranks, kill % 2)
    hold.unlink()
    ended = job.ranks.finish()
    assert sum(each.code == -9 for each in ended) == kills
    assert all(each.code in (0, -9) for each in ended), job.ranks.shown()
    check(job, ended, epochs=12)


def newest(job: Job) -> int:
    """The number of the newest checkpoint; 0 without one."""
    found = (job.bench.folder / "kept").glob("checkpoint-????????")
    return max((int(path.name[-8:]) for path in found), default=0)


def epochs_beyond(job: Job) -> int:
    """One epoch more than has begun in the newest checkpoint of a job that has ended."""
    manifest = job.bench.folder / "kept" / f"checkpoint-{newest(job):08}" / "psrpc.json"
    updates = json.loads(manifest.read_text())["content"]["parts"][0]["facts"]["updates"]
    return int(updates) * 5 // SAMPLES + 2


def test_checkpoints_go_on_under_another_primary_and_a_job_from_them(begin: Any) -> None:
    """Each shard's primary is killed in turn; what is written after that is as good."""
    job = begin("bounded", servers=2, seconds=0.005, checkpoints="auto")
    for shard in (0, 1):
        job.until_paired(shard)
        seen = newest(job)
        wait_until(lambda n=seen: newest(job) > n, PATIENCE_S, job.ranks.shown)  # type: ignore[misc]
        os.kill(job.primary(shard), signal.SIGKILL)
        wait_until(lambda s=shard: not job.paired(s), PATIENCE_S, job.ranks.shown)  # type: ignore[misc]
        seen = newest(job)
        wait_until(lambda n=seen: newest(job) > n + 1, PATIENCE_S, job.ranks.shown)  # type: ignore[misc]
    for command in job.ranks.commands:
        command.process.send_signal(signal.SIGKILL)
    job.ranks.finish()
    reached, epochs = newest(job), epochs_beyond(job)
    again = begin("bounded", servers=2, epochs=epochs, seconds=0.0, checkpoints="auto")
    ended = again.ranks.finish()
    assert [each.code for each in ended] == [0] * 6, again.ranks.shown()
    report = check(again, ended, epochs=epochs)
    assert report["updates_applied"] == epochs * SAMPLES / 5
    assert newest(again) >= reached > 0


def test_a_job_that_is_told_to_stop_makes_a_last_checkpoint(begin: Any) -> None:
    """SIGTERM comes to all: primaries, backups, workers."""
    job = begin("bounded", servers=2, seconds=0.01, checkpoints="last")
    job.until_steps(1, 10)
    for rank in range(6):
        os.kill(job.ranks.pid(rank), signal.SIGTERM)
    ended = job.ranks.finish()
    assert all(each.code for each in ended[:2]), "a job that was stopped has not done its work"
    assert newest(job) == 1, job.ranks.shown()
    assert any("was asked to stop" in each.err for each in ended), job.ranks.shown()
    epochs = epochs_beyond(job)
    again = begin("bounded", servers=2, epochs=epochs, seconds=0.0, checkpoints="last")
    ended = again.ranks.finish()
    report = check(again, ended, epochs=epochs)
    assert report["updates_applied"] == epochs * SAMPLES / 5
    assert report["worker_steps"] < epochs * SAMPLES / 5, "some were done before"


def test_without_the_other_a_death_ends_the_job(begin: Any) -> None:
    """One death is promised to be survived, not two at once."""
    job = begin("bounded", rejoin_s=2.0)
    job.until_steps(0, 5)
    for rank in (0, 1):
        job.kill(rank)
    ended = job.ranks.finish()
    assert [each.code for each in ended[:2]] == [-9, -9]
    for worker in ended[2:]:
        assert worker.code == 1
        assert "server0_" in worker.err
