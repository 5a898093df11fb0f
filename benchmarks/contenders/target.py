"""What is called in the benchmark of actors; it needs no memory of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Target:
    """What is called."""

    def echo(self, value: int) -> int:
        """The value."""
        return value

    def call(self, other: Any, times: int, get: Callable[[Sequence[Any]], Any]) -> None:
        """Call another so many times, without waiting in between."""
        get([other.echo.remote(number) for number in range(times)])


def echo(value: int) -> int:
    """A trivial task."""
    return value
