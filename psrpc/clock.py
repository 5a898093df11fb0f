"""Time that can be injected: seconds from an arbitrary start, never going back."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> float:
        """Seconds since some moment that stays the same. May be called from any thread."""


class SystemClock:
    """The machine's own steady clock."""

    # Seconds since some moment of this machine's past; a step asks for it twice.
    now = staticmethod(time.monotonic)
