"""What is seen of a running job: steps, samples, the loss, staleness."""

from __future__ import annotations

import math
from collections import deque

from psrpc.clock import Clock, SystemClock
from psrpc.messages import Push

_SMOOTHING = 0.98
_RECENT = 64

Counts = tuple[int, int, int, float, float]


class Meter:
    """Counts the pushes that the first server applies, at most half a second after that.

    Written by its threads, read by any.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._began_s = 0.0
        self._latest_s = 0.0
        self.steps = 0
        self.samples = 0
        self.samples_before = 0  # in the checkpoint from which the job goes on
        self.resumed_s: float | None = None  # when the first push came after `await_next`
        self._awaits = False
        self._sum = 0.0
        self._weight = 0.0
        self._staleness: deque[int] = deque(maxlen=_RECENT)

    @property
    def loss(self) -> float | None:
        """The exponentially weighted mean of the losses that came with pushes.

        Those that are NaN or infinite are left out; without any other it is None.
        """
        return self._sum / self._weight if self._weight else None

    @property
    def samples_per_s(self) -> float:
        """The mean rate from the first push to the latest."""
        took_s = self._latest_s - self._began_s
        return self.samples / took_s if took_s > 0 else 0.0

    def staleness_range(self) -> tuple[int, int]:
        """The lowest and the highest staleness of recent pushes, in clocks."""
        recent = tuple(self._staleness) or (0,)
        return min(recent), max(recent)

    def counts(self) -> Counts:
        """What another one needs to go on: steps, samples, those before, and the loss."""
        return self.steps, self.samples, self.samples_before, self._sum, self._weight

    def recount(self, counts: Counts) -> None:
        """Go on from another one's `counts`; the rate begins anew."""
        self.steps, self.samples, self.samples_before, self._sum, self._weight = counts

    def await_next(self) -> None:
        """Note in `resumed_s` when the next push is applied."""
        self.resumed_s, self._awaits = None, True

    def count(self, push: Push, staleness: int) -> None:
        """Count one applied push."""
        self._latest_s = self._clock.now()
        if self._awaits:
            self.resumed_s, self._awaits = self._latest_s, False
        if not self.steps:
            self._began_s = self._latest_s
        self.steps += 1
        self.samples += push.samples
        self._staleness.append(staleness)
        # A step that failed has no loss; and the mean of all must be a number in JSON too.
        if push.loss is not None and math.isfinite(push.loss):
            self._sum = _SMOOTHING * self._sum + (1 - _SMOOTHING) * push.loss
            self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
