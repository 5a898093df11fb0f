"""A contender that is a command: every turn runs it once, from nothing to its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import marks
from benchmarks.contender import Plan, Sample
from benchmarks.contenders.program import Program
from benchmarks.marks import Mark

_LONGEST_S = 120.0

Summary = Callable[[float, Sequence[Mark], float], Sample]


class Command:
    """Runs `arguments`; `summary` makes figures of its begin, the marks it made, and its end."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, summary: Summary) -> None:
        self.name = name
        self._arguments = arguments
        self._marks = folder / "marks"
        self._summary = summary
        self._program = Program(name, _LONGEST_S)

    def start(self) -> None:
        """Do nothing: starting is what is measured."""

    def run(self, plan: Plan) -> Sample:
        """Run the command once, whatever the plan. Its output is shown when it fails."""
        self._marks.unlink(missing_ok=True)
        began_s = marks.now_s()
        self._program.run(self._arguments, {"OMP_NUM_THREADS": "1", marks.FILE: str(self._marks)})
        ended_s = marks.now_s()
        return self._summary(began_s, marks.read(self._marks), ended_s)

    def stop(self) -> None:
        """See `Contender`."""
        self._program.kill()
