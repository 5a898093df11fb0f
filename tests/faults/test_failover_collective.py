"""Servers and workers that die on the plane of process groups: those left make new ones."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.faults.test_failover import SILENT_S, begin, check
from tests.processes import PATIENCE_S, Bench, wait_until

__all__ = ["begin"]


@pytest.mark.parametrize(("servers", "shard"), [(1, 0), (2, 0), (2, 1)])
def test_kill_9_of_a_primary(bench: Bench, begin: Any, servers: int, shard: int) -> None:
    """Shard 0's coordinates as well. The round under way is made again, once."""
    hold = bench.folder / "hold"
    hold.touch()  # the last epoch waits for the death
    job = begin("sync", "collective", servers=servers, epochs=2)
    job.until_steps(0, 5)
    job.kill(shard)
    hold.unlink()
    ended = job.ranks.finish()
    codes = [0] * (2 * servers + 2)
    codes[shard] = -9
    assert [each.code for each in ended] == codes, job.ranks.shown()
    assert f"shard {shard} has lost its server" in ended[servers + shard].err
    report = check(job, ended, epochs=2)
    assert (report["plane"], report["workers_lost"]) == ("collective", 0)
    # A round that was made again would be seen here: two workers, 80 batches of each epoch.
    assert report["optimizer_steps"] == 80, report


def test_kill_9_of_a_backup(begin: Any) -> None:
    job = begin("sync", "collective")
    job.until_steps(0, 5)
    job.kill(1)
    job.until_reign(3)
    job.until_more_steps(0, 5)
    ended = job.enough()
    assert [each.code for each in ended] == [0, -9, 0, 0], job.ranks.shown()
    check(job, ended)


@pytest.mark.parametrize("shard", [0, 1])
def test_a_primary_and_a_worker_at_once(begin: Any, shard: int) -> None:
    # Who is to hear of the worker's death may be gone before that: then its silence tells.
    job = begin("sync", "collective", servers=2, workers=3, DEAD_AFTER_S=SILENT_S)
    job.until_steps(1, 5)
    for rank in (shard, 4):
        job.kill(rank)
    job.until_reign(3, shard)
    ended = job.enough()
    codes = [0] * 7
    codes[shard] = codes[4] = -9
    assert [each.code for each in ended] == codes, job.ranks.shown()
    assert check(job, ended)["workers_lost"] == 1


def test_one_that_stood_still_is_deposed(begin: Any) -> None:
    """Workers leave the group in which they wait for it."""
    job = begin("sync", "collective", seconds=0.02, DEAD_AFTER_S=SILENT_S)
    job.until_steps(0, 5)
    os.kill(job.ranks.pid(0), signal.SIGSTOP)
    job.until_reign(3)
    job.until_more_steps(0, 5)
    os.kill(job.ranks.pid(0), signal.SIGCONT)
    wait_until(lambda: job.ranks.over(0), PATIENCE_S, job.ranks.shown)
    ended = job.enough()
    assert [each.code for each in ended] == [1, 0, 0, 0], job.ranks.shown()
    check(job, ended)


def test_one_that_stands_still_to_the_end_keeps_nobody(begin: Any) -> None:
    """Nor does the thread of each worker that still waits for it, in C++."""
    job = begin("sync", "collective", DEAD_AFTER_S=SILENT_S)
    job.until_steps(0, 5)
    os.kill(job.ranks.pid(0), signal.SIGSTOP)
    (job.bench.folder / "enough").touch()
    wait_until(lambda: all(map(job.ranks.over, (1, 2, 3))), PATIENCE_S, job.ranks.shown)
    job.kill(0)
    ended = job.ranks.finish()
    assert [each.code for each in ended] == [-9, 0, 0, 0], job.ranks.shown()
    check(job, ended)
