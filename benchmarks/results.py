"""From samples to the figures of a table. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.contender import Figure, Sample


@dataclass(frozen=True)
class Spread:
    """The values of all rounds, and what tables show of them."""

    values: tuple[float, ...]
    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """Sum up at least one value."""
        kept = tuple(values)
        return Spread(kept, median(kept), min(kept), max(kept))


@dataclass(frozen=True)
class Comparison:
    """A column of ratios: a row's first figure by its rival's, in the same round.

    `rivals` names each row's rival; a row without one has no ratio. Taking the
    ratio within a round, before the median, cancels noise that met both.
    """

    title: str
    rivals: dict[str, str]
    percent: bool = False


@dataclass(frozen=True)
class Row:
    """One contender: spreads by figure, and of ratios by comparison."""

    name: str
    figures: dict[str, Spread]
    ratios: dict[str, Spread]


@dataclass(frozen=True)
class Table:
    """What was measured side by side. Ratios are of the first figure."""

    title: str
    figures: tuple[Figure, ...]
    comparisons: tuple[Comparison, ...]
    rows: tuple[Row, ...]


def against(title: str, rival: str, names: Iterable[str], *, percent: bool = False) -> Comparison:
    """Hold all of these rows to one rival."""
    return Comparison(title, dict.fromkeys(names, rival), percent)


def tabulate(
    title: str,
    samples: Mapping[str, Sequence[Sample]],
    figures: Sequence[Figure],
    comparisons: Sequence[Comparison] = (),
) -> Table:
    """Make a table of the samples of one run; all contenders have as many of them.

    A comparison whose rivals were all left out of the run is left out of the table.
    """
    met = tuple(c for c in comparisons if any(rival in samples for rival in c.rivals.values()))
    rows = tuple(_row(name, samples, figures, met) for name in samples)
    return Table(title, tuple(figures), met, rows)


def _row(
    name: str,
    samples: Mapping[str, Sequence[Sample]],
    figures: Sequence[Figure],
    comparisons: Sequence[Comparison],
) -> Row:
    ratios = {}
    for comparison in comparisons:
        rival = comparison.rivals.get(name)
        if rival in samples:
            mine, theirs = _values(samples[name], figures[0]), _values(samples[rival], figures[0])
            if mine and theirs:
                pairs = zip(mine, theirs, strict=True)
                ratios[comparison.title] = Spread.of(ours / other for ours, other in pairs)
    spreads = {f.name: Spread.of(v) for f in figures if (v := _values(samples[name], f))}
    return Row(name, spreads, ratios)


def _values(series: Sequence[Sample], figure: Figure) -> list[float]:
    return [s.figures[figure.name] for s in series if figure.name in s.figures]
