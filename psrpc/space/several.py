"""A tuple that any of several owners may have, as a future: nobody's thread waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from psrpc.errors import PsrpcError, SpaceTimeoutError
from psrpc.promises import Promise
from psrpc.space.connection import Question, Reply
from psrpc.space.words import Said


class Ways(NamedTuple):
    """How owners are asked, each by its shard; a look leaves the tuple where it is."""

    look: Callable[[int, float | None, Question], object]
    take: Callable[[int, Question], object] | None  # None: a look is all that is wanted
    withdraw: Callable[[Question], object]  # raises nothing
    unwanted: Callable[[int, Reply], object]
    tuple_of: Callable[[int, Reply], Any]


class Several(Promise):
    """Looks at all owners at once; takes, where it is to, from one after the other that has one."""

    def __init__(self, shards: Sequence[int], ways: Ways, wait_s: float | None) -> None:
        self._shards = shards
        self._ways = ways
        self._wait_s = wait_s
        self._until_s = None if wait_s is None else time.monotonic() + wait_s
        self._looks: dict[int, Question] = {}
        self._there: list[int] = []  # owners that had one when they were asked
        self._taking = True  # or not yet to take: not before all are asked
        self._lock = threading.RLock()

    def start(self) -> Several:
        """Ask. If an owner cannot be asked, that is raised, and the others keep their tuples."""
        try:
            for shard in self._shards:
                self._look(shard)
        except BaseException:
            self.cancel()
            raise
        self._taking = False
        self._go_on()
        return self

    def withdraw(self) -> None:
        """See `Promise`: no more is wanted of any owner."""
        with self._lock:
            looks, self._looks = self._looks, {}
        for look in looks.values():
            self._ways.withdraw(look)

    def looked(self, shard: int, reply: Reply) -> None:
        """An owner has one, or has had none in the time."""
        with self._lock:
            self._looks.pop(shard, None)
            if reply.said is Said.GIVEN:
                self._there.append(shard)
        if reply.said is Said.GIVEN and self._ways.take is None:
            self._end(self._ways.tuple_of(shard, reply))
        else:
            self._go_on()

    def taken(self, shard: int, reply: Reply) -> None:
        """An owner gave it, or somebody else was sooner."""
        self._taking = False
        if reply.said is not Said.GIVEN:
            if not self.done():
                self._look_again(shard)
                self._take()
        elif not self._end(self._ways.tuple_of(shard, reply)):
            self._ways.unwanted(shard, reply)

    def failed(self, error: BaseException) -> None:
        """An owner is lost."""
        self._end(None, error)

    def _look(self, shard: int) -> None:
        left_s = None if self._until_s is None else max(self._until_s - time.monotonic(), 0.0)
        look = _Step(self, shard, self.looked)
        with self._lock:
            self._looks[shard] = look
        self._ways.look(shard, left_s, look)
        if self.done():  # meanwhile
            self._ways.withdraw(look)

    def _look_again(self, shard: int) -> None:
        try:
            self._look(shard)
        except PsrpcError as error:  # not of the connection that told this
            self._end(None, error)

    def _go_on(self) -> None:
        with self._lock:
            over = not (self._looks or self._there or self._taking)
        if over:
            self._end(None, SpaceTimeoutError(f"no such tuple within {self._wait_s or 0} s"))
        else:
            self._take()

    def _take(self) -> None:
        with self._lock:
            if self._taking or not self._there or self._ways.take is None or self.done():
                return
            self._taking, shard = True, self._there.pop(0)
        try:
            self._ways.take(shard, _Step(self, shard, self.taken))
        except PsrpcError as error:  # not of the connection that told this
            self._end(None, error)

    def _end(self, value: Any, error: BaseException | None = None) -> bool:
        first = self.finish(value, error)
        self.withdraw()
        return first


class _Step(Question):
    def __init__(self, whole: Several, shard: int, heard: Callable[[int, Reply], None]) -> None:
        self._whole = whole
        self._shard = shard
        self._heard = heard

    def told(self, reply: Reply) -> None:
        self._heard(self._shard, reply)

    def finish(self, value: Any, error: BaseException | None = None) -> bool:
        if error is not None:
            self._whole.failed(error)
        return super().finish(value, error)
