"""Processes that die or stand still at a moment of a job's beginning or end that is chosen."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults import test_failover
from tests.faults.test_failover import Job, check, newest
from tests.faults.test_failover import begin as begin
from tests.processes import PATIENCE_S, wait_until

# Before a method does its work for the first time (in a rank, if that is given) a signal is sent
# to this process, or to one that a file names.
STRIKE = """
    import importlib, signal

    pathlib.Path(f"rank-{rank}").write_text(str(os.getpid()))
    at, only, victim, number = os.environ["STRIKE"].split()
    module, kind, name = at.split(":")
    kind = getattr(importlib.import_module(module), kind)
    method = getattr(kind, name)

    def strike_first(*more, **named):
        if only in ("any", rank):
            try:
                pathlib.Path("struck").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                pid = os.getpid() if victim == "self" else int(pathlib.Path(victim).read_text())
                pathlib.Path("victim").write_text(str(pid))
                os.kill(pid, int(number))
        return method(*more, **named)

    setattr(kind, name, strike_first)

    if os.environ.get("SLOW") == rank:  # it gets ready for longer than one that came is waited for
        open_harbour = psrpc.replicas.ReplicaNode._open_harbour

        def open_late(*more):
            while not pathlib.Path("struck").exists():
                time.sleep(0.01)
            time.sleep(2.0)
            open_harbour(*more)

        psrpc.replicas.ReplicaNode._open_harbour = open_late

    if os.environ.get("LATE") == rank:  # its workers are done before it begins to make checkpoints
        import psrpc.checkpointer

        begin = psrpc.checkpointer.Checkpointer.start

        def begin_late(*more):
            while not pathlib.Path("struck").exists():
                time.sleep(0.01)
            time.sleep(1.0)
            begin(*more)

        psrpc.checkpointer.Checkpointer.start = begin_late

    def model():
