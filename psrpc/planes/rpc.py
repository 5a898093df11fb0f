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
from typing import Any, NamedTuple

import torch
from torch.distributed import rpc

from psrpc.errors import PeerLostError, SecretError, encode
from psrpc.messages import Done, Failure, Ping, Request
from psrpc.planes import codec
from psrpc.planes.agent import Agent, answers_later, borrow, lend
from psrpc.planes.base import Payload, Pending, Service, checked, land
from psrpc.planes.signing import Ticket, may_be_called
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout


@dataclass(frozen=True)
class Address:
    """How an agent is found: its name, its number in the job, its url."""

    name: str
    number: int
    url: str


codec.know(Address)

# Functions called by RPC are module-level, so they find their server by name here.
_serving: dict[str, tuple[Agent, Service]] = {}


def serve(agent: Agent, service: Service) -> None:
    """Let peers reach `service` under the agent's name, until `withdraw`."""
    _serving[agent.name] = (agent, service)


def withdraw(agent: Agent) -> None:
    """Undo `serve`."""
    _serving.pop(agent.name, None)


@may_be_called
def _greet(ticket: Ticket, caller: Address) -> tuple[Ticket, tuple[Any, ...]]:
    if ticket.to not in _serving:
        return ticket, ()
    agent, service = _serving[ticket.to]
    agent.meet(caller.name, caller.number, caller.url)
    return ticket, lend(service)


@may_be_called
@answers_later
def _handle(
    ticket: Ticket, request: Request, tensors: list[torch.Tensor]
) -> torch.futures.Future[tuple[Ticket, Payload]]:
    future: torch.futures.Future[tuple[Ticket, Payload]] = torch.futures.Future()

    def answer(payload: Payload) -> None:
        future.set_result((ticket, payload))

    if ticket.to in _serving:
        _serving[ticket.to][1].handle(request, tensors, answer)
    else:
        answer((Failure(encode(PeerLostError(f"{ticket.to} is closed"))), []))
    return future


class Asked(NamedTuple):
    """A call under way: its answer must have the same ticket."""

    ticket: Ticket
    future: torch.futures.Future[Any]

    def value(self) -> Any:
        """What the call brought, or raises. Blocks, in Python: signals are heard meanwhile.

        Torch's own wait is deaf to them. Ends with the RPC's time limit.
        """
        came = threading.Event()
        self.future.add_done_callback(lambda _: came.set())
        came.wait()
        return self.result()

    def result(self) -> Any:
        """The same, when the future is done."""
        answer = self.future.wait()
        if not isinstance(answer, tuple) or len(answer) != 2 or answer[0] != self.ticket:
            raise SecretError(f"the answer of {self.ticket.to} is another call's")
        return answer[1]


def _call(
    agent: Agent, to: Any, name: str, function: Any, arguments: tuple[Any, ...], timeout_s: float
) -> Asked:
    """Call a function of the server of this name. Raises RuntimeError if it is gone."""
    ticket = agent.ticket(name)
    return Asked(ticket, rpc.rpc_async(to, function, (ticket, *arguments), timeout=timeout_s))


def answers(agent: Agent, name: str, timeout_s: float) -> bool:
    """Whether a server that this agent has met answers. Blocks."""
    try:
        with agent.reaching(name):
            reply, _ = _call(agent, name, name, _handle, (Ping(-1), []), timeout_s).value()
    except (RuntimeError, OSError, SecretError):
        return False
    return isinstance(reply, Done)


@dataclass(frozen=True)
class Patience:
    """When a call is sent again, and when its server is given up, in seconds.

    A server that does not answer a ping is pinged again for `silent_s`, for a link may heal.
    """

    attempt_s: float = 60.0
    ping_s: float = 10.0
    silent_s: float = 0.0


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
        if self._asked.future.done() and self._late():
            with suppress(PeerLostError):  # `wait` will say so
                self._send()
        return bool(self._asked.future.done())

    def arrive(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not self._came.wait(left_s):
                raise TimeoutError(f"no answer from {self._link.peer.name} yet")
            try:
                return checked(self._asked.result())
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
        self._asked = self._link.send(self._request, self._tensors)
        self._asked.future.add_done_callback(lambda _: came.set())

    def _late(self) -> bool:
        """Whether the last attempt ran into its time limit."""
        try:
            self._asked.future.value()
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

        Raises PeerLostError if nobody answers at the peer's address, SecretError if it has another
        secret.
        """
        name = self.peer.name
        me = Address(self.agent.name, self.agent.number, self.agent.url)
        self.agent.meet(self.peer.name, self.peer.number, self.peer.url)
        try:
            with self.agent.reaching(name):
                lent = _call(self.agent, name, name, _greet, (me,), self.patience.ping_s).value()
            if not lent:
                raise PeerLostError(f"{name} is not serving")
            self._handle = borrow(lent)
            self._owner = self._handle.owner()
        except (RuntimeError, OSError) as error:
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

    def send(self, request: Request, tensors: list[torch.Tensor]) -> Asked:
        """Send once; the call fails when the server dies or the attempt's time is over."""
        try:
            return self._ask(request, tensors, self.patience.attempt_s)
        except RuntimeError as error:
            raise self.lost(error) from None

    def ping(self) -> None:
        """Return when the server answers; raise PeerLostError if it is gone, or stays silent."""
        deadline = time.monotonic() + self.patience.silent_s
        while True:
            asked_s = time.monotonic()
            try:
                self._ask(Ping(self.agent.number), [], self.patience.ping_s).value()
                return
            except RuntimeError as error:
                now_s = time.monotonic()
                is_silent = now_s - asked_s > self.patience.ping_s / 2
                if not is_silent or now_s > deadline:
                    raise self.lost(error) from None

    def _ask(self, request: Request, tensors: list[torch.Tensor], timeout_s: float) -> Asked:
        arguments = (request, tensors)
        return _call(self.agent, self._owner, self.peer.name, _handle, arguments, timeout_s)

    def lost(self, error: Exception) -> PeerLostError:
        """The error that says this server is gone."""
        cause = str(error).split("\n", 1)[0]
        return PeerLostError(f"{self.peer.name} at {self.peer.url} died or left ({cause})")
