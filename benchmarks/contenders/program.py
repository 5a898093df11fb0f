"""A command that is run from nothing to its end, with all that it starts."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from benchmarks import proc
from benchmarks.contender import BenchmarkError
from benchmarks.machine import ROOT

_MARK = "PSRPC_BENCHMARK_PROGRAM"


class Program:
    """Runs commands, one after another; `name` is what errors call them."""

    def __init__(self, name: str, longest_s: float) -> None:
        self.name = name
        self.marking = f"{_MARK}={uuid.uuid4().hex}"
        self._longest_s = longest_s

    def run(
        self,
        arguments: Sequence[str],
        variables: Mapping[str, str],
        meanwhile: AbstractContextManager[object] | None = None,
    ) -> str:
        """Run a command within `meanwhile`, and return what it wrote to stdout.

        Blocks; leaves no process. Raises BenchmarkError, with its output, when it fails, and
        after a deadline.
        """
        with self.open(arguments, variables) as process, meanwhile or nullcontext():
            try:
                out, err = process.communicate(timeout=self._longest_s)
            except subprocess.TimeoutExpired:
                raise BenchmarkError(
                    f"{self.name}: not done within {self._longest_s:g} s"
                ) from None
        if process.returncode != 0:
            raise BenchmarkError(f"{self.name}: exit code {process.returncode}\n{out}{err}")
        return out

    @contextmanager
    def open(
        self, arguments: Sequence[str], variables: Mapping[str, str]
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a command; at the end of the block it is killed, with all that it started."""
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), **variables} | dict([self._mark()]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        with process:  # which waits for its end
            try:
                yield process
            finally:
                self.kill()
                process.kill()

    def kill(self) -> None:
        """Kill all that is left."""
        proc.kill_marked(self.marking)

    def _mark(self) -> tuple[str, str]:
        name, _, value = self.marking.partition("=")
        return name, value
