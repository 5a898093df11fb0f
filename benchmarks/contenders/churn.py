"""A job whose workers or primaries are killed one after another, and one joins: who waits."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import marks
from benchmarks.contender import BenchmarkError, Figure, Plan, Sample
from benchmarks.contenders.killer import isolated_servers, isolated_workers
from benchmarks.contenders.program import Program
from benchmarks.marks import Mark
from benchmarks.processes import free_port

PAUSE = Figure("others' longest pause at a kill, s", 2)
USUAL = Figure("without one", 2)
NOT_BACK = Figure("kill to its first step, s", 2)
JOINED = Figure("joiner: imports to first step, s", 2)
FIGURES = (PAUSE, USUAL, NOT_BACK, JOINED)

_PATIENCE_S = 60.0
_LOOK_AGAIN_S = 0.02
_WINDOW_S = 2.5
_ASIDE_S = 0.5
_BEGIN = 200  # characters that hold a process's first marks


class Churn:
    """`psrpc train --isolate` of tiny steps. A turn is so many kills as the plan has steps."""

    def __init__(
        self,
        name: str,
        options: Sequence[str],
        workers: int,
        folder: Path,
        *,
        servers: bool = False,
    ) -> None:
        self.name = name
        self._servers = servers  # they die, which have backups; else workers
        self._options = options
        self._workers = workers
        self._file = folder / "steps"
        self._program = Program(name, _PATIENCE_S)
        self._random = random.Random(0)

    def start(self) -> None:
        """Do nothing: a turn is a whole job."""

    def run(self, plan: Plan) -> Sample:
        """Start the job, kill and join as planned, and end it."""
        for file in self._files():
            file.unlink()
        port = free_port()
        train = f"train --isolate --quiet --epochs 1000 --port {port} --threads 1"
        train += " --dataset benchmarks.marks:many --model benchmarks.marks:stepping"
        command = [sys.executable, "-m", "psrpc", *train.split()]
        variables = {marks.FILE: str(self._file)}
        kills: list[float] = []
        with self._program.open([*command, *self._roles(), *self._options], variables):
            self._until(lambda: len(self._stepping()) == self._workers)
            for _ in range(plan.steps):
                kills.append(self._kill())
            join = [sys.executable, "-m", "psrpc", "join", f"127.0.0.1:{port}"]
            known = self._stepping()
            with self._program.open(join, variables):
                self._until(lambda: self._stepping() - known)
        made = [mark for file in self._files() for mark in marks.read(file)]
        return summarize(made, kills, back=not self._servers)

    def stop(self) -> None:
        """See `Contender`."""
        self._program.kill()

    def _roles(self) -> list[str]:
        return ["--workers", str(self._workers), "--replicas", "1" if self._servers else "0"]

    def _kill(self) -> float:
        """Kill one, wait until another is in its place; returns when it was killed."""
        time.sleep(2 * _WINDOW_S)
        if self._servers:
            return self._kill_primary()
        known = self._stepping()
        victim = self._random.choice(sorted(isolated_workers(self._program.marking, 1)))
        killed_s = marks.now_s()
        os.kill(victim, signal.SIGKILL)
        self._until(lambda: self._stepping() - known)
        return killed_s

    def _kill_primary(self) -> float:
        pair = self._pair()
        killed_s = marks.now_s()
        os.kill(pair[0], signal.SIGKILL)
        self._until(lambda: set(self._pair()) - set(pair))
        time.sleep(_WINDOW_S)
        return killed_s

    def _pair(self) -> list[int]:
        return isolated_servers(self._program.marking, 2)

    def _stepping(self) -> set[Path]:
        """The files of all processes, dead ones too, that have made a step."""
        return {file for file in self._files() if _begins(file).count(marks.STEP) > 1}

    def _files(self) -> list[Path]:
        return list(self._file.parent.glob(f"{self._file.name}-*"))

    def _until(self, happens: Callable[[], object]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not happens():
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{self.name}: somebody does not step")
            time.sleep(_LOOK_AGAIN_S)


def summarize(made: Sequence[Mark], kills: Sequence[float], *, back: bool = True) -> Sample:
    """A turn's figures: pauses are the worst of all workers and kills.

    With `back` each kill was of a worker, which another one replaced.
    """
    steps: dict[int, list[float]] = {}
    for mark in made:
        if mark.name == marks.STEP:
            steps.setdefault(mark.pid, []).append(mark.at_s)
    joiner = max(steps, key=lambda pid: steps[pid][0])
    # Before the job it builds one to try.
    built_s = max(m.at_s for m in made if (m.name, m.pid) == (marks.BUILT, joiner))
    figures = {
        PAUSE.name: max(_longest(steps, killed_s, killed_s + _WINDOW_S) for killed_s in kills),
        # Not the step under way at the kill.
        USUAL.name: max(_longest(steps, s - _WINDOW_S, s - _ASIDE_S) for s in kills),
        JOINED.name: steps[joiner][1] - built_s,
    }
    if back:
        figures[NOT_BACK.name] = max(
            min(times[1] for times in steps.values() if times[0] > killed_s) - killed_s
            for killed_s in kills
        )
    return Sample(figures)


def _begins(file: Path) -> str:
    with file.open() as written:
        return written.read(_BEGIN)


def _longest(steps: dict[int, list[float]], begin_s: float, end_s: float) -> float:
    """The longest time between two steps of one worker, of those that step before and after."""
    pauses = [0.0]
    for times in steps.values():
        if times[0] < begin_s and times[-1] > end_s:
            within = [at_s for at_s in times if begin_s <= at_s <= end_s]
            before = max(at_s for at_s in times if at_s < begin_s)
            after = min(at_s for at_s in times if at_s > end_s)
            pauses += [late - early for early, late in itertools.pairwise([before, *within, after])]
    return max(pauses)
