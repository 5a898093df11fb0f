"""What a worker counts of itself: steps, samples, and the time in which it waited."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psrpc.clock import Clock
from psrpc.counts import WorkerStats


class Tally:
    """A worker's counters. Times are in seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_s = 0.0
        self._wait_s = 0.0
        self.steps = 0
        self.samples = 0

    def begin(self) -> None:
        """Training begins now."""
        self._began_s = self._clock.now()

    def stepped(self, samples: int) -> None:
        """One more step was made, of so many samples."""
        self.steps += 1
        self.samples += samples

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time in this block was spent waiting."""
        began = self._clock.now()
        try:
            yield
        finally:
            self._wait_s += self._clock.now() - began

    def stats(self, skipped: int, late: int = 0, late_samples: int = 0) -> WorkerStats:
        """All of it, with the number of steps that were skipped as not finite.

        Without the steps that were dropped because they came `late`.
        """
        return WorkerStats(
            steps=self.steps - late,
            samples=self.samples - late_samples,
            busy_s=self._clock.now() - self._began_s,
            wait_s=self._wait_s,
            nonfinite_skipped=skipped,
        )
