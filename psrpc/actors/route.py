"""The ways to actors: a line to each runner, a route to each actor, wherever that is now."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from psrpc.actors import messages as m
from psrpc.actors.future import Future
from psrpc.actors.mail import Mail, Post
from psrpc.actors.packing import is_plain, pack
from psrpc.errors import ActorLostError, MailboxFullError


class Office(Protocol):
    """What lines and routes need of their process's client."""

    mail: Mail
    closed: bool

    def say(self, message: Any) -> None:
        """Tell the head."""
        ...

    def kill(self, actor: int) -> None:
        """End an actor at once."""
        ...

    def drop(self, actor: int) -> None:
        """Nobody here has a handle to it any more."""
        ...

    def forget(self, address: str, line: Line) -> None:
        """This connection has ended."""
        ...


class Line:
    """A connection to a runner, and the calls on it that are not answered."""

    def __init__(self, office: Office, address: str) -> None:
        self.waiting: dict[int, Future] = {}
        self.routes: set[Route] = set()
        self.ended = False
        self._numbers = itertools.count(1)
        self._office = office
        self._address = address
        self._post = office.mail.connect(address)
        self._post.got, self._post.over = self._got, self._over

    def call(self, actor: int, future: Future) -> None:
        """Send a call; its answer settles the future."""
        assert future.call is not None
        number = future.number = next(self._numbers)
        self.waiting[number] = future
        # One that waits alone is sent by its own caller, others gather.
        self._post.send((number, actor, *future.call), at_once=len(self.waiting) == 1)

    def call_all(self, actor: int, futures: Sequence[Future]) -> None:
        """Send several calls."""
        messages = []
        for future in futures:
            assert future.call is not None
            number = future.number = next(self._numbers)
            self.waiting[number] = future
            messages.append((number, actor, *future.call))
        self._post.send_all(messages, at_once=len(self.waiting) == len(messages))

    def give_up(self, actor: int, future: Future) -> None:
        """Ask that a call be not carried out."""
        self._post.send((future.number, actor, None, None, None))

    def tell(self, actor: int, method: str, args: tuple[Any, ...]) -> None:
        """Make a call of which no answer is wanted."""
        self._post.send((0, actor, method, args, {}), at_once=False)

    def close(self) -> None:
        """End the connection."""
        self._post.close()

    def _got(self, post: Post, batch: list[m.Answer]) -> None:
        waiting, touched = self.waiting, set[Route]()
        for number, status, value in batch:
            future = waiting.pop(number, None)
            if future is not None:
                route: Route = future.way
                future.settle(status, value)
                route.answered += 1
                touched.add(route)
        for route in touched:
            route.after_answers()

    def _over(self, post: Post) -> None:
        self.ended = True
        self._office.forget(self._address, self)
        left = list(self.waiting.values())
        self.waiting.clear()
        for route in self.routes | {future.way for future in left}:
            route.lost([future for future in left if future.way is route])


