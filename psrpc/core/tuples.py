"""One tuple space, as its owner decides about it: who gets which tuple, and when.

Events come in with the time; out come effects, which the owner carries out. The order is
that of writing for tuples and that of asking for those who wait: a tuple goes to every
waiting reader that it matches and to the taker who has waited longest. Space and leases as
in Linda (Gelernter, TOPLAS 1985) and JavaSpaces.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from heapq import merge
from operator import attrgetter
from typing import Any, NamedTuple

from psrpc.core.alarms import Alarms
from psrpc.core.patterns import Key, Pattern
from psrpc.core.shelves import Entry, Shelves


class Change(IntEnum):
    """What happens to tuples, for watchers."""

    WRITTEN = 1
    TAKEN = 2
    EXPIRED = 3
    RETURNED = 4


class Ask(NamedTuple):
    """Somebody asks for a tuple: `peer` is who, `tag` is their name for the question.

    `wait_s` is how long they wait for one (0: not at all; infinity). `lease_s` of a take: it
    is final if None, else the tuple comes back if its taker dies, or after that time.
    """

    peer: Hashable
    tag: int
    pattern: Pattern
    takes: bool
    wait_s: float = 0.0
    lease_s: float | None = None


class Given(NamedTuple):
    """The answer to a question: a tuple, with the number of its lease if it has one."""

    peer: Hashable
    tag: int
    entry: Entry
    lease: int | None


class Missed(NamedTuple):
    """The answer to a question: no such tuple, in its time."""

    peer: Hashable
    tag: int


class Seen(NamedTuple):
    """A watcher's news."""

    peer: Hashable
    tag: int
    change: Change
    entry: Entry


Effect = Given | Missed | Seen


class _Waiter:
    __slots__ = ("alarm", "ask", "number")

    def __init__(self, number: int, ask: Ask) -> None:
        self.number = number
        self.ask = ask
        self.alarm: int | None = None


@dataclass
class _Lease:
    number: int
    peer: Hashable
    entry: Entry
    alarm: int | None = None


@dataclass(frozen=True)
class _Watch:
    peer: Hashable
    tag: int
    pattern: Pattern
    changes: frozenset[Change]


_Place = tuple[int, Key | None]
_number = attrgetter("number")


