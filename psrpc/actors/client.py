"""A process's way to actors: one connection to the head, one to each runner that it calls."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future as PlainFuture
from typing import Any

from psrpc.actors import messages as m
from psrpc.actors.mail import Mail, Post
from psrpc.actors.packing import pack_error, unpack_error
from psrpc.actors.route import Line, Route
from psrpc.errors import AddressError, ClosedError, PeerLostError, UsageError

_CLIENT_BITS = 40
_ANSWER_S = 60.0


class Client:
    """This process's use of a cluster."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.mail = Mail(lambda post, batch: None, lambda post: None, "psrpc-client")
        self.closed = False
        self._head: Post | None = None
        self._number: PlainFuture[int] = PlainFuture()
        self._actors = itertools.count(1)
        self._tickets = itertools.count(1)
        self._routes: dict[int, Route] = {}
        self._lines: dict[str, Line] = {}
        self._asked: dict[int, PlainFuture[Any]] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Connect. Blocks; raises AddressError if no cluster is there."""
        self._head = self.mail.connect(self.address)
        self._head.got, self._head.over = self._told, self._headless
        self.mail.start()
        self._head.send(m.ClientHello())
        self._number.result(_ANSWER_S)

    def close(self) -> None:
        """Leave: actors that this process made end, but for detached ones."""
        self.closed = True
        self.mail.close()

    def create(self, spec: m.Spec) -> Route:
        """Make an actor; returns at once. With a name: raises UsageError if it is taken."""
        if self.closed:
            raise ClosedError("this cluster was shut down")
        if spec.name is not None and self.find(spec.name) is not None:
            raise UsageError(f"there is an actor named {spec.name!r} already")
        actor = self._number.result() << _CLIENT_BITS | next(self._actors)
        route = Route(self, actor, spec)
        self._routes[actor] = route
        self.say(m.Create(actor, spec))
        return route

    def route(self, actor: int, spec: m.Spec) -> Route:
        """The way to an actor that somebody else made."""
        with self._lock:
            route = self._routes.get(actor)
            if route is not None:
                return route
            route = self._routes[actor] = Route(self, actor, spec)
        self.say(m.Locate(actor))
        return route

    def find(self, name: str) -> tuple[int, m.Spec] | None:
        """The actor of that name. Blocks."""
        found = self._ask(lambda ticket: m.Find(ticket, name))
        return None if found.actor is None else (found.actor, found.spec)

    def status(self) -> dict[str, Any]:
        """How things are: nodes, actors, who waits for what. Blocks."""
        status: dict[str, Any] = self._ask(m.AskStatus).status
        return status

    def kill(self, actor: int) -> None:
        """End an actor at once."""
        self.say(m.Kill(actor))

    def say(self, message: Any) -> None:
        """Tell the head."""
        assert self._head is not None
        self._head.send(message)

    def drop(self, actor: int) -> None:
        """Nobody here has a handle to it any more."""
        self._routes.pop(actor, None)

    def forget(self, address: str, line: Line) -> None:
        """This connection has ended."""
        if self._lines.get(address) is line:
            del self._lines[address]

    def _ask(self, question: Callable[[int], Any]) -> Any:
        if self.closed:
            raise ClosedError("this cluster was shut down")
        ticket = next(self._tickets)
        answer = self._asked[ticket] = PlainFuture()
        self.say(question(ticket))
        return answer.result(_ANSWER_S)

    def _told(self, post: Post, batch: list[Any]) -> None:
        for message in batch:
            match message:
                case m.Located(actor, incarnation, address):
                    route = self._routes.get(actor)
                    if route is not None:
                        self._reach(route, incarnation, address)
                case m.Gone(actor, error, lived):
                    route = self._routes.pop(actor, None)
                    if route is not None:
                        route.gone(unpack_error(error), lived)
                case m.Found(ticket) | m.StatusIs(ticket):
                    self._asked.pop(ticket).set_result(message)
                case m.Welcome(client):
                    self._number.set_result(client)

    def _reach(self, route: Route, incarnation: int, address: str) -> None:
        line = self._lines.get(address)
        if line is None:
            try:
                line = self._lines[address] = Line(self, address)
            except AddressError:
                # It has died since; the head will hear of it.
                self.say(m.Locate(route.actor, incarnation))
                return
        route.located(incarnation, line)

    def _headless(self, post: Post) -> None:
        error = pack_error(
            PeerLostError("the cluster has ended: its head, or the node that was started with it")
        )
        self.closed = True
        for line in list(self._lines.values()):
            line.close()
        for route in list(self._routes.values()):
            route.gone(unpack_error(error))
        for answer in self._asked.values():
            answer.set_exception(unpack_error(error))
        self._asked.clear()
