"""The shard that a server holds, in one layout after another."""

from __future__ import annotations

import threading
from collections.abc import Callable

from psrpc.core.shard import ShardCore
from psrpc.desk import Answers, Desk
from psrpc.errors import JobFailedError, PsrpcError
from psrpc.moves import Moved
from psrpc.store.optim import STRETCH
from psrpc.store.shard import ShardStore

_LARGE_BYTES = 1 << 18  # below, weights stay in the cache until all are stepped


class Turn:
    """A lock. Who takes it finds all things done that were put off; who takes `lock` does not."""

    def __init__(self, catch_up: Callable[[], object]) -> None:
        self.lock = threading.Lock()
        self._catch_up = catch_up

    def __enter__(self) -> None:
        self.lock.acquire()
        try:
            self._catch_up()
        except BaseException:
            self.lock.release()
            raise

    def __exit__(self, *raised: object) -> None:
        self.lock.release()


class Holding:
    """A shard's decisions, its rows, and the requests that wait for it.

    It is of `layout`, which has so many `servers`. `left` is the layout since which no rows are
    kept here; one that is `fresh` is in no layout that is in force yet. `next` is a layout, of how
    many servers, and the rows for it. `new_store` makes an empty shard, of so many servers.
    """

    new_store: Callable[[int], ShardStore]

    def __init__(self, core: ShardCore, store: ShardStore, servers: int) -> None:
        self.core = core
        self.desk = Desk()
        self.layout, self.servers = 0, servers
        self.left: int | None = None
        self.fresh = False
        self.next: tuple[int, int, ShardStore] | None = None
        self._lock = Turn(self._catch_up)
        self._failure: PsrpcError | None = None
        self._use(store)

    def heard(self, words: int | None = None) -> None:
        """A word about layouts has come, which counts as one about cuts; or so many before."""
        with self._lock:
            self.core.heard_of_layout(words)

    def begin_in(self, layout: int, servers: int, core: ShardCore, store: ShardStore) -> None:
        """Be a server of this layout from its beginning; `core` is a copy of shard 0's."""
        core.settle(fresh=True)
        self.begin_as(layout, servers, core, store)

    def begin_as(self, layout: int, servers: int, core: ShardCore, store: ShardStore) -> None:
        """Be as another server of this shard is."""
        with self._lock:
            self.core, self.layout, self.servers = core, layout, servers
            self._use(store)

    def prepare(self, layout: int, servers: int, store: ShardStore) -> None:
        """Have the rows for a new layout; whoever asks for it tells that it is in force.

        Nothing is kept if it was given up meanwhile.
        """
        with self._lock:
            if self.core.moving == layout:
                self.next = layout, servers, store

    def forgo(self, layout: int) -> None:
        """A new layout comes to nothing, and the rows for it are not needed."""
        with self._lock:
            if self.next is not None and self.next[0] == layout:
                self.next = None

    def settle(self, layout: int, *, stays: bool) -> Answers:
        """A layout is in force: whoever waits here is to ask again, and elsewhere if need be."""
        with self._lock:
            if self._failure is not None or layout == self.layout:
                return []
            if stays and (self.next is None or self.next[0] != layout):
                raise JobFailedError(f"layout {layout} is in force, and its rows have not come")
            if stays:
                return self._settle()
            self.layout = self.left = layout
            self.core.settle()
            return self._send_on()

    def _catch_up(self) -> None:
        """Do what was put off."""

    def _settle(self) -> Answers:
        assert self.next is not None
        (self.layout, self.servers, store), self.next = self.next, None
        self.core.settle()
        self._use(store)
        return self._send_on()

    def _send_on(self) -> Answers:
        return [(call, (Moved(self.layout), [])) for call in self.desk.clear()]

    def _use(self, store: ShardStore) -> None:
        self.store = store
        # Of half precision, more elements than one stretch has are fewer bytes.
        sizes = [(flat.nbytes, flat.numel()) for flat in store.flats]
        self.large = any(size >= _LARGE_BYTES or count > STRETCH for size, count in sizes)
