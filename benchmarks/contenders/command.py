"""A contender that is a command: every turn runs it once, from nothing to its end."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import marks, proc
from benchmarks.contender import BenchmarkError, Plan, Sample
from benchmarks.machine import ROOT
from benchmarks.marks import Mark

_MARK = "PSRPC_BENCHMARK_COMMAND"
_LONGEST_S = 120.0

Summary = Callable[[float, Sequence[Mark], float], Sample]


class Command:
    """Runs `arguments`; `summary` makes figures of its begin, the marks it made, and its end."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, summary: Summary) -> None:
        self.name = name
        self._arguments = arguments
        self._marks = folder / "marks"
        self._summary = summary
        self._marking = f"{_MARK}={uuid.uuid4().hex}"

    def start(self) -> None:
        """Do nothing: starting is what is measured."""

    def run(self, plan: Plan) -> Sample:
        """Run the command once, whatever the plan. Its output is shown when it fails."""
        self._marks.unlink(missing_ok=True)
        began_s = marks.now_s()
        process = subprocess.Popen(
            self._arguments,
            cwd=ROOT,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        try:
            output, _ = process.communicate(timeout=_LONGEST_S)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{self.name}: not done within {_LONGEST_S:g} s") from None
        finally:
            self.stop()
            process.kill()
            process.wait()
        ended_s = marks.now_s()
        if process.returncode != 0:
            raise BenchmarkError(f"{self.name}: exit code {process.returncode}\n{output}")
        return self._summary(began_s, marks.read(self._marks), ended_s)

    def stop(self) -> None:
        """See `Contender`."""
        proc.kill_marked(self._marking)

    def _environment(self) -> dict[str, str]:
        return (
            os.environ
            | {
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                marks.FILE: str(self._marks),
            }
            | dict([self._marking.split("=")])
        )
