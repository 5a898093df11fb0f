"""How long to wait before the next try, and before the next call; pure, with the time given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

MOST_WAIT_S = 60.0


@dataclass(frozen=True)
class Backoff:
    """Waits that double from `first_s` up to `most_s`, each shortened by chance by up to a half."""

    first_s: float = 0.5
    most_s: float = 30.0

    def wait_s(self, attempt: int, chance: float, asked_s: float | None = None) -> float:
        """Before try `attempt + 1`, at least what the server asked for; `chance` is in [0, 1)."""
        own = min(self.first_s * 2.0 ** min(attempt, 30), self.most_s) * (1 - chance / 2)
        return min(max(own, asked_s or 0.0), max(MOST_WAIT_S, self.most_s))


class RateLimit:
    """At most `per_minute` calls a minute (None: any number), evenly spread."""

    def __init__(self, per_minute: float | None) -> None:
        self._apart_s = 0.0 if per_minute is None else 60.0 / per_minute
        self._next_s: float | None = None

    def book(self, now: float) -> float:
        """Take the next place; how many seconds it is away."""
        moment = now if self._next_s is None else max(now, self._next_s)
        self._next_s = moment + self._apart_s
        return moment - now

    def hold(self, now: float, wait_s: float) -> None:
        """No place is nearer than `wait_s` from now."""
        self._next_s = now + wait_s if self._next_s is None else max(self._next_s, now + wait_s)


class Limit(Protocol):
    """A rate limit that has a clock of its own."""

    def book(self) -> float:
        """Take the next place; how many seconds it is away."""
        ...

    def hold(self, wait_s: float) -> None:
        """Nobody may call for so many seconds."""
        ...
