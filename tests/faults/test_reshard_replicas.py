"""Servers that have backups are added and removed, and die meanwhile: nothing is lost."""

from __future__ import annotations

import pytest

from tests.processes import PATIENCE_S, Bench, Command, wait_until
from tests.scaling import Job, begin


@pytest.mark.parametrize("plane", ["auto", "rpc"])
@pytest.mark.parametrize("mode", ["sync", "bounded", "async"])
def test_pairs_of_servers_come_and_go(bench: Bench, mode: str, plane: str) -> None:
    job = begin(bench, mode, plane, replicas=1)
    for before, servers in ((1, 2), (2, 3), (3, 1)):
        job.scale(before, servers)
        job.until_all_step(20)
        assert job.planes() == {"rpc" if plane == "rpc" else "shm"}
    report = job.finish()
    job.check(report)
    changes = [(each["before"], each["servers"]) for each in report["reshards"]]
    assert changes == [(1, 2), (2, 3), (3, 1)]


def pair_held(job: Job) -> tuple[Command, Command]:
    """Ask for a second server, and have all stand still until its rows may be taken."""
    asked = job.ask(2)
    first = job.spare(1, "-1", HOLD="1")
    job.spare(1, "-0")
    wait_until((job.bench.folder / "held").exists, PATIENCE_S, job.ranks.shown)
    return asked, first


def scale_again(job: Job) -> None:
    """A change that came to nothing is made, and the job goes on."""
    job.spares.clear()
    job.until_steps(5)
    job.scale(1, 2)
    job.until_steps(5)
    report = job.finish()
    job.check(report)
    assert [each["servers"] for each in report["reshards"]] == [2]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_coordinator_is_killed_while_rows_move(bench: Bench, mode: str) -> None:
    job = begin(bench, mode, "auto", replicas=1)
    asked, _ = pair_held(job)
    job.kill(0)
    job.go_on()
    ended = asked.finish()
    assert ended.code == 1
    assert "Error: the job goes on with 1 server: " in ended.err
    for spare in job.spares:
        assert spare.finish().code == 1
    bench.again(job.ranks, 0)
    scale_again(job)


def test_a_new_server_is_killed_before_it_serves(bench: Bench) -> None:
    job = begin(bench, "bounded", "auto", replicas=1)
    asked, first = pair_held(job)
    job.end(first)
    ended = asked.finish()
    assert ended.code == 1
    assert "Error: the job goes on with 1 server: " in ended.err
    assert job.spares[1].finish().code == 1
    scale_again(job)


def test_one_is_killed_that_has_halted_and_not_heard_where(bench: Bench) -> None:
    """Its backup hears of the cut first, for which it has halted nowhere, then that it is off."""
    job = begin(bench, "sync", "auto", replicas=1)
    asked = job.ask(2)
    first = job.spare(1, "-1", HOLD_CUT="1")
    job.spare(1, "-0")
    assert asked.finish().code == 0, job.ranks.shown()
    asked = job.ask(3)
    newcomers = [job.spare(2, half) for half in ("-1", "-0")]
    wait_until((bench.folder / "cut-held").exists, PATIENCE_S, job.ranks.shown)
    job.end(first)
    ended = asked.finish()
    assert ended.code == 1
    assert "Error: the job goes on with 2 servers: " in ended.err
    for gone in newcomers:
        assert gone.finish().code == 1
    for gone in (first, *newcomers):
        job.spares.remove(gone)
    job.until_steps(5)
    job.scale(2, 3)
    job.until_steps(5)
    report = job.finish()
    job.check(report)
    assert [each["servers"] for each in report["reshards"]] == [2, 3]


def test_a_backup_is_killed_while_rows_move(bench: Bench) -> None:
    """Nobody misses it: its primary goes on alone."""
    job = begin(bench, "async", "rpc", replicas=1)
    asked, _ = pair_held(job)
    job.kill(1)
    job.go_on()
    assert asked.finish().code == 0, job.ranks.shown()
    job.until_steps(5)
    job.check(job.finish())


@pytest.mark.parametrize("plane", ["auto", "rpc"])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_servers_are_killed_afterwards(bench: Bench, mode: str, plane: str) -> None:
    """Of each pair one: the new one's first, and the coordinator."""
    job = begin(bench, mode, plane, replicas=1)
    job.scale(1, 2)
    job.until_steps(5)
    job.end(job.spares.pop(0))
    job.until_steps(5)
    job.kill(0)
    job.until_steps(5)
    job.check(job.finish())


def test_one_that_keeps_no_rows_any_more_is_killed(bench: Bench) -> None:
    """One worker has not moved yet: it hears from that one's backup that it is to."""
    job = begin(bench, "async", "auto", replicas=1)
    job.scale(1, 2)
    job.until_steps(5)
    job.pause(3)
    job.scale(2, 1)
    job.end(job.spares.pop(0))
    job.go_on_again(3)
    job.until_steps(5, "3")
    report = job.finish()
    job.check(report)
    assert report["workers_lost"] == 0


def test_a_backup_that_comes_later_gets_a_copy_in_the_present_layout(bench: Bench) -> None:
    job = begin(bench, "bounded", "rpc", replicas=1)
    job.scale(1, 3)
    job.until_steps(5)
    job.kill(1)
    bench.again(job.ranks, 1)
    job.until_steps(20)
    job.until_paired()
    job.kill(0)
    job.until_steps(5)
    joined = bench.joiner(job.ranks)
    job.until_steps(1, "joined")
    job.scale(3, 2)
    job.until_steps(5, "joined")
    job.check(job.finish())
    assert joined.finish().code == 0


def test_checkpoints_are_made_of_the_servers_that_there_are(bench: Bench) -> None:
    """Also by whoever coordinates after the first one's death."""
    job = begin(bench, "bounded", "auto", checkpoints="kept", replicas=1)

    def newest() -> tuple[int, int]:
        """The number of the newest finished checkpoint, and how many servers' files it has."""
        return max(job.parts().items(), default=(0, 0))

    job.scale(1, 2)
    wait_until(lambda: newest()[1] == 2, PATIENCE_S, job.ranks.shown)
    job.kill(0)
    before = newest()[0]
    wait_until(lambda: newest()[0] > before + 1, PATIENCE_S, job.ranks.shown)
    assert newest()[1] == 2
    job.check(job.finish())
