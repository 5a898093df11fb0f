"""Tables as text, as markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.machine import Machine
from benchmarks.results import Row, Table


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
    reference = f"of {table.reference}"
    head = ["contender", "steps/s, median", "min–max", reference, "min–max", "CPU ms a step"]
    return [head, *(_cells(row) for row in table.rows)]


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        f"{row.median:,.0f}",
        f"{row.low:,.0f}–{row.high:,.0f}",
        f"{row.ratio:.0%}",
        f"{row.ratio_low:.0%}–{row.ratio_high:.0%}",
        f"{row.cpu_ms:.2f}",
    ]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])
