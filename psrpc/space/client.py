"""A tuple space, as those see it who use it: from any process, through its owners' addresses."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from functools import partial
from typing import Any

from psrpc.core.tuples import Change
from psrpc.errors import ClosedError, PeerLostError, PsrpcError, SpaceTimeoutError, UsageError
from psrpc.space import codec, sockets
from psrpc.space.connection import Connection, Question, Reply
from psrpc.space.dealing import owners_of
from psrpc.space.several import Several, Ways
from psrpc.space.taken import Taken
from psrpc.space.watching import Event, Watch, behind
from psrpc.space.words import Said, Word

Fields = tuple[Any, ...]
_NO_LEASE = object()


class Space:
    """The space of one name that some owners keep; tuples are dealt out by their first field.

    `addresses` are those of all its `SpaceServer`s, in the same order in every process. It
    connects when it is first used, may be used from any thread, and can be sent to other
    processes, where it connects anew. Its connections end with `close`, or when it is dropped,
    and no future, watch or leased tuple of it is held either. Blocking calls take a `timeout`
    in seconds (None: without end) and raise SpaceTimeoutError; a lost owner is a PeerLostError,
    and is connected to again by the next call. `lease_s` makes a take a lease: the tuple (a
    `Taken`) comes back when its taker dies, or after that time (infinity: only then) unless it
    was confirmed. Without it a take is final when the owner answers.
    """

    def __init__(self, addresses: str | Sequence[str], name: str = "main") -> None:
        given: Any = [addresses] if isinstance(addresses, str) else addresses
        if not isinstance(given, Sequence) or any(type(each) is not str for each in given):
            raise UsageError(
                f"a tuple space takes its owners' addresses as text, not {addresses!r}"
            )
        self._addresses = tuple(given)
        if not self._addresses:
            raise UsageError("a tuple space needs the address of an owner")
        self._places = [sockets.parse(address) for address in self._addresses]
        self.name = name
        self._connections: dict[int, Connection] = {}
        self._lock = threading.Lock()
        self._closed = False
        weakref.finalize(self, _end_all, self._connections).atexit = False

    def write(self, fields: Sequence[Any], ttl: float | None = None) -> None:
        """Put a tuple in, for `ttl` seconds (None: without end)."""
        self._wait(self._write(fields, ttl, waits=True))

    def write_async(self, fields: Sequence[Any], ttl: float | None = None) -> Future[None]:
        """`write`, but returns at once; what fails raises from the future."""
        return self._write(fields, ttl)

    def write_all(self, tuples: Iterable[Sequence[Any]], ttl: float | None = None) -> None:
        """Put many tuples in, in few messages; returns when all are."""
        for future in [self.write_async(fields, ttl) for fields in tuples]:
            self._wait(future)

    def read(self, pattern: Sequence[Any], timeout: float | None = None) -> Fields:
        """The first tuple that matches, which stays."""
        fields: Fields = self._one(Word.READ, pattern, timeout, _NO_LEASE)
        return fields

    def take(
        self, pattern: Sequence[Any], timeout: float | None = None, *, lease_s: Any = _NO_LEASE
    ) -> Any:
        """The first tuple that matches, which goes: to one taker, across all processes."""
        return self._one(Word.TAKE, pattern, timeout, lease_s)

    def try_read(self, pattern: Sequence[Any]) -> Fields | None:
        """The first tuple that matches now, or None."""
        fields: Fields | None = self._now(Word.READ, pattern, _NO_LEASE)
        return fields

    def try_take(self, pattern: Sequence[Any], *, lease_s: Any = _NO_LEASE) -> Any:
        """The first tuple that matches now, taken; or None."""
        return self._now(Word.TAKE, pattern, lease_s)

    def read_async(self, pattern: Sequence[Any], timeout: float | None = None) -> Future[Fields]:
        """`read`, but returns at once: a future, which no thread waits for."""
        return self._later(Word.READ, pattern, timeout, _NO_LEASE)

    def take_async(
        self, pattern: Sequence[Any], timeout: float | None = None, *, lease_s: Any = _NO_LEASE
    ) -> Future[Any]:
        """`take`, but returns at once. A future that is cancelled takes nothing."""
        return self._later(Word.TAKE, pattern, timeout, lease_s)

    def read_all(self, pattern: Sequence[Any], most: int | None = None) -> list[Fields]:
        """All tuples that match now, `most` at most; an owner's in the order of their writing."""
        found: list[Fields] = []
        for shard in self._shards(pattern):
            left = None if most is None else most - len(found)
            line = self._connection(shard)
            asked = self._ask_pattern(line, Word.ALL, pattern, left, waits=True)
            found += self._wait(asked).value
        return found

    def count(self, pattern: Sequence[Any]) -> int:
        """How many tuples match now, without those that are leased."""
        lines = self._lines(self._shards(pattern)).values()
        asked = [self._ask_pattern(line, Word.COUNT, pattern) for line in lines]
        return sum(self._wait(each).value for each in asked)

    def watch(self, pattern: Sequence[Any], changes: Iterable[Change] = tuple(Change)) -> Watch:
        """Hear of tuples that match being written, taken, returned, or gone with their time."""
        kinds = [int(change) for change in changes]
        asked: list[Question] = []
        watch = Watch(lambda: self._unwatch(asked))
        tell = partial(_tell, watch.tell)
        try:
            for line in self._lines(self._shards(pattern)).values():
                asked.append(self._ask_pattern(line, Word.WATCH, pattern, kinds, listener=tell))
            for question in asked:
                self._wait(question)
        except PsrpcError:
            watch.close()
            raise
        return watch

    def about(self) -> dict[str, int]:
        """Of all owners together: tuples, waiting, leased, size_bytes, requests."""
        asked = [self._connection(n).ask(Word.ABOUT, self.name) for n in range(len(self._places))]
        replies = [self._wait(each).value for each in asked]
        return {name: sum(reply[name] for reply in replies) for name in replies[0]}

    def close(self) -> None:
        """End the connections; what was leased through them comes back."""
        with self._lock:
            self._closed = True
            connections = list(self._connections.values())
            self._connections.clear()
        for connection in connections:
            connection.close()

    def __enter__(self) -> Space:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Space, (self._addresses, self.name)

    def _connection(self, shard: int) -> Connection:
        found = self._connections.get(shard)
        if found is not None and found.usable:
            return found
        with self._lock:
            if self._closed:
                raise ClosedError(f"the tuple space {self.name!r} was closed here")
            connection = self._connections.get(shard)
            if connection is None or not connection.usable:
                connection = Connection(self._places[shard]).start()
                self._connections[shard] = connection
            return connection

    def _lines(self, shards: Sequence[int]) -> dict[int, Connection]:
        """Connections to these owners: all of them, before any is asked."""
        return {shard: self._connection(shard) for shard in shards}

    def _shards(self, fields: Sequence[Any]) -> list[int]:
        return owners_of(fields, len(self._places))

    def _ask_pattern(
        self, line: Connection, word: Word, pattern: Sequence[Any], *rest: Any, **options: Any
    ) -> Question:
        blobs: list[Any] = []
        wire = codec.pack_pattern(pattern, blobs)
        return line.ask(word, self.name, wire, *rest, blobs=blobs, **options)

    def _write(
        self,
        fields: Sequence[Any],
        ttl: float | None,
        first: bool = False,
        waits: bool = False,
    ) -> Question:
        (shard, *_) = self._shards(fields)
        question = _Written(self)
        blobs: list[Any] = []
        wire = codec.pack_fields(fields, blobs)
        ttl_s = codec.seconds(ttl)
        return self._connection(shard).ask(
            Word.WRITE, self.name, wire, ttl_s, first, blobs=blobs, question=question, waits=waits
        )

    def _question(
        self,
        line: Connection,
        word: Word,
        pattern: Sequence[Any],
        wait_s: float | None,
        lease_s: Any,
        **options: Any,
    ) -> Question:
        if word is Word.READ:
            return self._ask_pattern(line, word, pattern, wait_s, **options)
        leased = lease_s is not _NO_LEASE
        limit = codec.seconds(lease_s) if leased else None
        return self._ask_pattern(line, word, pattern, wait_s, leased, limit, **options)

    def _one(self, word: Word, pattern: Sequence[Any], timeout: float | None, lease_s: Any) -> Any:
        shards, wait_s = self._shards(pattern), codec.seconds(timeout)
        if len(shards) == 1:
            line = self._connection(shards[0])
            asked = self._question(line, word, pattern, wait_s, lease_s, waits=True)
            return self._tuple(shards[0], self._answer(shards[0], word, asked), timeout)
        until = None if wait_s is None else time.monotonic() + wait_s
        while True:
            if (found := self._now(word, pattern, lease_s)) is not None:
                return found
            left = None if until is None else max(until - time.monotonic(), 0.0)
            self._until_there_is_one(shards, pattern, left, timeout)

    def _now(self, word: Word, pattern: Sequence[Any], lease_s: Any) -> Any:
        for shard in self._shards(pattern):
            line = self._connection(shard)
            asked = self._question(line, word, pattern, 0.0, lease_s, waits=True)
            reply = self._answer(shard, word, asked)
            if reply.said is Said.GIVEN:
                return self._tuple(shard, reply, 0.0)
        return None

    def _until_there_is_one(
        self,
        shards: list[int],
        pattern: Sequence[Any],
        left: float | None,
        timeout: float | None,
    ) -> None:
        """Several owners may have one: wait until one of them says so."""
        if left == 0:
            raise _timeout(timeout)
        asked: list[Question] = []
        try:
            for line in self._lines(shards).values():
                asked.append(self._question(line, Word.READ, pattern, left, _NO_LEASE))
            waiting: set[Future[Any]] = set(asked)
            while waiting:
                done, waiting = wait_for(waiting, return_when=FIRST_COMPLETED)
                if any(future.result().said is Said.GIVEN for future in done):
                    return
        finally:
            for question in asked:
                if not question.done():
                    self._withdraw(question)
        raise _timeout(timeout)

    def _later(
        self, word: Word, pattern: Sequence[Any], timeout: float | None, lease_s: Any
    ) -> Future[Any]:
        shards, wait_s = self._shards(pattern), codec.seconds(timeout)
        if len(shards) > 1:
            ways = self._ways(self._lines(shards), word, pattern, lease_s)
            return Several(shards, ways, wait_s).start()
        (shard,) = shards
        later = _Later(self, shard, word, timeout)
        line = self._connection(shard)
        return self._question(line, word, pattern, wait_s, lease_s, question=later)

    def _ways(
        self, lines: dict[int, Connection], word: Word, pattern: Sequence[Any], lease_s: Any
    ) -> Ways:
        def look(shard: int, wait_s: float | None, question: Question) -> object:
            line = lines[shard]
            return self._question(line, Word.READ, pattern, wait_s, _NO_LEASE, question=question)

        def take(shard: int, question: Question) -> object:
            line = lines[shard]
            return self._question(line, Word.TAKE, pattern, 0.0, lease_s, question=question)

        takes = take if word is Word.TAKE else None
        tuple_of = partial(self._tuple, timeout=None)
        return Ways(look, takes, self._withdraw, self._unwanted, tuple_of)

    def _tuple(self, shard: int, reply: Reply, timeout: float | None) -> Any:
        if reply.said is not Said.GIVEN:
            raise _timeout(timeout)
        if reply.lease is None:
            return reply.value
        return Taken.of(reply.value, partial(self._about_lease, shard, reply.lease))

    def _about_lease(self, shard: int, lease: int, word: Word, *rest: Any) -> Any:
        asked = self._connection(shard).ask(word, self.name, lease, *rest, waits=True)
        return self._wait(asked).value

    def _answer(self, shard: int, word: Word, asked: Question) -> Reply:
        try:
            reply: Reply = self._wait(asked)
            return reply
        except KeyboardInterrupt:
            if word is Word.TAKE:
                asked.add_done_callback(partial(self._put_back, shard))
            self._withdraw(asked)
            raise

    def _put_back(self, shard: int, answered: Future[Any]) -> None:
        if answered.exception() is None:
            self._unwanted(shard, answered.result())

    def _unwanted(self, shard: int, reply: Reply) -> None:
        """A tuple was taken for somebody who does not want it any more: it goes back."""
        if reply.said is not Said.GIVEN:
            return
        with suppress(PsrpcError):  # of an owner that is lost, and with it the lease or the tuple
            if reply.lease is None:
                self._write(reply.value, reply.left_s, True)
            elif (line := self._connections.get(shard)) is not None:
                line.ask(Word.GIVE_BACK, self.name, reply.lease)

    def _withdraw(self, asked: Question) -> None:
        if asked.line is not None:  # else it was not asked yet
            asked.line.withdraw(asked, self.name)

    def _unwatch(self, asked: list[Question]) -> None:
        for question in asked:
            if (line := question.line) is not None and line.usable:
                line.forget(question.tag)
                with suppress(PeerLostError):  # meanwhile
                    self._wait(line.ask(Word.UNWATCH, self.name, question.tag))

    def _wait(self, future: Future[Any]) -> Any:
        for connection in tuple(self._connections.values()):
            if connection.own_thread:
                raise UsageError("a callback of a tuple space's future must not wait for another")
        if isinstance(future, Question) and future.line is not None and future.waits:
            return future.line.wait(future)
        return future.result()


