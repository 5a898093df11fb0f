"""Rows that take part only where their package is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.options import Run

if TYPE_CHECKING:
    from benchmarks.contender import Contender
    from benchmarks.workload import Workload


def ray_rows(
    run: Run, work: Workload, workers: int, wanted: bool, store_mb: int = 200
) -> list[Contender]:
    """Ray's two rows; none, and a line that says why, where it is not installed."""
    from benchmarks.contenders import ray_example

    if not wanted:
        return []
    if why := ray_example.missing():
        run.tell(why)
        return []
    return [*ray_example.contenders(work, workers, run.folder, store_mb)]
