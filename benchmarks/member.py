"""Inside a contender's process: the stage on which it plays its part."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection

from benchmarks.contender import Plan
from benchmarks.processes import CONTROL, Part


@dataclass(frozen=True)
class Here:
    """From a worker: started, and ready for rounds."""


@dataclass(frozen=True)
class Warm:
    """From a worker: this round's warm-up is over."""


@dataclass(frozen=True)
class Go:
    """To a worker: all are warm, start to measure."""


@dataclass(frozen=True)
class Ran:
    """From a worker: the measured part, by this host's monotonic clock.

    `times_s` are the single steps' durations, where the benchmark wants them.
    """

    steps: int
    began_s: float
    ended_s: float
    times_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class Stop:
    """To everybody: end."""


class Stage:
    """The harness's orders, as a worker sees them."""

    def __init__(self, control: Connection) -> None:
        self._control = control

    def play(
        self,
        step: Callable[[], object],
        resting: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Take steps as ordered, until told to stop; while waiting stay within `resting`."""

        def steps(count: int) -> None:
            for _ in range(count):
                step()

        self.conduct(steps, resting)

    def conduct(
        self,
        steps: Callable[[int], Sequence[float] | None],
        resting: Callable[[], AbstractContextManager[object]] = nullcontext,
        *,
        width: int = 1,
    ) -> None:
        """Do what `play` does, with a function that takes a number of steps and may time each.

        Each of its steps is one of `width` workers. Waiting for `Go` is resting too:
        somebody still warming up may not go on while those whose clocks he has passed
        stand still.
        """
        self._control.send(Here())
        while isinstance(plan := self._next(resting), Plan):
            steps(plan.warmup)
            self._control.send(Warm())
            if not isinstance(self._next(resting), Go):
                return
            began_s = time.monotonic()
            times_s = steps(plan.steps)
            ended_s = time.monotonic()
            self._control.send(Ran(plan.steps * width, began_s, ended_s, tuple(times_s or ())))

    def once(self, act: Callable[[], object]) -> None:
        """Do one thing when told to, send what comes of it, and wait for the end."""
        self._control.send(Here())
        if isinstance(self._next(nullcontext), Go):
            self._control.send(act())
            self.wait()

    def wait(self) -> None:
        """Serve until told to stop."""
        self._next(nullcontext)

    def _next(self, resting: Callable[[], AbstractContextManager[object]]) -> object:
        with resting():
            order: object = self._control.recv()
        return order


def main() -> None:
    """Play the part that comes over the socket."""
    from psrpc.lifeline import die_with_launcher

    die_with_launcher()
    control = Connection(int(os.environ[CONTROL]))
    try:
        part = control.recv()
        assert isinstance(part, Part)
        part.play(Stage(control), *part.arguments)
    except EOFError:
        sys.exit("the harness is gone")


if __name__ == "__main__":
    # Under its full name, for the messages' classes must be the harness's.
    from benchmarks.member import main as play

    play()
