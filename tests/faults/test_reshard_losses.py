"""Servers are killed while others are added or removed: what ends the job, and what does not."""

from __future__ import annotations

import pytest

from tests.processes import PATIENCE_S, Bench, wait_until
from tests.scaling import begin


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_server_that_is_killed_while_rows_move_ends_the_job(bench: Bench, mode: str) -> None:
    job = begin(bench, mode, "auto")
    job.scale(1, 2)
    job.until_steps(5)
    asked, newcomer = job.hold(3)
    job.end(job.spares[0])
    told = asked.finish()
    assert told.code == 1
    assert "Traceback" not in told.err
    assert job.fails().count("server") > 1
    job.go_on()
    assert newcomer.finish().code == 1
    newcomer.leaves_nothing()


@pytest.mark.parametrize("plane", ["auto", "rpc"])
def test_one_that_is_killed_afterwards_ends_it_too_and_its_checkpoint_goes_on(
    bench: Bench, plane: str
) -> None:
    job = begin(bench, "bounded", plane, checkpoints="kept")
    job.scale(1, 2)
    wait_until(lambda: 2 in job.parts().values(), PATIENCE_S, job.ranks.shown)
    job.end(job.spares[0])
    assert "server1" in job.fails()
    again = begin(bench, "bounded", plane, checkpoints="kept")
    assert "going on from kept/checkpoint-" in again.ranks.shown()
    again.check(again.finish())


def test_the_coordinator_is_killed_while_rows_move(bench: Bench) -> None:
    job = begin(bench, "async", "auto")
    asked, newcomer = job.hold()
    job.kill(0)
    told = asked.finish()
    assert told.code == 1
    assert "the job has ended" in told.err or "its coordinator is gone" in told.err
    job.fails()
    job.go_on()
    assert newcomer.finish().code == 1


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("plane", ["auto", "rpc"])
def test_one_that_keeps_no_rows_any_more_is_missed_by_nobody(
    bench: Bench, mode: str, plane: str
) -> None:
    """One worker has not moved yet: it still knows the server that is killed."""
    job = begin(bench, mode, plane)
    job.scale(1, 2)
    job.until_steps(5)
    job.pause(2)
    job.scale(2, 1)
    assert job.spares[0].process.poll() is None, "a worker still needs it"
    job.end(job.spares.pop())
    job.go_on_again(2)
    job.until_steps(5, "2")
    report = job.finish()
    job.check(report)
    assert report["workers_lost"] == 0
    assert [each["servers"] for each in report["reshards"]] == [2, 1]
