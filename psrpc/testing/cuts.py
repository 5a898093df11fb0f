"""What becomes of the checkpoints of a simulated job whose servers are in pairs."""

from __future__ import annotations

from random import Random
from typing import Protocol

from psrpc.core.decisions import Image
from psrpc.testing.calls import CheckError
from psrpc.testing.events import EventHeap

_WRITES_S = 0.05


class Writer(Protocol):
    """A server process."""

    dead: bool


class Cuts:
    """The checkpoints that were begun, and their parts. A server that is dead writes none."""

    def __init__(self, servers: int, events: EventHeap, random: Random) -> None:
        self._servers = servers
        self._events = events
        self._random = random
        self._parts: list[dict[int, Image]] = []  # by checkpoint, from 1 on

    def begin(self) -> int:
        """The number of one more."""
        self._parts.append({})
        return len(self._parts)

    def pictured(self, server: int, image: Image, writer: Writer) -> None:
        """A primary has an image, and writes it away, which takes a while."""

        def write() -> None:
            if not writer.dead:
                self._parts[image.cut.number - 1][server] = image

        self._events.after(self._random.uniform(0.0, _WRITES_S), write)

    def written(self, number: int, server: int) -> bool:
        """Whether a server's part of a checkpoint is there."""
        return server in self._parts[number - 1]

    def whole(self, number: int) -> bool:
        """Whether a checkpoint has all parts, of the same updates."""
        ledgers = [image.record["ledger"] for image in self._parts[number - 1].values()]
        return len(ledgers) == self._servers and all(each == ledgers[0] for each in ledgers)

    @property
    def made(self) -> int:
        """How many are whole."""
        return sum(self.whole(number) for number in range(1, len(self._parts) + 1))

    def check_even(self) -> None:
        """Nothing has struck anybody: all parts of a checkpoint are of the same updates."""
        for number, parts in enumerate(self._parts, 1):
            if len(parts) == self._servers and not self.whole(number):
                raise CheckError(f"the parts of checkpoint {number} are of different updates")
