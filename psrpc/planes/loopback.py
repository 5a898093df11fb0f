"""The in-process plane: a link is a call of the server's `handle`."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from psrpc.messages import Request
from psrpc.planes.base import Payload, Pending, Service, checked, land
from psrpc.store.binding import Buffers
from psrpc.store.layout import ShardLayout


class LoopbackPending:
    """An answer of a service in this process."""

    def __init__(
        self, future: torch.futures.Future[Payload], weights: Sequence[torch.Tensor] | None
    ) -> None:
        self._future = future
        self._weights = weights
        self._came = threading.Event()
        future.add_done_callback(lambda _: self._came.set())

    def done(self) -> bool:
        """See `Pending`."""
        return self._came.is_set()

    def wait(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        if not self._came.wait(timeout_s):
            raise TimeoutError("no answer yet")
        payload = checked(self._future.value())
        if self._weights is not None:
            land(payload[1], self._weights)
        return payload


class LoopbackLink:
    """A link to a server in this process."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffers = Buffers([], [])

    def open(self, layout: ShardLayout) -> Buffers:
        """See `Link`."""
        self._buffers = Buffers(layout.empty(), layout.empty())
        return self._buffers

    def call(self, request: Request, tensors: Sequence[torch.Tensor] = ()) -> Pending:
        """See `Link`."""
        return LoopbackPending(self._service.handle(request, tensors), None)

    def exchange(
        self, request: Request, *, send: bool, land: bool, at_once: bool = True
    ) -> Pending:
        """See `Link`."""
        sent = [flat.clone() for flat in self._buffers.gradients] if send else []
        weights = self._buffers.weights if land else None
        return LoopbackPending(self._service.handle(request, sent), weights)

    def close(self) -> None:
        """See `Link`."""
