"""A clock that stands still until it is told to go on."""

from __future__ import annotations


class ManualClock:
    """A `Clock` whose time is set by hand."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        """Seconds, as last set."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Let time go on by `seconds`, which must not be negative."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds} s")
        self._now_s += seconds

    def advance_to(self, moment_s: float) -> None:
        """Let time go on to `moment_s`; nothing happens where that is past already."""
        self._now_s = max(self._now_s, moment_s)
