"""The plane that works anywhere: requests and tensors in torch RPC calls.

A worker's handle to a server is an RRef to the server object, held for the life
of the job. Calls go to the RRef's owner and name the server by its key: an
RRef among the arguments would be forked and confirmed anew in each step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import rpc

from psrpc.errors import PeerLostError, encode
from psrpc.messages import Done, Failure, Ping, Request
from psrpc.planes.agent import Agent, answers_later
from psrpc.planes.base import Payload, Pending, Service, checked, land
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout


@dataclass(frozen=True)
class Address:
    """How an agent is found: its name, its number in the job, its url."""

    name: str
    number: int
    url: str


# Functions called by RPC are module-level, so they find their server by name here.
_serving: dict[str, tuple[Agent, Service]] = {}


def serve(agent: Agent, service: Service) -> None:
    """Let peers reach `service` under the agent's name, until `withdraw`."""
    _serving[agent.name] = (agent, service)


def withdraw(agent: Agent) -> None:
    """Undo `serve`."""
    _serving.pop(agent.name, None)


def _greet(key: str, caller: Address) -> bool:
    if key in _serving:
        _serving[key][0].meet(caller.name, caller.number, caller.url)
    return key in _serving


def _service(key: str) -> Service:
    return _serving[key][1]


@answers_later
def _handle(
    key: str, request: Request, tensors: list[torch.Tensor]
) -> torch.futures.Future[Payload]:
    future: torch.futures.Future[Payload] = torch.futures.Future()
    if key in _serving:
        _serving[key][1].handle(request, tensors, future.set_result)
    else:
        future.set_result((Failure(encode(PeerLostError(f"{key} is closed"))), []))
    return future


def answers(name: str, timeout_s: float) -> bool:
    """Whether a server that this agent has met answers. Blocks."""
    try:
        reply, _ = result_of(rpc.rpc_async(name, _handle, (name, Ping(-1), []), timeout=timeout_s))
    except RuntimeError:
        return False
    return isinstance(reply, Done)


@dataclass(frozen=True)
class Patience:
    """When a call is sent again, and when its server is given up, in seconds."""

    attempt_s: float = 60.0
    ping_s: float = 10.0


def result_of(future: torch.futures.Future[Any]) -> Any:
    """What an RPC's future brings, or raises. Blocks, in Python: signals are heard meanwhile.

    Torch's own wait is deaf to them. Ends with the RPC's time limit.
    """
    came = threading.Event()
    future.add_done_callback(lambda _: came.set())
    came.wait()
    return future.wait()


class RpcPending:
    """An answer under way; sent again when it is late and the server still answers."""

    def __init__(self, link: RpcLink, request: Request, tensors: list[torch.Tensor]) -> None:
        self._link = link
        self._request = request
        self._tensors = tensors
        self.weights: Sequence[torch.Tensor] | None = None
        self._send()

    def done(self) -> bool:
        """See `Pending`. What ran into its time limit is sent again here as well."""
        if self._future.done() and self._late():
            with suppress(PeerLostError):  # `wait` will say so
                self._send()
        return bool(self._future.done())

    def arrive(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not self._came.wait(left_s):
                raise TimeoutError(f"no answer from {self._link.peer.name} yet")
            try:
                return checked(self._future.wait())
            except RuntimeError as error:
                self._retry(error)

    def wait(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        payload = self.arrive(timeout_s)
        if self.weights is not None:
            land(payload[1], self.weights)
            self.weights = None
        return payload

    def _send(self) -> None:
        self._sent = time.monotonic()
        # Not torch's own wait, which is deaf to signals.
        self._came = came = threading.Event()
        self._future = self._link.send(self._request, self._tensors)
        self._future.add_done_callback(lambda _: came.set())

    def _late(self) -> bool:
        """Whether the last attempt ran into its time limit."""
        try:
            self._future.value()
        except RuntimeError:
            return self._attempt_is_over()
        return False

    def _attempt_is_over(self) -> bool:
        # Torch's clock may be early by a millisecond; a server that died is found by the ping.
        return time.monotonic() - self._sent > self._link.patience.attempt_s / 2

    def _retry(self, error: RuntimeError) -> None:
        """Send again what ran into its time limit; anything else means that the server is gone."""
        if not self._attempt_is_over():
            raise self._link.lost(error) from None
        self._link.ping()
        self._send()


class RpcLink:
    """A worker's way to a server over torch RPC."""

    def __init__(self, agent: Agent, peer: Address, patience: Patience | None = None) -> None:
        self.agent = agent
        self.peer = peer
        self.patience = patience or Patience()
        self._buffers = Buffers.none()
        self._handle: Any = None

    def connect(self) -> None:
        """Introduce this agent to the server and take a handle of it. Blocks.

        Raises PeerLostError if nobody answers at the peer's address.
        """
        me = Address(self.agent.name, self.agent.number, self.agent.url)
        self.agent.meet(self.peer.name, self.peer.number, self.peer.url)
        try:
            known = result_of(
                rpc.rpc_async(
                    self.peer.name, _greet, (self.peer.name, me), timeout=self.patience.ping_s
                )
            )
            if not known:
                raise PeerLostError(f"{self.peer.name} is not serving")
            self._handle = rpc.remote(
                self.peer.name, _service, (self.peer.name,), timeout=self.patience.ping_s
            )
            self._owner = self._handle.owner()
        except RuntimeError as error:
            raise self.lost(error) from None

    def open(self, layout: ShardLayout) -> Buffers:
        """See `Link`."""
        return self.adopt(Buffers.private(layout))

    def adopt(self, buffers: Buffers) -> Buffers:
        """Use buffers that are there already."""
        self._buffers = buffers
        return buffers

    def call(self, request: Request, tensors: Sequence[torch.Tensor] = ()) -> Pending:
        """See `Link`."""
        return RpcPending(self, request, list(tensors))

    def exchange(
        self, request: Request, *, send: bool, land: bool, at_once: bool = True
    ) -> Pending:
        """See `Link`."""
        pending = RpcPending(self, request, self._buffers.gradients if send else [])
        pending.weights = self._buffers.weights if land else None
        return pending

    def close(self) -> None:
        """See `Link`. The server forgets this handle; farewells may still be called."""
        self._handle = None

    def send(self, request: Request, tensors: list[torch.Tensor]) -> torch.futures.Future[Payload]:
        """Send once; the future fails when the server dies or the attempt's time is over."""
        try:
            return self._ask(request, tensors, self.patience.attempt_s)
        except RuntimeError as error:
            raise self.lost(error) from None

    def ping(self) -> None:
        """Return when the server answers; raise PeerLostError if it does not."""
        try:
            result_of(self._ask(Ping(self.agent.number), [], self.patience.ping_s))
        except RuntimeError as error:
            raise self.lost(error) from None

    def _ask(
        self, request: Request, tensors: list[torch.Tensor], timeout_s: float
    ) -> torch.futures.Future[Payload]:
        asked: torch.futures.Future[Payload] = rpc.rpc_async(
            self._owner, _handle, (self.peer.name, request, tensors), timeout=timeout_s
        )
        return asked

    def lost(self, error: Exception) -> PeerLostError:
        """The error that says this server is gone."""
        cause = str(error).split("\n", 1)[0]
        return PeerLostError(f"{self.peer.name} at {self.peer.url} died or left ({cause})")
