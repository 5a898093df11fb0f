"""What a finished run reports, and the lines that `psrpc train` ends with."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from psrpc.core.counting import Counting
from psrpc.counts import ShardStats, WorkerStats
from psrpc.messages import StatsReply
from psrpc.report import Report, summarize
from psrpc.trainer import _summary

WHAT = {"dataset": "digits", "model": "mlp", "mode": "sync", "servers": 1, "workers": 2}


def lines_of(report: Report) -> list[str]:
    rest: dict[str, Any] = {"test_accuracy": None, "wall_s": 5.0, **WHAT}
    return _summary(asdict(report) | rest).splitlines()


def finished(before: int) -> Report:
    shard = ShardStats(updates_applied=150, samples=12_000, samples_before=before)
    return summarize([StatsReply(shard, workers=((0, WorkerStats(100, busy_s=2.0)),))])


def test_a_run_that_went_on_from_a_checkpoint_tells_its_own_samples_from_all() -> None:
    shown = lines_of(finished(before=9_000))
    assert "  training       2.0 s, 3,000 samples (1,500/s), 100 worker steps (50/s)" in shown
    assert "  in all         12,000 samples, 9,000 of them before this run" in shown
    assert "  updates        150 applied in all, 0 duplicates dropped" in shown


def test_one_that_began_anew_has_no_such_line() -> None:
    shown = lines_of(finished(before=0))
    assert "  training       2.0 s, 12,000 samples (6,000/s), 100 worker steps (50/s)" in shown
    assert not any("in all" in line for line in shown)


def test_a_run_that_goes_back_to_its_own_checkpoint_began_where_it_began() -> None:
    counting = Counting()
    record = {**counting.record(), "samples": 700}
    counting.restore(record)
    assert counting.stats(0, ()).samples_before == 700
    counting.restore({**record, "samples_before": 300})
    assert counting.stats(0, ()).samples_before == 300
