"""A shard on two servers: who may answer, who takes over, who is let in. No bytes, no time.

The primary numbers what it takes in (its *entries*) and forwards it in that order; the backup
runs the same deterministic core on the same entries. An answer depends on all entries before
it, so it is kept until the backup has them (Schneider, "Implementing fault-tolerant services
using the state machine approach", ACM Computing Surveys 1990; primary and backup as in Alsberg
and Day, ICSE 1976).

Who is primary is the authority's word alone, a `Reign` that is changed by comparing and setting
it. Its epoch rises with every change. What may change it, and why two never answer at once:

- A primary that misses its backup's word answers nothing until the authority lets it reign alone.
- A backup that misses its primary's word takes nothing more from it, and then asks the authority
  to let it reign alone. From then on the old primary can have no word of it any more.
- Both ask for a change of the same reign, so one of them has it, and the other learns that it
  has lost.
- A primary first waits, with its answers, for the one that it wants to have for a backup. It asks
  for that when the newcomer has all that was answered before, so whoever is named as backup has
  all that was ever answered.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from psrpc.errors import ProtocolError

Item = TypeVar("Item")

# A server process's number, which no other process of the job ever has.
Replica = int

# A newcomer that lacks no more entries than this is near enough to be waited for.
NEAR = 8


@dataclass(frozen=True)
class Reign:
    """Who serves a shard, by the authority's word: a primary, and a backup that has it all."""

    epoch: int
    primary: Replica
    backup: Replica | None = None

    def alone(self, primary: Replica) -> Reign:
        """The next reign, if `primary` has it without a backup."""
        return Reign(self.epoch + 1, primary)

    def paired(self, backup: Replica) -> Reign:
        """The next reign, if this one's primary is to have `backup`."""
        return replace(self, epoch=self.epoch + 1, backup=backup)


class Primary(Generic[Item]):
    """Numbers entries, and keeps answers until those must have the entries that need to.

    `Item` is whatever the shell needs to send an answer. `last` is the number of the latest
    entry. Once `deposed` it answers nobody any more.
    """

    def __init__(self, me: Replica, reign: Reign, last: int = 0) -> None:
        self.me = me
        self.reign = reign
        self.last = last
        self.deposed = reign.primary != me
        self._has: dict[Replica, int] = {}  # of those that follow: the latest entry they have
        self._claim: Reign | None = None
        self._chosen: tuple[Replica, int] | None = None  # a newcomer, and what it must have first
        self._kept: deque[tuple[int, Item]] = deque()

    def append(self) -> int:
        """One more entry: its number."""
        self.last += 1
        return self.last

    def keep(self, item: Item) -> None:
        """An answer was decided, after all entries so far."""
        self._kept.append((self.last, item))

    def release(self) -> list[Item]:
        """Take out the answers that may be sent now, in their order."""
        items, settled = [], self.settled
        while self._kept and self._kept[0][0] <= settled:
            items.append(self._kept.popleft()[1])
        return items

    def give_up(self) -> list[Item]:
        """Take out all answers that are still kept: they may not be sent."""
        items = [item for _, item in self._kept]
        self._kept.clear()
        return items

    @property
    def keeps(self) -> bool:
        """Whether answers are kept."""
        return bool(self._kept)

    def waits_for(self, replica: Replica) -> bool:
        """Whether no answer is sent before `replica` has the entries that it needs."""
        return replica in self._named()

    @property
    def settled(self) -> int:
        """The latest entry that cannot be lost with this server; -1 if nobody knows of any."""
        if self.deposed:
            return -1
        return min((self._has.get(each, -1) for each in self._named()), default=self.last)

    def _named(self) -> set[Replica]:
        """Those that the authority names as backup, as far as anybody can know, or is to name."""
        claimed = self._claim.backup if self._claim is not None else None
        chosen = self._chosen[0] if self._chosen is not None else None
        return {each for each in (self.reign.backup, claimed, chosen) if each is not None}

    # Those who follow.

    def follow(self, replica: Replica, number: int) -> None:
        """A newcomer was given a copy of the state as of entry `number`; it has not got it yet.

        Raises ProtocolError for one that was named before: it may take over at any moment, for
        which it needs what it had. It comes again under another number.
        """
        if number > self.last:
            raise ProtocolError(f"a copy of entry {number}, and there are {self.last}")
        if replica in self._named():
            raise ProtocolError(f"server {replica} was named as backup, and is no newcomer")
        self._has[replica] = -1

    def has(self, replica: Replica, number: int) -> None:
        """`replica` says that it has all entries up to `number`."""
        if replica in self._has:
            self._has[replica] = max(self._has[replica], number)

    def lose(self, replica: Replica) -> None:
        """`replica` is gone, or silent: what it may still say does not count."""
        self._has.pop(replica, None)
        if self._chosen is not None and self._chosen[0] == replica:
            self._chosen = None

    def follows(self, replica: Replica) -> bool:
        """Whether `replica` follows, and is not lost."""
        return replica in self._has

    # The authority.

    def claim(self) -> Reign | None:
        """The reign that this primary wants now, in place of `reign`, if it wants another.

        It wants the same until the authority has answered: see `ruled`.
        """
        if self.deposed or self._claim is not None:
            return self._claim
        if self.reign.backup is None:
            self._choose()
            if self._chosen is not None and self._has[self._chosen[0]] >= self._chosen[1]:
                self._claim = self.reign.paired(self._chosen[0])
                self._chosen = None
        elif self.reign.backup not in self._has:
            self._claim = self.reign.alone(self.me)
        return self._claim

    def _choose(self) -> None:
        """Let a newcomer that is near be waited for, from the next answer on."""
        near = (r for r, has in self._has.items() if has >= 0 and self.last - has <= NEAR)
        if self._chosen is None and (newcomer := next(near, None)) is not None:
            self._chosen = (newcomer, self.last)

    def ruled(self, reign: Reign) -> None:
        """The authority holds `reign` now, after this primary's claim or without one."""
        if reign.epoch < self.reign.epoch or self.deposed:
            return
        if reign.primary != self.me:
            self.deposed = True
            self._claim = None
        elif reign.epoch > self.reign.epoch:
            self.reign = reign
            self._claim = None


class Backup:
    """Follows a primary, and takes over from it by the authority's leave.

    `last` is the number of the latest entry that it has; -1 without a copy of the state.
    """

    def __init__(self, me: Replica) -> None:
        self.me = me
        self.epoch = 0
        self.last = -1
        self._claimed = False

    def copied(self, epoch: int, number: int) -> None:
        """It has a copy of the state as of entry `number`, by the primary of `epoch`."""
        self.epoch, self.last = epoch, number

    def take(self, epoch: int, number: int) -> bool:
        """Whether to take an entry of the primary of `epoch`, and to say that it has it.

        Raises ProtocolError if entries are missing before it.
        """
        if self._claimed or epoch < self.epoch:
            return False
        if number != self.last + 1:
            raise ProtocolError(f"entry {number} came after entry {self.last}")
        self.epoch, self.last = epoch, number
        return True

    def claim(self, seen: Reign) -> Reign | None:
        """The reign to ask for, in place of `seen`, for the primary is gone or silent.

        None if the authority does not name this one as backup. From now on nothing of the
        primary is taken, whatever the authority says.
        """
        if seen.backup != self.me:
            return None
        self._claimed = True
        return seen.alone(self.me)

    def promoted(self, reign: Reign) -> bool:
        """Whether the authority, which holds `reign` after a claim, made this one primary."""
        return reign.primary == self.me
