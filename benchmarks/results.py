"""From samples to the figures of a table. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.contender import Sample


@dataclass(frozen=True)
class Row:
    """One contender's figures: steps per second, and processor time a step.

    `ratio` is the median, over the rounds, of its rate by the reference's rate in
    the same round: both met the same noise then.
    """

    name: str
    rates: tuple[float, ...]
    median: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    cpu_ms: float


@dataclass(frozen=True)
class Table:
    """What was measured side by side; ratios are to the row called `reference`."""

    title: str
    reference: str
    rows: tuple[Row, ...]


def tabulate(title: str, samples: Mapping[str, Sequence[Sample]], reference: str) -> Table:
    """Make a table of the samples of one run; all contenders have as many of them."""
    limits = [sample.rate for sample in samples[reference]]
    rows = (_row(name, series, limits) for name, series in samples.items())
    return Table(title, reference, tuple(rows))


def _row(name: str, series: Sequence[Sample], limits: Sequence[float]) -> Row:
    rates = tuple(sample.rate for sample in series)
    ratios = [rate / limit for rate, limit in zip(rates, limits, strict=True)]
    return Row(
        name,
        rates,
        median(rates),
        min(rates),
        max(rates),
        median(ratios),
        min(ratios),
        max(ratios),
        median(sample.cpu_ms for sample in series),
    )
