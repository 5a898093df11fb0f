"""The seam: whatever can be started, told to take its turn, and stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Plan:
    """One turn: what each worker does unmeasured, then what it does measured."""

    steps: int
    warmup: int = 20


@dataclass(frozen=True)
class Figure:
    """A quantity: its name, with the unit in it, and the digits that tables show."""

    name: str
    digits: int = 0


@dataclass(frozen=True)
class Sample:
    """What one turn gave: values by the names of figures. A figure may be absent."""

    figures: dict[str, float]


RATE = Figure("steps/s")
CPU = Figure("CPU ms a step", 2)
# What of the host's processors went to nobody of the contender's: noise.
OTHERS = Figure("others' CPU %")


class BenchmarkError(Exception):
    """A contender broke, or did not answer in time."""


class Contender(Protocol):
    """One thing that is measured. Between its turns it must use no CPU time."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def start(self) -> None:
        """Be ready for turns. Blocks; raises BenchmarkError after a deadline."""
        ...

    def run(self, plan: Plan) -> Sample:
        """Take one turn. Blocks; raises BenchmarkError after a deadline."""
        ...

    def stop(self) -> None:
        """Leave no process behind, whatever happened before; may be called at any time."""
        ...
