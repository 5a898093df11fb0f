"""The in-process plane: a link is a call of the server's `handle`."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from psrpc.messages import Request, Stepped
from psrpc.planes.base import Payload, Pending, QuickService, Service, checked, land
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout
from psrpc.usual import Usual


class LoopbackPending:
    """An answer of a service in this process."""

    def __init__(self, weights: Sequence[torch.Tensor] | None = None) -> None:
        self._weights = weights
        self._payload: Payload | None = None
        self._came = threading.Event()

    def answer(self, payload: Payload) -> None:
        """What the service calls."""
        self._payload = payload
        self._came.set()

    def settle(self) -> None:
        """Block until the answer is here, whatever it says."""
        self._came.wait()

    def done(self) -> bool:
        """See `Pending`."""
        return self._came.is_set()

    def arrive(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        if not self._came.wait(timeout_s):
            raise TimeoutError("no answer yet")
        assert self._payload is not None
        return checked(self._payload)

    def wait(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        payload = self.arrive(timeout_s)
        if self._weights is not None:
            land(payload[1], self._weights)
            self._weights = None
        return payload


class _QuickPending(LoopbackPending):
    """The answer to a usual push; weights land in the link's buffers before it is there."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._buffers = weights
        self.granted = False

    def land(self, flats: Sequence[torch.Tensor]) -> None:
        """See `Caller`."""
        land(flats, self._buffers)

    def grant(self, version: int, lead: int) -> None:
        """See `Caller`."""
        self.granted = True
        self.answer((Stepped(version, lead), []))


class LoopbackLink:
    """A link to a server in this process, also by its short way if that is given."""

    def __init__(self, service: Service, short: QuickService | None = None) -> None:
        self._service = service
        self._buffers = Buffers.none()
        self._short = short
        self._owed: _QuickPending | None = None
        self.quick = None if short is None else self._go

    def _go(self, push: Usual) -> Pending | None:
        """See `QuickLink`."""
        assert self._short is not None
        sent = [flat.clone() for flat in self._buffers.gradients]
        self._owed = pending = _QuickPending(self._buffers.weights)
        if not self._short.quick(push, sent, pending):
            self._service.handle(push.push(), sent, pending.answer, pending.land)
        pending.settle()
        self._owed = None
        return None if pending.granted else pending

    def owed(self) -> Pending | None:
        """See `QuickLink`."""
        owed, self._owed = self._owed, None
        return owed

    def open(self, layout: ShardLayout) -> Buffers:
        """See `Link`."""
        self._buffers = Buffers.private(layout)
        return self._buffers

    def call(self, request: Request, tensors: Sequence[torch.Tensor] = ()) -> Pending:
        """See `Link`."""
        return self._send(request, tensors, LoopbackPending())

    def exchange(
        self, request: Request, *, send: bool, land: bool, at_once: bool = True
    ) -> Pending:
        """See `Link`."""
        sent = [flat.clone() for flat in self._buffers.gradients] if send else []
        return self._send(request, sent, LoopbackPending(self._buffers.weights if land else None))

    def _send(
        self, request: Request, tensors: Sequence[torch.Tensor], pending: LoopbackPending
    ) -> Pending:
        self._service.handle(request, tensors, pending.answer)
        return pending

    def close(self) -> None:
        """See `Link`."""
