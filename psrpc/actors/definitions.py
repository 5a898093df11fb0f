"""Functions that were sent, by number: each is packed once, and then named."""

from __future__ import annotations

import threading
from typing import Any

from psrpc.actors.packing import pack_definition

_MOST = 1_000  # of those whose numbers are known by the function; each has its own for ever


class Definitions:
    """Numbers from 1 for functions; `packed` has what each refers to, as it was at first."""

    def __init__(self) -> None:
        self.packed: dict[int, bytes] = {}
        self._numbers: dict[Any, int] = {}
        self._lock = threading.Lock()

    def number_of(self, function: Any) -> int:
        """The number of a function. Raises UsageError if it cannot be sent."""
        key = function
        try:
            number = self._numbers.get(key)
        except TypeError:  # it has no hash
            number, key = None, object()
        if number is not None:
            return number
        definition = pack_definition(function)
        with self._lock:
            number = len(self.packed) + 1
            self.packed[number] = definition
            self._numbers[key] = number
            if len(self._numbers) > _MOST:
                del self._numbers[next(iter(self._numbers))]
        return number
