"""A pickle that runs code where it is unpickled."""

from __future__ import annotations

from typing import Any

went_off: list[int] = []


def go_off(number: int) -> None:
    """What must never be called."""
    went_off.append(number)


class Bomb:
    """Pickled, it is a call of `go_off`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return go_off, (1,)
