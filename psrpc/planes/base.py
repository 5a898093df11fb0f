"""The seam of data planes: a worker's link to one server, and a server's service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from psrpc.errors import MovedError, decode
from psrpc.messages import Failure, Reply, Request
from psrpc.moves import Moved
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout
from psrpc.usual import Usual

Payload = tuple[Reply, list[torch.Tensor]]
Answer = Callable[[Payload], object]
Landing = Callable[[Sequence[torch.Tensor]], None]


class StretchLanding(Protocol):
    """A landing that may also be given weights a stretch at a time, from several threads."""

    def __call__(self, flats: Sequence[torch.Tensor]) -> None:
        """Take all of the weights."""
        ...

    def stretch(self, flats: Sequence[torch.Tensor], segment: int, low: int, high: int) -> None:
        """Take elements `low` to `high` of a segment."""
        ...


def is_hidden(land: Landing | None) -> bool:
    """Whether what lands is seen by nobody before the answer is given."""
    return getattr(land, "hidden", False)


class Service(Protocol):
    """What a server offers to every plane."""

    def handle(
        self,
        request: Request,
        tensors: Sequence[torch.Tensor],
        answer: Answer,
        land: Landing | None = None,
    ) -> None:
        """Take a request; `answer` is called once, now or later, from any thread.

        Never waits for another worker, never raises. `tensors` are read until then, and
        not written. Weights that belong to the answer are given to `land` (flat CPU
        tensors, one a segment, valid during the call), or else are part of the answer.
        """
        ...


class Caller(Protocol):
    """Whoever sent a usual push and waits for its answer, and for weights."""

    @property
    def land(self) -> Landing:
        """Where the weights go."""
        ...

    def grant(self, version: int, lead: int) -> None:
        """Answer with a `Stepped` of which nothing is rare."""
        ...

    def answer(self, payload: Payload) -> None:
        """Give any other answer, in place of that."""
        ...


class QuickService(Protocol):
    """A server's short way for usual pushes."""

    def quick(self, push: Usual, gradients: Sequence[torch.Tensor], caller: Caller) -> bool:
        """Take a push with its gradients; `caller` is answered once, now or later.

        Returns False if nothing was done, and `Service.handle` is to take it. Does what that
        would, and promises the same.
        """
        ...


class Pending(Protocol):
    """An answer under way. Waiting does not hold the interpreter."""

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        ...

    def arrive(self, timeout_s: float | None = None) -> Payload:
        """Block until the answer is here, and leave weights where they are.

        Raises the error that the server answered with, PeerLostError if it died or
        stopped answering, and TimeoutError after `timeout_s` (it may be called again).
        """
        ...

    def wait(self, timeout_s: float | None = None) -> Payload:
        """Block and raise as `arrive`; weights have then landed in the link's buffers.

        They land once, however often this is called.
        """
        ...


class Link(Protocol):
    """One worker's way to one server. Calls may overlap, exchanges may not."""

    def open(self, layout: ShardLayout) -> Buffers:
        """Provide the CPU buffers from which gradients go and in which weights land."""
        ...

    def call(self, request: Request, tensors: Sequence[torch.Tensor] = ()) -> Pending:
        """Send a request, with tensors that must not change until it is answered."""
        ...

    def exchange(
        self, request: Request, *, send: bool, land: bool, at_once: bool = True
    ) -> Pending:
        """Send a request with the gradient buffers (`send`); let weights land (`land`).

        With `at_once` the caller waits now, and weights may land at any moment before
        `wait` or `arrive` returns; otherwise they land within `wait`.
        """
        ...

    def close(self) -> None:
        """Give the way up. Open calls fail with PeerLostError."""
        ...


class QuickLink(Protocol):
    """A link's short way for usual pushes, while no exchange is under way."""

    def quick(self, push: Usual) -> Pending | None:
        """Send a push with the gradient buffers, and wait until weights have landed.

        Returns None then; or, if the answer is not the usual one, what has it. Raises
        PeerLostError.
        """
        ...

    def owed(self) -> Pending | None:
        """The answer that `quick` has not taken, as it was interrupted after it had sent."""
        ...


def checked(payload: Payload) -> Payload:
    """Raise the error that a server answered with, or return the answer."""
    reply = payload[0]
    if isinstance(reply, Failure):
        raise decode(*reply.error)
    if isinstance(reply, Moved):
        raise MovedError(f"the job has another layout now, {reply.layout}")
    return payload


def land(tensors: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> None:
    """Copy weights that came to the place where they belong."""
    for target, tensor in zip(weights, tensors, strict=True):
        target.copy_(tensor)
