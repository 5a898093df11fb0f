"""Which updates a shard has applied: each key once, ever.

The ledger stays small: an open lease is one range of steps (a high-water mark,
unless updates overtook each other), and closed leases of an epoch are ranges of
lease numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from psrpc.core.ranges import Ranges
from psrpc.counts import Coverage
from psrpc.errors import ProtocolError
from psrpc.messages import Lease, Stream, StreamKind, UpdateKey
from psrpc.orders import Cut

LedgerRecord = dict[str, list[list[object]]]


class Ledger:
    """The applied updates of one shard."""

    def __init__(self) -> None:
        self._open: dict[Stream, Ranges] = {}
        self._closed: dict[int, Ranges] = {}
        self._doubled: Counter[tuple[int, int]] = Counter()  # by epoch and lease

    def __contains__(self, key: UpdateKey) -> bool:
        stream = key.stream
        marks = self._open.get(stream)
        if marks is not None:
            return key.sequence in marks
        return stream.kind is StreamKind.LEASE and stream.minor in self._closed.get(
            stream.major, ()
        )

    def record(self, key: UpdateKey) -> None:
        """Note that `key` is applied; one that was before is counted as doubled."""
        following = self.next_in(*key)
        if following is not None:  # the usual case
            following.extend()
            return
        if key in self:
            if key.stream.kind is StreamKind.LEASE:
                self._doubled[key.stream.major, key.stream.minor] += 1
            return
        marks = self._open.setdefault(key.stream, Ranges())
        marks.add(key.sequence)
        if key.stream.kind is StreamKind.LEASE and len(marks) == key.total:
            del self._open[key.stream]
            self._closed.setdefault(key.stream.major, Ranges()).add(key.stream.minor)

    def next_in(self, stream: Stream, sequence: int, total: int) -> Ranges | None:
        """The open stream's ranges which an update continues and does not complete, or None."""
        marks = self._open.get(stream)
        if marks is None or sequence + 1 == total:
            return None
        return marks if marks.continued_by(sequence) else None

    def is_next(self, stream: Stream, sequence: int) -> bool:
        """Whether an update is new, and follows the latest one of its stream or begins it."""
        marks = self._open.get(stream)
        if marks is not None:
            return marks.continued_by(sequence)
        leased = stream.kind is StreamKind.LEASE
        return not (sequence or (leased and self.closed(stream.major, stream.minor)))

    def steps_in(self, lease: Lease) -> int:
        """How many of a lease's updates are applied, up to the first that is not."""
        if lease.index in self._closed.get(lease.epoch, ()):
            return lease.steps
        low, high = next(iter(self._open.get(lease.key(0).stream, ())), (0, 0))
        return high if low == 0 else 0

    def closed(self, epoch: int, lease: int) -> bool:
        """Whether all updates of a lease are applied."""
        return lease in self._closed.get(epoch, ())

    def coverage(self) -> tuple[Coverage, ...]:
        """Which leases' updates are applied, epoch by epoch."""
        leased = [s for s in self._open if s.kind is StreamKind.LEASE]
        epochs = {*self._closed, *(stream.major for stream in leased)}
        return tuple(
            Coverage(
                epoch,
                tuple(self._closed.get(epoch, ())),
                tuple((s.minor, tuple(self._open[s])) for s in leased if s.major == epoch),
                tuple((i, times) for (e, i), times in self._doubled.items() if e == epoch),
            )
            for epoch in sorted(epochs)
        )

    @property
    def size(self) -> int:
        """How many ranges it holds: what it costs to keep, copy or send."""
        held = (*self._open.values(), *self._closed.values())
        return sum(1 for marks in held for _ in marks)

    def digest(self, workers: Collection[int], leases: Iterable[Lease]) -> str:
        """A text that two ledgers share if they have the same updates, and hardly two others.

        Those count that may come again: not the own ones of others than `workers`, nor what is
        left of `leases`.
        """
        even = self.only_of(workers)
        for lease in leases:
            for step in range(lease.first_step, lease.end):
                even.record(lease.key(step))
        return hashlib.sha256(json.dumps(even.to_json()).encode()).hexdigest()

    def mark(self, cut: Cut) -> str:
        """The digest at a cut for a new layout: without what all shards there refuse for ever."""
        stepping = () if cut.view is None else cut.view.active
        return self.digest({worker for worker, _ in stepping}, cut.skipped)

    def only_of(self, workers: Collection[int]) -> Ledger:
        """A copy without what others than `workers` have made of data of their own."""
        copy = Ledger.from_json(self.to_json())
        for stream in self._open:
            if stream.kind is StreamKind.WORKER and stream.major not in workers:
                del copy._open[stream]
        return copy

    def to_json(self) -> LedgerRecord:
        """All of it as a value that JSON can hold; `from_json` takes it back."""
        return {
            "open": sorted(
                [stream.kind.value, stream.major, stream.minor, [list(pair) for pair in marks]]
                for stream, marks in self._open.items()
            ),
            "closed": sorted(
                [epoch, [list(pair) for pair in marks]] for epoch, marks in self._closed.items()
            ),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Sequence[Sequence[object]]]) -> Ledger:
        """The ledger that gave `record`. Raises ProtocolError for what no ledger gave."""
        ledger = cls()
        try:
            for kind, major, minor, marks in record["open"]:
                stream = Stream(StreamKind(str(kind)), _whole(major), _whole(minor))
                ledger._open[stream] = _ranges(marks)
            for epoch, marks in record["closed"]:
                ledger._closed[_whole(epoch)] = _ranges(marks)
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"this is no record of a ledger: {error!r}") from error
        return ledger


def _ranges(marks: object) -> Ranges:
    if not isinstance(marks, Sequence):
        raise TypeError(f"ranges are a list of pairs, not {marks!r}")
    return Ranges([(_whole(low), _whole(high)) for low, high in marks])


def _whole(number: object) -> int:
    if not isinstance(number, int):
        raise TypeError(f"{number!r} is not a whole number")
    return number
