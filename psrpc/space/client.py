"""A tuple space, as those see it who use it: from any process, through its owners' addresses."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from functools import partial
from typing import Any

from psrpc.core.patterns import ANY, Compare, Field, Joined
from psrpc.core.tuples import Change
from psrpc.errors import ClosedError, SpaceTimeoutError, UsageError
from psrpc.space import codec, sockets
from psrpc.space.connection import Connection, Reply
from psrpc.space.taken import Taken
from psrpc.space.watching import Event, Watch, behind
from psrpc.space.words import Said, Word

Fields = tuple[Any, ...]
_NO_LEASE = object()


class Space:
    """The space of one name that some owners keep; tuples are dealt out by their first field.

    `addresses` are those of all its `SpaceServer`s, in the same order in every process. It
    connects when it is first used, may be used from any thread, and can be sent to other
    processes. Blocking calls take a `timeout` in seconds (None: without end) and raise
    SpaceTimeoutError; a lost owner is a PeerLostError, and is connected to again by the next
    call. `lease_s` makes a take a lease: the tuple (a `Taken`) comes back when its taker dies,
    or after that time (infinity: only then) unless it was confirmed. Without it a take is
    final when the owner answers.
    """

    def __init__(self, addresses: str | Sequence[str], name: str = "main") -> None:
        self._addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
        if not self._addresses:
            raise UsageError("a tuple space needs the address of an owner")
        self._places = [sockets.parse(address) for address in self._addresses]
        self.name = name
        self._connections: dict[int, Connection] = {}
        self._lock = threading.Lock()
        self._closed = False

    def write(self, fields: Sequence[Any], ttl: float | None = None) -> None:
        """Put a tuple in, for `ttl` seconds (None: without end)."""
        self._wait(self.write_async(fields, ttl))

    def write_async(self, fields: Sequence[Any], ttl: float | None = None) -> Future[None]:
        """`write`, but returns at once; what fails raises from the future."""
        return _then(self._write(fields, ttl, False), lambda reply: None)

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
            found += self._wait(self._ask_pattern(shard, Word.ALL, pattern, left)).value
        return found

    def count(self, pattern: Sequence[Any]) -> int:
        """How many tuples match now, without those that are leased."""
        asked = [self._ask_pattern(shard, Word.COUNT, pattern) for shard in self._shards(pattern)]
        return sum(self._wait(each).value for each in asked)

    def watch(self, pattern: Sequence[Any], changes: Iterable[Change] = tuple(Change)) -> Watch:
        """Hear of tuples that match being written, taken, returned, or gone with their time."""
        kinds = [int(change) for change in changes]
        asked: list[tuple[int, Future[Reply]]] = []
        watch = Watch(lambda: self._unwatch(asked))
        tell = partial(_tell, watch)
        for shard in self._shards(pattern):
            asked.append(
                (shard, self._ask_pattern(shard, Word.WATCH, pattern, kinds, listener=tell))
            )
        for _, future in asked:
            self._wait(future)
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
            connections, self._connections = list(self._connections.values()), {}
        for connection in connections:
            connection.close()

    def __enter__(self) -> Space:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Space, (self._addresses, self.name)

    def _connection(self, shard: int) -> Connection:
        with self._lock:
            if self._closed:
                raise ClosedError(f"the tuple space {self.name!r} was closed here")
            connection = self._connections.get(shard)
            if connection is None or not connection.usable:
                connection = Connection(self._places[shard]).start()
                self._connections[shard] = connection
            return connection

    def _shards(self, fields: Sequence[Any]) -> list[int]:
        """The owners that may have such tuples."""
        if isinstance(fields, str | bytes) or not isinstance(fields, Sequence):
            raise UsageError(f"a tuple or pattern is a sequence of fields, not {fields!r:.100}")
        count = len(self._places)
        if count == 1 or not fields:
            return [0]
        first = fields[0]
        if first is ANY or isinstance(first, type | Compare | Joined | Field):
            return list(range(count))
        return [_place_of(first, count)]

    def _ask_pattern(
        self, shard: int, word: Word, pattern: Sequence[Any], *rest: Any, **listening: Any
    ) -> Future[Reply]:
        blobs: list[Any] = []
        wire = codec.pack_pattern(pattern, blobs)
        connection = self._connection(shard)
        return connection.ask(word, self.name, wire, *rest, blobs=blobs, **listening)

    def _write(self, fields: Sequence[Any], ttl: float | None, first: bool) -> Future[Reply]:
        (shard, *_) = self._shards(fields)
        blobs: list[Any] = []
        wire = codec.pack_fields(fields, blobs)
        ttl_s = codec.seconds(ttl)
        return self._connection(shard).ask(Word.WRITE, self.name, wire, ttl_s, first, blobs=blobs)

    def _question(
        self, shard: int, word: Word, pattern: Sequence[Any], wait_s: float | None, lease_s: Any
    ) -> Future[Reply]:
        if word is Word.READ:
            return self._ask_pattern(shard, word, pattern, wait_s)
        leased = lease_s is not _NO_LEASE
        limit = codec.seconds(lease_s) if leased else None
        return self._ask_pattern(shard, word, pattern, wait_s, leased, limit)

    def _one(self, word: Word, pattern: Sequence[Any], timeout: float | None, lease_s: Any) -> Any:
        shards, wait_s = self._shards(pattern), codec.seconds(timeout)
        until = None if wait_s is None else time.monotonic() + wait_s
        while True:
            if len(shards) == 1:
                asked = self._question(shards[0], word, pattern, wait_s, lease_s)
                return self._tuple(shards[0], self._answer(shards[0], asked), timeout)
            if (found := self._now(word, pattern, lease_s)) is not None:
                return found
            left = None if until is None else max(until - time.monotonic(), 0.0)
            self._until_there_is_one(shards, pattern, left, timeout)

    def _now(self, word: Word, pattern: Sequence[Any], lease_s: Any) -> Any:
        for shard in self._shards(pattern):
            reply = self._answer(shard, self._question(shard, word, pattern, 0.0, lease_s))
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
        asked = [(n, self._question(n, Word.READ, pattern, left, _NO_LEASE)) for n in shards]
        waiting = {future for _, future in asked}
        while waiting:
            done, waiting = wait_for(waiting, return_when=FIRST_COMPLETED)
            if any(future.result().said is Said.GIVEN for future in done):
                break
        for shard, future in asked:
            if future in waiting:
                self._withdraw(shard, future)
        if not any(f.done() and f.result().said is Said.GIVEN for _, f in asked):
            raise _timeout(timeout)

    def _later(
        self, word: Word, pattern: Sequence[Any], timeout: float | None, lease_s: Any
    ) -> Future[Any]:
        shards, wait_s = self._shards(pattern), codec.seconds(timeout)
        if len(shards) > 1:
            raise UsageError(
                "a pattern without a plain first field waits on several owners: use read or take "
                "in a thread, or give its first field"
            )
        (shard,) = shards
        asked = self._question(shard, word, pattern, wait_s, lease_s)
        answer = _then(
            asked,
            lambda reply: self._tuple(shard, reply, timeout),
            lambda reply: self._unwanted(shard, reply),
        )
        answer.add_done_callback(
            lambda future: self._withdraw(shard, asked) if future.cancelled() else None
        )
        return answer

    def _tuple(self, shard: int, reply: Reply, timeout: float | None) -> Any:
        if reply.said is not Said.GIVEN:
            raise _timeout(timeout)
        if reply.lease is None:
            return reply.value
        return Taken.of(reply.value, partial(self._about_lease, shard, reply.lease))

    def _about_lease(self, shard: int, lease: int, word: Word, *rest: Any) -> Any:
        return self._wait(self._connection(shard).ask(word, self.name, lease, *rest)).value

    def _answer(self, shard: int, asked: Future[Reply]) -> Reply:
        try:
            reply: Reply = self._wait(asked)
            return reply
        except KeyboardInterrupt:
            asked.add_done_callback(lambda future: self._unwanted(shard, future.result()))
            self._withdraw(shard, asked)
            raise

    def _unwanted(self, shard: int, reply: Reply) -> None:
        """A tuple came for somebody who does not want it any more: it goes back."""
        if reply.said is not Said.GIVEN:
            return
        if reply.lease is not None:
            self._connection(shard).ask(Word.GIVE_BACK, self.name, reply.lease)
        elif reply.number >= 0:
            self._write(reply.value, reply.left_s, True)

    def _withdraw(self, shard: int, asked: Future[Reply]) -> None:
        tag = asked.tag  # type: ignore[attr-defined]
        self._connection(shard).ask(Word.WITHDRAW, self.name, tag)

    def _unwatch(self, asked: list[tuple[int, Future[Reply]]]) -> None:
        for shard, future in asked:
            tag = future.tag  # type: ignore[attr-defined]
            connection = self._connection(shard)
            connection.forget(tag)
            self._wait(connection.ask(Word.UNWATCH, self.name, tag))

    def _wait(self, future: Future[Any]) -> Any:
        if any(connection.own_thread for connection in list(self._connections.values())):
            raise UsageError("a callback of a tuple space's future must not wait for another")
        return future.result()


def _place_of(first: Any, count: int) -> int:
    """The owner of tuples that begin with this: the same in every process, unlike `hash`."""
    kind = type(first)
    if kind not in (type(None), bool, int, float, str, bytes):
        return 0
    plain = first + 0.0 if kind is float else first  # -0.0 is 0.0
    return zlib.crc32(f"{kind.__name__}:{plain!r:.4000}".encode(errors="replace")) % count


def _then(
    asked: Future[Reply],
    make: Callable[[Reply], Any],
    unwanted: Callable[[Reply], None] | None = None,
) -> Future[Any]:
    """A future of what is made of the reply; `unwanted` has it if that was cancelled."""
    future: Future[Any] = Future()

    def settle(asked: Future[Reply]) -> None:
        wanted = future.set_running_or_notify_cancel()
        if (error := asked.exception()) is not None:
            if wanted:
                future.set_exception(error)
            return
        if not wanted:
            if unwanted is not None:
                unwanted(asked.result())
            return
        try:
            future.set_result(make(asked.result()))
        except SpaceTimeoutError as late:
            future.set_exception(late)

    asked.add_done_callback(settle)
    return future


def _tell(watch: Watch, reply: Reply) -> None:
    match reply.said:
        case Said.SEEN:
            change, fields = reply.value
            watch.tell(Event(Change(change), fields))
        case Said.BEHIND:
            watch.tell(behind())
        case Said.FAILED:
            watch.tell(reply.value)


def _timeout(timeout: float | None) -> SpaceTimeoutError:
    return SpaceTimeoutError(f"no such tuple within {timeout or 0} s")
