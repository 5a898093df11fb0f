"""Which updates a shard has applied: each key once, ever.

The ledger stays small: an open lease is one range of steps (a high-water mark,
unless updates overtook each other), and closed leases of an epoch are ranges of
lease numbers.
"""

from __future__ import annotations

from psrpc.core.ranges import Ranges
from psrpc.messages import Stream, StreamKind, UpdateKey


class Ledger:
    """The applied updates of one shard."""

    def __init__(self) -> None:
        self._open: dict[Stream, Ranges] = {}
        self._closed: dict[int, Ranges] = {}

    def __contains__(self, key: UpdateKey) -> bool:
        stream = key.stream
        marks = self._open.get(stream)
        if marks is not None:
            return key.sequence in marks
        return stream.kind is StreamKind.LEASE and stream.minor in self._closed.get(
            stream.major, ()
        )

    def record(self, key: UpdateKey) -> None:
        """Note that `key` is applied. The caller has checked that it was not before."""
        marks = self._open.setdefault(key.stream, Ranges())
        marks.add(key.sequence)
        if key.stream.kind is StreamKind.LEASE and len(marks) == key.total:
            del self._open[key.stream]
            self._closed.setdefault(key.stream.major, Ranges()).add(key.stream.minor)

    @property
    def size(self) -> int:
        """How many ranges it holds: what it costs to keep, copy or send."""
        held = (*self._open.values(), *self._closed.values())
        return sum(1 for marks in held for _ in marks)
