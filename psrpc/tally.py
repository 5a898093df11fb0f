"""What a worker counts of itself: steps, samples, and the time in which it waited."""

from __future__ import annotations

from types import TracebackType

from psrpc.clock import Clock
from psrpc.counts import WorkerStats


class Waiting:
    """A block of a worker's time in which it waits. A step has two, so it is a bare class."""

    __slots__ = ("_began_s", "_tally")

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def __enter__(self) -> None:
        self._began_s = self._tally.now()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tally.waited(self._tally.now() - self._began_s)


class Tally:
    """A worker's counters. Times are in seconds."""

    def __init__(self, clock: Clock) -> None:
        self.now = clock.now  # in seconds
        self._began_s = 0.0
        self._wait_s = 0.0
        self.steps = 0
        self.samples = 0

    def begin(self) -> None:
        """Training begins now."""
        self._began_s = self.now()

    def stepped(self, samples: int, wait_s: float = 0.0) -> None:
        """One more step was made, of so many samples, and so much time was spent waiting."""
        self.steps += 1
        self.samples += samples
        self._wait_s += wait_s

    def waiting(self) -> Waiting:
        """For a `with`: the time in its block was spent waiting."""
        return Waiting(self)

    def waited(self, seconds: float) -> None:
        """So much more time was spent waiting."""
        self._wait_s += seconds

    def stats(self, skipped: int, late: int = 0, late_samples: int = 0) -> WorkerStats:
        """All of it, with the number of steps that were skipped as not finite.

        Without the steps that were dropped because they came `late`.
        """
        return WorkerStats(
            steps=self.steps - late,
            samples=self.samples - late_samples,
            busy_s=self.now() - self._began_s,
            wait_s=self._wait_s,
            nonfinite_skipped=skipped,
        )