def _end_all(connections: dict[int, Connection]) -> None:
    """What a space leaves that nobody has any more; in any thread, at any moment."""
    for connection in list(connections.values()):
        connection.end()


class _Written(Question):
    def __init__(self, space: Space) -> None:
        self._space = space  # which must not end before its tuple is there

    def of(self, reply: Reply) -> Any:
        return None


class _Later(Question):
    """A tuple that was asked for, as the user has it."""

    def __init__(self, space: Space, shard: int, word: Word, timeout: float | None) -> None:
        self._space = space
        self._shard = shard
        self._word = word
        self._timeout = timeout

    def of(self, reply: Reply) -> Any:
        return self._space._tuple(self._shard, reply, self._timeout)

    def unwanted(self, reply: Reply) -> None:
        if self._word is Word.TAKE:  # what was read never left
            self._space._unwanted(self._shard, reply)

    def withdraw(self) -> None:
        self._space._withdraw(self)


def _tell(tell: Callable[[Event | Exception], None], reply: Reply) -> None:
    match reply.said:
        case Said.SEEN:
            change, fields = reply.value
            tell(Event(Change(change), fields))
        case Said.BEHIND:
            tell(behind())
        case Said.FAILED:
            tell(reply.value)


def _timeout(timeout: float | None) -> SpaceTimeoutError:
    return SpaceTimeoutError(f"no such tuple within {timeout or 0} s")
