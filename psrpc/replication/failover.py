"""A link to whoever reigns: when that changes, what is under way is sent again to the next one.

The names of updates, and the numbers of words, make that exactly once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from psrpc.errors import AddressError, PeerLostError
from psrpc.messages import Request
from psrpc.planes.base import Link, Payload, Pending
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout

_LOOK_AGAIN_S = 0.05
_LOOK_S = 0.25  # how often somebody who waits sees whether another server reigns
_LONGEST_LOOK_S = 1.0


class Place(Protocol):
    """Where a shard is served; used under the link's lock.

    `reign` numbers the server that `reach` connected to last.
    """

    def reach(self, buffers: Buffers | None, layout: ShardLayout) -> Link:
        """Connect to who reigns now, and use `buffers`, if there are some already.

        Raises PeerLostError or AddressError if that server does not answer.
        """
        ...

    def moved(self) -> bool:
        """Whether another server reigns than the one that was reached last."""
        ...

    def over(self) -> bool:
        """Whether the job has ended, so that nobody takes a lost server's place."""
        ...

    def leave(self, link: Link) -> None:
        """Give up a link whose server does not reign any more; the buffers stay."""
        ...


class FailoverPending:
    """An answer that may come from another server than the one that was asked."""

    def __init__(self, link: FailoverLink, ask: Callable[[Link], Pending]) -> None:
        self._link = link
        self._ask = ask
        self._asked: Link | None = None
        self._pending: Pending | None = None
        self._say()

    def done(self) -> bool:
        """See `Pending`. One whose server is lost is not done."""
        return self._pending is not None and self._pending.done()

    def arrive(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        return self._persist(lambda pending, slice_s: pending.arrive(slice_s), timeout_s)

    def wait(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        return self._persist(lambda pending, slice_s: pending.wait(slice_s), timeout_s)

    def _persist(
        self, wait: Callable[[Pending, float], Payload], timeout_s: float | None
    ) -> Payload:
        deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        slice_s = _LOOK_S
        while True:
            if self._pending is None:
                self._link.renew(self._asked)
                self._say()
                continue
            try:
                left_s = max(deadline - time.monotonic(), 0.0)
                return wait(self._pending, min(slice_s, left_s))
            except TimeoutError:
                if self._link.moved(self._asked):
                    self._pending = None
                elif time.monotonic() >= deadline:
                    raise
                slice_s = min(2 * slice_s, _LONGEST_LOOK_S)
            except PeerLostError:
                self._pending = None

    def _say(self) -> None:
        self._asked = self._link.current
        try:
            self._pending = self._ask(self._asked)
        except PeerLostError:
            self._pending = None


class FailoverLink:
    """A `Link` to a shard, wherever it is served. Lost servers are waited for `patience_s`."""

    def __init__(self, place: Place, patience_s: float) -> None:
        self._place = place
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._buffers: Buffers | None = None
        self._layout = ShardLayout((), ())
        self._closed = False
        self._lost: PeerLostError | None = None
        self.current = self._reach(None)

    def open(self, layout: ShardLayout) -> Buffers:
        """See `Link`."""
        self._layout = layout
        self._buffers = self.current.open(layout)
        return self._buffers

    def call(self, request: Request, tensors: Sequence[torch.Tensor] = ()) -> Pending:
        """See `Link`."""
        return FailoverPending(self, lambda link: link.call(request, tensors))

    def exchange(
        self, request: Request, *, send: bool, land: bool, at_once: bool = True
    ) -> Pending:
        """See `Link`. The gradients stay as they are until the answer is there."""
        buffers = self._buffers
        assert buffers is not None
        side = buffers.side

        def ask(link: Link) -> Pending:
            now, buffers.side = buffers.side, side
            try:
                return link.exchange(request, send=send, land=land, at_once=at_once)
            finally:
                buffers.side = now

        return FailoverPending(self, ask)

    def close(self) -> None:
        """See `Link`. Farewells may still be called."""
        self._closed = True
        self.current.close()

    def moved(self, asked: Link | None) -> bool:
        """Whether what `asked` was asked is to be asked again, of another server."""
        return asked is not self.current or self._place.moved()

    def renew(self, lost: Link | None) -> None:
        """Have another link than `lost`: to who reigns now. Blocks; raises PeerLostError."""
        with self._lock:
            if self.current is not lost:
                return
            if self._lost is not None:
                raise self._lost
            self._place.leave(self.current)
            try:
                self.current = self._reach(self._buffers)
            except PeerLostError as error:
                self._lost = error  # whatever is said now, such as farewells, need not wait again
                raise

    def _reach(self, buffers: Buffers | None) -> Link:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return self._place.reach(buffers, self._layout)
            except (PeerLostError, AddressError) as error:
                if time.monotonic() > deadline or self._place.over() or self._closed:
                    raise PeerLostError(str(error)) from None
            time.sleep(_LOOK_AGAIN_S)
