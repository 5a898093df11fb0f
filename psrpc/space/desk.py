"""An owner's desk: requests of its clients become decisions, and decisions become replies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

from psrpc.core.patterns import Pattern
from psrpc.core.tuples import Ask, Change, Effect, Given, Missed, TupleStore
from psrpc.errors import ProtocolError, SpaceFullError, encode
from psrpc.space import codec
from psrpc.space.codec import Blobs
from psrpc.space.words import Said, Word

_FIELD_BYTES = 64  # about what a field costs its owner
_MOST_SPACES = 4096
_WRITE, _READ, _TAKE = int(Word.WRITE), int(Word.READ), int(Word.TAKE)


class Parcel(NamedTuple):
    """A tuple as it is sent."""

    wire: list[Any]
    blobs: list[memoryview]


class Letter:
    """Replies on their way to one client."""

    def __init__(self) -> None:
        self.replies: list[list[Any]] = []
        self.blobs: list[memoryview] = []


class Desk:
    """The spaces of one owner. `limit_bytes` is what their tuples may have together.

    Replies gather in `letters`, for the shell to send and take out.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.letters: dict[Hashable, Letter] = {}
        self._limit_bytes = limit_bytes
        self._spaces: dict[str, TupleStore] = {}
        self._busy: dict[Hashable, set[str]] = {}  # spaces in which a client has left something
        self._numbers = itertools.count(1)  # a lease of a space that was forgotten is nobody's
        self._requests = 0
        self._now = 0.0

    @property
    def next_s(self) -> float | None:
        """When `tick` may have something to do."""
        soonest = None
        for space in self._spaces.values():
            moment = space.next_s
            if moment is not None and (soonest is None or moment < soonest):
                soonest = moment
        return soonest

    def tick(self, now: float) -> None:
        """Do what is due."""
        self._now = now
        for space in self._spaces.values():
            if effects := space.tick(now):
                self._carry_out(effects)

    def handle(self, peer: Hashable, requests: Any, blobs: Blobs, now: float) -> None:
        """Do what a client asks; `tick` has been called. Raises ProtocolError for nonsense."""
        if type(requests) is not list:
            raise ProtocolError("a request that is no list")
        for request in requests:
            if type(request) is not list or len(request) < 3:
                raise ProtocolError("a request that is none")
            tag, word, name = request[0], request[1], request[2]
            if type(tag) is not int or type(word) is not int or type(name) is not str:
                raise ProtocolError("a request that is none")
            self._requests += 1
            self._do(peer, tag, word, name, request[3:], blobs, now)
        blobs.end()

    def gone(self, peer: Hashable, now: float) -> None:
        """A client has died or left."""
        for name in self._busy.pop(peer, ()):
            if (space := self._spaces.get(name)) is not None:
                self._carry_out(space.gone(peer, now))
                self._forget(name)
        self.letters.pop(peer, None)

    def _do(
        self,
        peer: Hashable,
        tag: int,
        word: int,
        name: str,
        rest: list[Any],
        blobs: Blobs,
        now: float,
    ) -> None:
        space = self._spaces.get(name)
        if space is None:
            if len(self._spaces) >= _MOST_SPACES:
                raise ProtocolError(f"more than {_MOST_SPACES} spaces")
            space = self._spaces[name] = TupleStore(self._numbers)
        count = len(rest)
        if word == _WRITE and count == 3 and type(rest[2]) is bool:
            self._write(peer, tag, space, rest[0], _time(rest[1]), rest[2], blobs, now)
            return
        if word == _READ and count == 2:
            pattern = codec.unpack_pattern(rest[0], blobs)
            self._ask(name, space, Ask(peer, tag, pattern, False, _endless(rest[1])), now)
        elif word == _TAKE and count == 4 and type(rest[2]) is bool:
            pattern = codec.unpack_pattern(rest[0], blobs)
            lease = _endless(rest[3]) if rest[2] else None
            self._ask(name, space, Ask(peer, tag, pattern, True, _endless(rest[1]), lease), now)
        else:
            self._seldom(peer, tag, word, name, space, rest, blobs, now)
        self._forget(name)

    def _seldom(
        self,
        peer: Hashable,
        tag: int,
        word: int,
        name: str,
        space: TupleStore,
        rest: list[Any],
        blobs: Blobs,
        now: float,
    ) -> None:
        match (word, *rest):
            case (Word.ALL, wire, most):
                self._all(peer, tag, space, codec.unpack_pattern(wire, blobs), most)
            case (Word.COUNT, wire):
                self._done(peer, tag, space.count(codec.unpack_pattern(wire, blobs)))
            case (Word.WITHDRAW, int(question)):
                self._done(peer, tag, space.withdraw(peer, question))
            case (Word.CONFIRM, int(lease)):
                self._done(peer, tag, space.confirm(peer, lease))
            case (Word.GIVE_BACK, int(lease)):
                effects = space.give_back(peer, lease, now)
                self._done(peer, tag, effects is not None)
                self._carry_out(effects or ())
            case (Word.RENEW, int(lease), lease_s):
                self._done(peer, tag, space.renew(peer, lease, _endless(lease_s), now))
            case (Word.WATCH, wire, list(changes)):
                self._watch(peer, tag, name, space, codec.unpack_pattern(wire, blobs), changes)
            case (Word.UNWATCH, int(watch)):
                self._done(peer, tag, space.unwatch(peer, watch))
            case (Word.ABOUT,):
                self._done(peer, tag, self._about(space))
            case _:
                raise ProtocolError(f"no request that an owner knows: {word!r}")

    def _write(
        self,
        peer: Hashable,
        tag: int,
        space: TupleStore,
        wire: Any,
        ttl_s: float | None,
        first: bool,
        blobs: Blobs,
        now: float,
    ) -> None:
        before = len(blobs.taken)
        fields = codec.unpack_fields(wire, blobs, codec.make_block)
        parcel = Parcel(wire, blobs.taken[before:])
        size_bytes = _size(parcel)
        if self._limit_bytes is not None and self._size_bytes + size_bytes > self._limit_bytes:
            text = f"the owner of this tuple space holds its {self._limit_bytes} bytes: take some"
            self._say(peer, [tag, Said.FAILED, *encode(SpaceFullError(text))])
            return
        effects = space.write(fields, now, ttl_s, parcel, size_bytes, first)
        self._done(peer, tag, None)
        if effects:
            self._carry_out(effects)

    @property
    def _size_bytes(self) -> int:
        return sum(space.size_bytes for space in self._spaces.values())

    def _ask(self, name: str, space: TupleStore, ask: Ask, now: float) -> None:
        effects = space.ask(ask, now)
        if not effects:
            self._say(ask.peer, [ask.tag, Said.HELD])
        if not effects or ask.lease_s is not None:
            self._busy.setdefault(ask.peer, set()).add(name)
        self._carry_out(effects)

    def _all(
        self, peer: Hashable, tag: int, space: TupleStore, pattern: Pattern, most: Any
    ) -> None:
        if most is not None and type(most) is not int:
            raise ProtocolError("a number of tuples that is none")
        letter = self._letter(peer)
        found: list[Any] = []
        for entry in space.all(pattern):
            if most is not None and len(found) >= most:
                break
            found.append(entry.parcel.wire)
            letter.blobs += entry.parcel.blobs
        letter.replies.append([tag, Said.ALL, found])

    def _watch(
        self,
        peer: Hashable,
        tag: int,
        name: str,
        space: TupleStore,
        pattern: Pattern,
        changes: list[Any],
    ) -> None:
        try:
            space.watch(peer, tag, pattern, [Change(change) for change in changes])
        except ValueError as error:
            raise ProtocolError(f"no change that an owner knows: {error}") from None
        self._busy.setdefault(peer, set()).add(name)
        self._done(peer, tag, None)

    def unwatch_all(self, peer: Hashable) -> None:
        """A client does not read what it is told: it is told so, and no more."""
        for name in self._busy.get(peer, ()):
            if (space := self._spaces.get(name)) is not None:
                for tag in space.unwatch_all(peer):
                    self._say(peer, [tag, Said.BEHIND])

    def _about(self, space: TupleStore) -> dict[str, int]:
        return {
            "tuples": len(space),
            "waiting": space.waiting,
            "leased": space.leased,
            "size_bytes": space.size_bytes,
            "requests": self._requests,
        }

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            letter = self._letter(effect.peer)
            if type(effect) is Missed:
                letter.replies.append([effect.tag, Said.MISSED])
                continue
            parcel: Parcel = effect.entry.parcel  # type: ignore[union-attr]
            if type(effect) is Given:
                expires_s = effect.entry.expires_s
                left = None if expires_s is None else max(expires_s - self._now, 0.0)
                letter.replies.append([effect.tag, Said.GIVEN, parcel.wire, effect.lease, left])
            else:
                change = effect.change  # type: ignore[union-attr]
                letter.replies.append([effect.tag, Said.SEEN, change, parcel.wire])
            letter.blobs += parcel.blobs

    def _done(self, peer: Hashable, tag: int, value: Any) -> None:
        self._letter(peer).replies.append([tag, Said.DONE, value])

    def _say(self, peer: Hashable, reply: list[Any]) -> None:
        self._letter(peer).replies.append(reply)

    def _letter(self, peer: Hashable) -> Letter:
        letter = self.letters.get(peer)
        if letter is None:
            letter = self.letters[peer] = Letter()
        return letter

    def _forget(self, name: str) -> None:
        """A space without anything in it costs nothing."""
        if not self._spaces[name].used:
            del self._spaces[name]


def _time(value: Any) -> float | None:
    if value is not None and (type(value) not in (int, float) or not value >= 0):
        raise ProtocolError("a length of time that is none")
    return None if value is None else float(value)


def _endless(value: Any) -> float:
    moment = _time(value)
    return math.inf if moment is None else moment


def _size(parcel: Parcel) -> int:
    """About what a tuple costs its owner: text and blobs are counted, the rest is a sum a field."""
    size_bytes = _FIELD_BYTES * (1 + len(parcel.wire)) + sum(map(len, parcel.blobs))
    for field in parcel.wire:
        if type(field) is str:
            size_bytes += len(field)
    return size_bytes
