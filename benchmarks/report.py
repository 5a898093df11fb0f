"""Tables as text, as markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.contender import Figure
from benchmarks.machine import Machine
from benchmarks.results import Comparison, Row, Spread, Table

_ABSENT = "–"


def text(table: Table) -> str:
    """The table for a terminal."""
    lines = _lines(table)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join([table.title, *(_aligned(line, widths) for line in lines)])


def markdown(tables: Sequence[Table], machine: Machine, command: str) -> str:
    """The tables for a document, under the command and the machine that made them."""
    parts = [f"`{command}`", _facts(machine)]
    for table in tables:
        head, *body = _lines(table)
        rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        parts += [f"**{table.title}**", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    return "\n\n".join(parts) + "\n"


def as_json(tables: Sequence[Table], machine: Machine, command: str) -> str:
    """Everything, single rounds included."""
    content = {
        "command": command,
        "machine": asdict(machine),
        "tables": [asdict(table) for table in tables],
    }
    return json.dumps(content, indent=2) + "\n"


def _facts(machine: Machine) -> str:
    return "\n".join(
        (
            f"- machine: {machine.cpu}, {machine.cores} cores, {machine.memory_gib:.0f} GiB, "
            f"{machine.system}",
            f"- load average of one minute before the run: {machine.load:.1f}",
            f"- versions: {', '.join(f'{name} {number}' for name, number in machine.versions)}",
            f"- commit: {machine.commit}",
        )
    )


def _lines(table: Table) -> list[list[str]]:
    first, *others = table.figures
    ratios = [comparison.title for comparison in table.comparisons]
    head = ["contender", first.name, "min–max", *ratios, *(figure.name for figure in others)]
    return [head, *(_cells(table, row) for row in table.rows)]


def _cells(table: Table, row: Row) -> list[str]:
    first, *others = table.figures
    main = row.figures.get(first.name)
    return [
        row.name,
        _number(main, first),
        _ABSENT if main is None else f"{main.low:,.{first.digits}f}–{main.high:,.{first.digits}f}",
        *(_ratio(row.ratios.get(c.title), c) for c in table.comparisons),
        *(_number(row.figures.get(figure.name), figure) for figure in others),
    ]


def _number(spread: Spread | None, figure: Figure) -> str:
    return _ABSENT if spread is None else f"{spread.median:,.{figure.digits}f}"


def _ratio(spread: Spread | None, comparison: Comparison) -> str:
    if spread is None:
        return _ABSENT
    style = ".0%" if comparison.percent else ".2f"
    return f"{spread.median:{style}} ({spread.low:{style}}–{spread.high:{style}})"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])