"""
LEAVE = "psrpc.crew:Crew:leave"
AWAIT = "psrpc.crew:Crew:await_last_checkpoint"
BYE = "psrpc.crew:Crew:bye"
STATS = "psrpc.worker:Worker:_take_rest"
CLOSE = "psrpc.replication.primary:PrimaryService:close"
FOLLOW = "psrpc.replication.follower:Follower:follow"
HARBOUR = "psrpc.replicas:ReplicaNode:_open_harbour"
ADMIT = "psrpc.replication.primary:PrimaryService:admit"


@pytest.fixture(autouse=True)
def _armed(monkeypatch: pytest.MonkeyPatch) -> None:
    script = test_failover.SCRIPT.replace("\n    def model():\n", STRIKE, 1)
    assert script != test_failover.SCRIPT
    monkeypatch.setattr(test_failover, "SCRIPT", script)


def strike(at: str, victim: str = "self", number: int = signal.SIGKILL, only: str = "any") -> str:
    return f"{at} {only} {victim} {int(number)}"


def go_on_when_all_have_ended(job: Job) -> int:
    """Let who stands still go on when nobody else is left; returns its rank."""
    path: Path = job.bench.folder / "victim"
    wait_until(lambda: path.exists() and path.read_text(), PATIENCE_S, job.ranks.shown)
    pid = int(path.read_text())
    ranks = range(len(job.ranks.commands))
    (victim,) = [rank for rank in ranks if job.ranks.pid(rank) == pid]
    others = [rank for rank in ranks if rank != victim]
    wait_until(lambda: all(map(job.ranks.over, others)), PATIENCE_S, job.ranks.shown)
    os.kill(pid, signal.SIGCONT)
    return victim


@pytest.mark.parametrize("plane", ["rpc", "collective"])
def test_kill_9_of_a_coordinator_that_closes(begin: Any, plane: str) -> None:
    """Its backup knows that the job has ended, and says it to the other shard in its place."""
    mode = "sync" if plane == "collective" else "async"
    job = begin(mode, plane, servers=2, epochs=1, STRIKE=strike(CLOSE, only="0"))
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [-9, 0, 0, 0, 0, 0], job.ranks.shown()
    check(job, ended, epochs=1)


@pytest.mark.parametrize(
    "moment",
    [
        strike(BYE, "rank-0", signal.SIGSTOP),
        strike(BYE, "rank-1", signal.SIGSTOP),
        strike(CLOSE, "self", signal.SIGSTOP, "1"),
        strike(CLOSE, "rank-2", signal.SIGSTOP, "0"),
        strike(LEAVE, "self", signal.SIGSTOP),
    ],
    ids=["coordinator", "server", "closing", "backup", "worker"],
)
def test_one_that_stood_still_until_the_job_had_ended(begin: Any, moment: str) -> None:
    """The others have its part and its place, so for it the job has ended as well."""
    job = begin("async", servers=2, epochs=1, STRIKE=moment, DEAD_AFTER_S="5")
    go_on_when_all_have_ended(job)
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [0] * 6, job.ranks.shown()
    check(job, ended, epochs=1)


@pytest.mark.parametrize("moment", [AWAIT, BYE, STATS], ids=["leaves", "farewell", "counts"])
@pytest.mark.parametrize("servers", [1, 2])
def test_kill_9_of_the_worker_that_reports(begin: Any, moment: str, servers: int) -> None:
    """All have left, and it has not said that it has the results: another reports them."""
    main = 2 * servers
    struck = strike(moment, only=str(main))
    job = begin("async", servers=servers, epochs=1, checkpoints="last", STRIKE=struck)
    ended = job.ranks.finish()
    codes = [0] * (main + 2)
    codes[main] = -9
    assert [each.code for each in ended] == codes, job.ranks.shown()
    check(job, ended, epochs=1)


def test_the_worker_that_reports_stands_still_until_another_has(begin: Any) -> None:
    """When it goes on, it does not report them again."""
    moment = strike(BYE, "self", signal.SIGSTOP, "2")
    job = begin("async", epochs=1, STRIKE=moment, DEAD_AFTER_S="5")
    assert go_on_when_all_have_ended(job) == 2
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [0] * 4, job.ranks.shown()
    check(job, ended, epochs=1)


def test_kill_9_of_the_first_primary_before_its_backup_has_come(begin: Any) -> None:
    """Nobody was served yet, so it begins again."""
    job = begin("async", servers=2, epochs=1, STRIKE=strike(HARBOUR, only="0"))
    wait_until(lambda: job.ranks.over(0), PATIENCE_S, job.ranks.shown)
    job.bench.again(job.ranks, 0)
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [-9, 0, 0, 0, 0, 0, 0], job.ranks.shown()
    check(job, ended, epochs=1)


def test_kill_9_of_the_first_primary_as_its_backup_comes(begin: Any) -> None:
    """One that followed it can do nothing more, and begins again too."""
    job = begin("async", servers=2, epochs=1, STRIKE=strike(ADMIT, only="0"))
    for rank in (0, 2):
        wait_until(lambda r=rank: job.ranks.over(r), PATIENCE_S, job.ranks.shown)  # type: ignore[misc]
        job.bench.again(job.ranks, rank)
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [-9, 0, 1, 0, 0, 0, 0, 0], job.ranks.shown()
    check(job, ended, epochs=1)


def test_a_first_primary_that_takes_long_to_get_ready_is_waited_for(begin: Any) -> None:
    """As one that reads a large checkpoint does."""
    moment = strike(FOLLOW, "self", 0)  # no signal: only the moment is noted
    job = begin("async", epochs=1, rejoin_s=0.5, SLOW="0", STRIKE=moment)
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [0, 0, 0, 0], job.ranks.shown()
    check(job, ended, epochs=1)


def test_a_job_that_is_done_before_it_can_make_checkpoints_makes_its_last(begin: Any) -> None:
    moment = strike(AWAIT, "self", 0)
    job = begin("async", epochs=1, checkpoints="last", LATE="0", STRIKE=moment)
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [0, 0, 0, 0], job.ranks.shown()
    check(job, ended, epochs=1)
    assert newest(job) == 1
