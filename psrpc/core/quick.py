"""What a shard decides in one look: usual pushes, to the same effect as `ShardCore.push`."""

from __future__ import annotations

from collections.abc import Sequence

from psrpc.core.books import Books
from psrpc.core.consistency import Gate
from psrpc.core.cutting import Cutting
from psrpc.core.ledger import Ledger
from psrpc.core.rounds import Rounds
from psrpc.core.told import Told
from psrpc.modes import Aggregation, Mode
from psrpc.usual import Usual


class QuickShard:
    """What a shard knows, and its decisions where nobody waits for anything."""

    def __init__(self, mode: Mode, follows: bool) -> None:
        self.mode = mode
        self.gate = Gate(mode.bound)
        self.version = 0
        self.ledger = Ledger()  # the applied updates, which others do not change
        self.books = Books(self.ledger)
        self._rounds = Rounds(self.gate, mode.backups, follows=follows)
        self._cutting = Cutting(self.gate)
        self._told = Told()
        self._alone = mode.aggregation is Aggregation.PUSH
        self.in_rounds = not (self._alone or mode.backups)  # of pushes of all that are stepping

    def quick(self, push: Usual) -> int | None:
        """Apply a push that comes when nobody waits and its worker may go on; returns its lead.

        The worker is answered with `Stepped` of this lead and `version`. Where that is not so, or
        the update does not continue its stream, this returns None, and nothing has changed.
        """
        if not self._alone or push.void or self._cutting.number is not None:
            return None
        stream, sequence, ledger = push.stream, push.sequence, self.ledger
        marks = ledger.next_in(stream, sequence, push.total)
        if marks is None and not ledger.is_next(stream, sequence):
            return None
        lead = self.gate.advance(push.worker, push.clock, push.ahead)
        if lead is None:
            return None
        if marks is None:
            ledger.record(push.key)
        else:
            marks.extend()
        self.version = version = self.version + 1
        self.books.leave((push,), (lead,), version)
        return lead

    def may_park(self, push: Usual) -> bool:
        """Whether a push may wait for others of its round outside, until `quick_round` takes all.

        It may as long as nothing else is decided here. The round is then as if they had come at
        the end of it; where this returns False, a push is to be decided at once.
        """
        if push.void or push.ahead or push.clock != self.gate.floor:
            return False
        if self._cutting.number is not None or not self._rounds.empty:
            return False
        return self._told.knows(push.worker) and self.ledger.is_next(push.stream, push.sequence)

    def quick_round(self, pushes: Sequence[Usual]) -> bool:
        """Apply pushes that `may_park`, in the order of workers; all of them go on.

        They are answered with `Stepped` of `version`. Returns False, and changes nothing, where
        these are not the pushes of all that are stepping, somebody waits, or two have one name.
        """
        if len({push.stream for push in pushes}) < len(pushes):
            return False
        if not self.gate.advance_together([push.worker for push in pushes]):
            return False
        record = self.ledger.record
        for push in pushes:
            record(push.key)
        self.version = version = self.version + 1
        self.books.leave(pushes, (0,) * len(pushes), version)
        return True