class Route:
    """The way to one actor, wherever it is. Calls of one thread arrive in its order."""

    def __init__(self, office: Office, actor: int, spec: m.Spec) -> None:
        self.actor = actor
        self.spec = spec
        self.answered = 0
        self.after_answers: Callable[[], None] = self._make_room
        self.on_loss: Callable[[list[Future], BaseException], None] | None = None
        self._office = office
        self._line: Line | None = None
        self._incarnation = 0
        self._backlog: deque[Future] = deque()
        self._error: BaseException | None = None
        self._sent = 0
        self._waiting = False
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)

    @property
    def open_calls(self) -> int:
        """The calls that are not answered."""
        return self._sent - self.answered

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future:
        """Call a method; returns at once, unless the actor has too many of our calls already.

        Raises MailboxFullError where waiting would be for ever, UsageError if an argument cannot
        be sent.
        """
        return self.post(Future(self, pack_call(method, args, kwargs)))

    def post(self, future: Future) -> Future:
        """Send a call, or keep it until it is known where the actor is."""
        future.way = self
        with self._lock:
            if self._sent - self.answered >= self.spec.max_pending:
                self._await_room()
            if self._error is not None:
                future.fail(self._error)
                return future
            self._sent += 1
            if self._line is None:
                self._backlog.append(future)
            else:
                self._line.call(self.actor, future)
        return future

    def post_all(self, futures: Sequence[Future]) -> bool:
        """Send several calls, however many there are already; False if the actor is no more."""
        with self._lock:
            if self._error is not None:
                return False
            self._sent += len(futures)
            for future in futures:
                future.way = self
            if self._line is None:
                self._backlog.extend(futures)
            else:
                self._line.call_all(self.actor, futures)
        return True

    def open_futures(self) -> list[Future]:
        """The calls that are sent and not answered, in their order."""
        line = self._line
        return [] if line is None else [f for f in list(line.waiting.values()) if f.way is self]

    def give_up(self, future: Future) -> None:
        """See `Giver`."""
        with self._lock:
            if future.number and self._line is not None:
                self._line.give_up(self.actor, future)
            elif future in self._backlog:
                self._backlog.remove(future)
                self._sent -= 1

    def withdraw(self, future: Future) -> None:
        """Ask for a call back, if it has not begun: it is then answered as cancelled."""
        with self._lock:
            if self._line is not None:
                self._line.give_up(self.actor, future)

    def retire(self) -> None:
        """End the actor after its calls; nobody else can reach it."""
        if self._office.closed:
            return
        self.tell(m.RETIRE, ())
        if not self.spec.max_retries:
            with self._lock:
                if self._line is None:
                    return  # it waits to be located
                self._line.routes.discard(self)
            self._office.drop(self.actor)

    def end(self) -> None:
        """End the actor at once."""
        if not self._office.closed:
            self._office.kill(self.actor)

    def tell(self, method: str, args: tuple[Any, ...]) -> None:
        """Make a call, in its turn, of which no answer is wanted."""
        with self._lock:
            if self._error is not None:
                return
            if self._line is None:
                future = Future(self, (method, args, {}))
                future.way = self
                self._backlog.append(future)
                self._sent += 1
            else:
                self._line.tell(self.actor, method, args)

    def located(self, incarnation: int, line: Line) -> None:
        """The actor is there; what has waited for it goes there."""
        with self._lock:
            if line.ended:
                self._seek(incarnation)
                return
            self._incarnation, self._line = incarnation, line
            line.routes.add(self)
            while self._backlog:
                future = self._backlog.popleft()
                if future.cancelled():
                    self.answered += 1
                else:
                    line.call(self.actor, future)

    def gone(self, error: BaseException) -> None:
        """The actor is no more."""
        with self._lock:
            self._error = error
            if self._line is not None:
                self._line.routes.discard(self)
            left = list(self._backlog)
            self._backlog.clear()
            self.answered = self._sent
            self._room.notify_all()
        if self.on_loss is not None:
            self.on_loss(left, error)
            return
        for future in left:
            future.fail(error)
        self._office.drop(self.actor)

    def lost(self, futures: list[Future]) -> None:
        """The connection has ended with these calls unanswered."""
        again: list[Future] = []
        error = ActorLostError(
            f"{self.spec.title} was lost with this call unanswered; it may have been carried out"
        )
        with self._lock:
            self._line = None
            for future in futures:
                future.number = 0
                if not future.cancelled() and future.tries < self.spec.max_retries:
                    future.tries += 1
                    again.append(future)
            self._backlog.extendleft(reversed(again))
            self.answered += len(futures) - len(again)
            self._room.notify_all()
            self._seek(self._incarnation)
        failed = [future for future in futures if future not in again]
        if self.on_loss is not None:
            self.on_loss(failed, error)
            return
        for future in failed:
            future.fail(error)

    def _seek(self, after: int) -> None:
        self._office.say(m.Locate(self.actor, after))

    def _await_room(self) -> None:
        if threading.current_thread() is self._office.mail.thread:
            raise MailboxFullError(
                f"{self.spec.title} has {self.spec.max_pending} calls unanswered, and this thread "
                "is the one that takes answers: call from another, not in a future's callback"
            )
        self._waiting = True
        while self._error is None and self.open_calls >= self.spec.max_pending:
            self._room.wait()
        self._waiting = False

    def _make_room(self) -> None:
        if self._waiting:
            with self._lock:
                self._room.notify_all()


def pack_call(
    method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, Any, dict[str, Any] | None]:
    """A call as it is now: arguments that might be changed later are copied."""
    for value in args:
        if not is_plain(value):
            return method, pack((args, kwargs)), None
    for value in kwargs.values():
        if not is_plain(value):
            return method, pack((args, kwargs)), None
    return method, args, kwargs
