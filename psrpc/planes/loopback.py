"""The in-process plane: a link is a call of the server's `handle`."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from psrpc.messages import Request
from psrpc.planes.base import Payload, Pending, Service, checked, land
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout


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


class LoopbackLink:
    """A link to a server in this process."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffers = Buffers.none()

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
