"""Tables as bars: a picture a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contender import BenchmarkError
from benchmarks.results import Row, Table

_ROW_INCHES = 0.32
_HEAD_INCHES = 1.2


def save(tables: Sequence[Table], file: Path) -> None:
    """Draw every table's first figure: medians as bars, lowest to highest as whiskers.

    Raises BenchmarkError where matplotlib is not installed.
    """
    shown = [(table, _rows(table)) for table in tables]
    shown = [(table, rows) for table, rows in shown if rows]
    heights = [_HEAD_INCHES + _ROW_INCHES * len(rows) for _, rows in shown]
    figure = _matplotlib_figure((9.0, sum(heights)))
    all_axes = figure.subplots(len(shown), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (table, rows) in zip(all_axes, shown, strict=True):
        _draw(axes, table, rows)
    figure.savefig(file, dpi=120)


def require() -> None:
    """Raise BenchmarkError where matplotlib is not installed, before anything is measured."""
    _matplotlib_figure((1.0, 1.0))


def _rows(table: Table) -> list[Row]:
    return [row for row in table.rows if table.figures[0].name in row.figures]


def _draw(axes: Any, table: Table, rows: Sequence[Row]) -> None:
    name = table.figures[0].name
    spreads = [row.figures[name] for row in rows]
    whiskers = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
    bars = axes.barh([row.name for row in rows], [s.median for s in spreads], xerr=whiskers)
    axes.bar_label(bars, [f" {s.median:,.{table.figures[0].digits}f}" for s in spreads])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(name)
    axes.set_title(table.title, loc="left", fontsize="medium")


def _matplotlib_figure(size_inches: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchmarkError(
            f"--plot needs matplotlib ({error}): pip install '.[bench]'"
        ) from error
    return Figure(figsize=size_inches, layout="constrained")