class TupleStore:
    """The tuples of one space, who waits for some, who has leased some, who watches.

    `tick` is to be called before anything else happens at a new time, and at `next_s`.
    `numbers` rise, and are given to one tuple or lease each, of several spaces if they share them.
    """

    def __init__(self, numbers: Iterator[int] | None = None) -> None:
        self._shelves = Shelves()
        self._numbers = itertools.count(1) if numbers is None else numbers
        self._waiting: dict[_Place, OrderedDict[int, _Waiter]] = {}
        self._asked: dict[tuple[Hashable, int], _Waiter] = {}
        self._leases: dict[int, _Lease] = {}
        self._watches: dict[tuple[Hashable, int], _Watch] = {}
        self._alarms: Alarms[_Waiter | _Lease | Entry] = Alarms()

    def __len__(self) -> int:
        return len(self._shelves)

    @property
    def waiting(self) -> int:
        """How many questions are open."""
        return len(self._asked)

    @property
    def leased(self) -> int:
        """How many tuples are leased."""
        return len(self._leases)

    @property
    def size_bytes(self) -> int:
        """The bytes of all tuples in it, without those that are leased."""
        return self._shelves.size_bytes

    @property
    def next_s(self) -> float | None:
        """When `tick` may have something to do."""
        return self._alarms.next_s

    @property
    def used(self) -> bool:
        """Whether there is anything in it, or anybody at it."""
        return bool(len(self) or self._asked or self._leases or self._watches)

    def write(
        self,
        fields: tuple[Any, ...],
        now: float,
        ttl_s: float | None = None,
        parcel: Any = None,
        size_bytes: int = 0,
        first: bool = False,
    ) -> list[Effect]:
        """A tuple comes; it goes after `ttl_s`. `first` puts it before all that are there."""
        entry = Entry(next(self._numbers), fields, parcel, size_bytes)
        if ttl_s is not None and ttl_s < math.inf:
            entry.expires_s = now + ttl_s
        return self._offer(entry, Change.WRITTEN, now, first)

    def ask(self, ask: Ask, now: float) -> list[Effect]:
        """Somebody asks; is answered now, or by a later effect if there is time to wait."""
        entry = self._shelves.first(ask.pattern)
        if entry is None:
            if ask.wait_s <= 0:
                return [Missed(ask.peer, ask.tag)]
            self._hold(ask, now)
            return []
        if not ask.takes:
            return [Given(ask.peer, ask.tag, entry, None)]
        self._shelves.remove(entry)
        self._quiet(entry)
        return [self._give(ask, entry, now), *self._tell(entry, Change.TAKEN)]

    def all(self, pattern: Pattern) -> Iterator[Entry]:
        """The tuples that match, in order; to be used before anything else happens."""
        return self._shelves.all(pattern)

    def count(self, pattern: Pattern) -> int:
        """How many tuples match; leased ones do not count."""
        return self._shelves.count(pattern)

    def withdraw(self, peer: Hashable, tag: int) -> bool:
        """Ask no more; False if the question was answered, or never asked."""
        waiter = self._asked.get((peer, tag))
        if waiter is not None:
            self._release(waiter)
        return waiter is not None

    def confirm(self, peer: Hashable, lease: int) -> bool:
        """A leased tuple is gone for good; False if the lease had ended."""
        return self._end(peer, lease) is not None

    def give_back(self, peer: Hashable, lease: int, now: float) -> list[Effect] | None:
        """A leased tuple comes back, before all others; None if the lease had ended."""
        entry = self._end(peer, lease)
        return None if entry is None else self._offer(entry, Change.RETURNED, now, True)

    def renew(self, peer: Hashable, lease: int, lease_s: float, now: float) -> bool:
        """A lease runs for another `lease_s` from now; False if it had ended."""
        held = self._leases.get(lease)
        if held is None or held.peer != peer:
            return False
        self._quiet(held)
        self._limit(held, lease_s, now)
        return True

    def watch(self, peer: Hashable, tag: int, pattern: Pattern, changes: Iterable[Change]) -> None:
        """Tell of these changes to tuples that match, until `unwatch`."""
        self._watches[peer, tag] = _Watch(peer, tag, pattern, frozenset(changes))

    def unwatch(self, peer: Hashable, tag: int) -> bool:
        """Tell no more; False if nobody was told."""
        return self._watches.pop((peer, tag), None) is not None

    def unwatch_all(self, peer: Hashable) -> list[int]:
        """Tell somebody no more; the tags of what they watched."""
        tags = [tag for who, tag in self._watches if who == peer]
        for tag in tags:
            del self._watches[peer, tag]
        return tags

    def gone(self, peer: Hashable, now: float) -> list[Effect]:
        """Somebody has died or left: its leased tuples come back, its questions are void."""
        for asked in [asked for asked in self._asked if asked[0] == peer]:
            self._release(self._asked[asked])
        for watched in [watched for watched in self._watches if watched[0] == peer]:
            del self._watches[watched]
        leases = [lease for lease in self._leases.values() if lease.peer == peer]
        return self._return(leases, now)

    def tick(self, now: float) -> list[Effect]:
        """What is due by now: tuples that go, leases that end, questions that have no answer."""
        if (moment := self._alarms.next_s) is None or moment > now:
            return []
        effects: list[Effect] = []
        leases = []
        for each in self._alarms.due(now):
            if isinstance(each, _Waiter):
                each.alarm = None
                self._release(each)
                effects.append(Missed(each.ask.peer, each.ask.tag))
            elif isinstance(each, Entry):
                each.alarm = None
                self._shelves.remove(each)
                effects += self._tell(each, Change.EXPIRED)
            else:
                each.alarm = None
                leases.append(each)
        return effects + self._return(leases, now)

    def _offer(self, entry: Entry, change: Change, now: float, first: bool) -> list[Effect]:
        """A tuple is there for whoever waits; what nobody takes is kept."""
        effects, taken = self._hand_out(entry, change, now)
        if not taken:
            self._keep(entry, first)
        return effects

    def _hand_out(self, entry: Entry, change: Change, now: float) -> tuple[list[Effect], bool]:
        """Give a tuple to those who wait for it; whether it is gone then, or its time is over."""
        if entry.expires_s is not None and entry.expires_s <= now:
            return self._tell(entry, Change.EXPIRED), True
        effects = self._tell(entry, change)
        for waiter in self._waiters_for(entry):
            self._release(waiter)
            effects.append(self._give(waiter.ask, entry, now))
            if waiter.ask.takes:
                return effects + self._tell(entry, Change.TAKEN), True
        return effects, False

    def _keep(self, entry: Entry, first: bool) -> None:
        self._shelves.add(entry, first)
        if entry.expires_s is not None:
            entry.alarm = self._alarms.set(entry.expires_s, entry)

    def _waiters_for(self, entry: Entry) -> list[_Waiter]:
        """The readers who wait for this, and the first taker, who comes last here."""
        if not self._asked:
            return []
        arity = len(entry.fields)
        places = {(arity, entry.key), (arity, None)}
        queues = [self._waiting[place].values() for place in places if place in self._waiting]
        readers, taker = [], None
        for waiter in queues[0] if len(queues) == 1 else merge(*queues, key=_number):
            if (waiter.ask.takes and taker) or not waiter.ask.pattern.matches(entry.fields):
                continue
            if waiter.ask.takes:
                taker = waiter
            else:
                readers.append(waiter)
        return [*readers, taker] if taker else readers

    def _give(self, ask: Ask, entry: Entry, now: float) -> Given:
        if not ask.takes or ask.lease_s is None:
            return Given(ask.peer, ask.tag, entry, None)
        lease = _Lease(next(self._numbers), ask.peer, entry)
        self._leases[lease.number] = lease
        self._limit(lease, ask.lease_s, now)
        return Given(ask.peer, ask.tag, entry, lease.number)

    def _limit(self, lease: _Lease, lease_s: float, now: float) -> None:
        if lease_s < math.inf:
            lease.alarm = self._alarms.set(now + lease_s, lease)

    def _hold(self, ask: Ask, now: float) -> None:
        waiter = _Waiter(next(self._numbers), ask)
        place = (ask.pattern.arity, ask.pattern.key)
        self._waiting.setdefault(place, OrderedDict())[waiter.number] = waiter
        self._asked[ask.peer, ask.tag] = waiter
        if ask.wait_s < math.inf:
            waiter.alarm = self._alarms.set(now + ask.wait_s, waiter)

    def _release(self, waiter: _Waiter) -> None:
        """Somebody waits no more."""
        place = (waiter.ask.pattern.arity, waiter.ask.pattern.key)
        queue = self._waiting[place]
        del queue[waiter.number]
        if not queue:
            del self._waiting[place]
        del self._asked[waiter.ask.peer, waiter.ask.tag]
        self._quiet(waiter)

    def _end(self, peer: Hashable, lease: int) -> Entry | None:
        held = self._leases.get(lease)
        if held is None or held.peer != peer:
            return None
        del self._leases[lease]
        self._quiet(held)
        return held.entry

    def _return(self, leases: list[_Lease], now: float) -> list[Effect]:
        """Leases have ended: the earliest tuple is the first to be given, and to be kept."""
        effects: list[Effect] = []
        kept = []
        for lease in sorted(leases, key=lambda lease: lease.entry.number):
            entry = self._end(lease.peer, lease.number)
            assert entry is not None
            told, taken = self._hand_out(entry, Change.RETURNED, now)
            effects += told
            if not taken:
                kept.append(entry)
        for entry in reversed(kept):
            self._keep(entry, True)
        return effects

    def _quiet(self, thing: _Waiter | _Lease | Entry) -> None:
        if thing.alarm is not None:
            self._alarms.call_off(thing.alarm)
            thing.alarm = None

    def _tell(self, entry: Entry, change: Change) -> list[Effect]:
        if not self._watches:
            return []
        return [
            Seen(watch.peer, watch.tag, change, entry)
            for watch in self._watches.values()
            if change in watch.changes
            and watch.pattern.arity == len(entry.fields)
            and watch.pattern.key in (None, entry.key)
            and watch.pattern.matches(entry.fields)
        ]
