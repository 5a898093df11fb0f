"""The seam: whatever can be started, told to do a round, and stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Plan:
    """One round: what each worker does unmeasured, then what it does measured."""

    steps: int
    warmup: int = 20


@dataclass(frozen=True)
class Sample:
    """One measured round: all workers' steps, from the first one's begin to the last one's end.

    `cpu_s` is the processor time of all the contender's processes meanwhile.
    """

    steps: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Steps per second over all workers."""
        return self.steps / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of processor time a step, servers included."""
        return 1000 * self.cpu_s / self.steps


class BenchmarkError(Exception):
    """A contender broke, or did not answer in time."""


class Contender(Protocol):
    """One thing that is measured. Between rounds it must use no CPU time."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def start(self) -> None:
        """Be ready for rounds. Blocks; raises BenchmarkError after a deadline."""
        ...

    def run(self, plan: Plan) -> Sample:
        """Do one round. Blocks; raises BenchmarkError after a deadline."""
        ...

    def stop(self) -> None:
        """Leave no process behind, whatever happened before; may be called at any time."""
        ...
