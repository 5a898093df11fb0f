"""The ways to actors: a line to each runner, a route to each actor, wherever that is now."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import attrgetter
from typing import Any, Protocol

from psrpc.actors import messages as m
from psrpc.actors.future import Future, settle_all
from psrpc.actors.mail import Mail, Post
from psrpc.actors.packing import FIXED, is_plain, pack
from psrpc.errors import ActorLostError, MailboxFullError

_way_of = attrgetter("way")


@dataclass(frozen=True)
class Loss:
    """An actor's end, and what it leaves."""

    unanswered: list[Future]
    unsent: list[Future]
    error: BaseException
    lived: bool  # whether it had been made
    alone: bool  # whether its process had one call only of its group


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
        self._next = 1  # the next call's number
        self._lock = threading.Lock()
        self._office = office
        self._address = address
        self._post = office.mail.connect(address)
        self._post.got, self._post.over = self._got, self._over

    def call(self, actor: int, future: Future) -> bool:
        """Send a call, whose answer settles the future; False if the connection has ended.

        Its route then keeps the call: that it has `lost` the connection is said to it afterwards.
        """
        assert future.call is not None
        with self._lock:
            if self.ended:
                return False
            number = future.number = self._next
            self._next += 1
            self.waiting[number] = future
            alone = len(self.waiting) == 1
        # One that waits alone is sent by its own caller, others gather.
        self._post.send((number, actor, *future.call), at_once=alone)
        return True

    def call_all(self, actor: int, futures: Sequence[Future]) -> bool:
        """Send several calls, or none; see `call`."""
        with self._lock:
            if self.ended:
                return False
            first = self._next
            self._next += len(futures)
            for number, future in enumerate(futures, first):
                future.number = number
            idle = not self.waiting
            numbers = range(first, first + len(futures))
            self.waiting.update(zip(numbers, futures, strict=True))
        calls: Any = [future.call for future in futures]
        self._post.send_all(m.calls_together(first, actor, calls), at_once=idle)
        return True

    def give_up(self, actor: int, future: Future) -> None:
        """Ask that a call be not carried out."""
        self._post.send((future.number, actor, None, None, None))

    def tell(self, actor: int, method: str, args: tuple[Any, ...]) -> bool:
        """Make a call of which no answer is wanted; False if the connection has ended."""
        if self.ended:
            return False
        self._post.send((0, actor, method, args, ()), at_once=False)
        return True

    def calls_of(self, route: Route) -> list[Future]:
        """The calls of a route that are not answered, in their order."""
        return [future for future in list(self.waiting.values()) if future.way is route]

    def take_back(self, route: Route) -> list[Future]:
        """Wait no more for answers to a route's calls; returns these."""
        with self._lock:
            self.routes.discard(route)
            mine = self.calls_of(route)
            return [future for future in mine if self.waiting.pop(future.number, None) is not None]

    def leave(self, route: Route) -> bool:
        """Say nothing more to a route; False if the connection has ended, which is said."""
        with self._lock:
            if self.ended:
                return False
            self.routes.discard(route)
            return True

    def close(self) -> None:
        """End the connection."""
        self._post.close()

    def _got(self, post: Post, batch: list[m.Answer]) -> None:
        waiting, touched = self.waiting, Counter[Route]()
        for number, status, value in batch:
            if status == m.ALL_PLAIN:
                numbers, values = value
                futures: list[Any] = list(map(waiting.pop, numbers, repeat(None)))
                if not all(futures):  # some were taken back
                    pairs = [pair for pair in zip(futures, values, strict=True) if pair[0]]
                    futures, values = [each[0] for each in pairs], [each[1] for each in pairs]
                touched.update(map(_way_of, futures))
                settle_all(futures, values)
                continue
            future = waiting.pop(number, None)
            if future is not None:
                touched[future.way] += 1
                future.settle(status, value)
        for route, count in touched.items():
            route.answered += count
        for route in touched:
            route.after_answers()

    def _over(self, post: Post) -> None:
        with self._lock:  # from here on nobody adds a call
            self.ended = True
            left = list(self.waiting.values())
            self.waiting.clear()
            routes = self.routes | {future.way for future in left}
        self._office.forget(self._address, self)
        together = Counter(future.way.group for future in left)
        for route in routes:
            mine = [future for future in left if future.way is route]
            route.lost(mine, alone=together[route.group] == 1)


class Route:
    """The way to one actor, wherever it is. Calls of one thread arrive in its order."""

    def __init__(self, office: Office, actor: int, spec: m.Spec) -> None:
        self.actor = actor
        self.spec = spec
        self.answered = 0
        self.after_answers: Callable[[], None] = self._make_room
        self.on_location: Callable[[], object] = bool
        self.on_loss: Callable[[Loss], None] | None = None
        self._office = office
        self.line: Line | None = None
        self.adrift = (
            False  # from the end of its line until it is known where it is, or that it is no more
        )
        self.group: Any = None  # whoever has several and wants to know which calls died together
        self._incarnation = 0
        self._backlog: deque[Future] = deque()
        self._unanswered: list[Future] = []  # calls of a pool's, until it is said why
        self._alone = False
        self._error: BaseException | None = None
        self._sent = 0
        self._waiting = 0  # threads that wait for room
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
            if self.line is None or not self.line.call(self.actor, future):
                self._backlog.append(future)
        return future

    def post_all(self, futures: Sequence[Future]) -> bool:
        """Send several calls, however many there are already; False if the actor is no more."""
        with self._lock:
            if self._error is not None:
                return False
            self._sent += len(futures)
            for future in futures:
                future.way = self
            if self.line is None or not self.line.call_all(self.actor, futures):
                self._backlog.extend(futures)
        return True

    def open_futures(self) -> list[Future]:
        """The calls that are sent and not answered, in their order."""
        line = self.line
        return [] if line is None else line.calls_of(self)

    def give_up(self, future: Future) -> None:
        """See `Giver`."""
        with self._lock:
            if future.number and self.line is not None:
                self.line.give_up(self.actor, future)
            elif future in self._backlog:
                self._backlog.remove(future)
                self._sent -= 1
                self._room.notify_all()

    def withdraw(self, future: Future) -> None:
        """Ask for a call back, if it has not begun: it is then answered as cancelled."""
        with self._lock:
            if self.line is not None:
                self.line.give_up(self.actor, future)

    def retire(self) -> None:
        """End the actor after its calls; nobody else can reach it."""
        if self._office.closed:
            return
        self.tell(m.RETIRE, ())
        if not self.spec.max_retries:
            with self._lock:
                if self.line is None or not self.line.leave(self):
                    return  # it waits to be located
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
            if self.line is None or not self.line.tell(self.actor, method, args):
                future = Future(self, (method, args, ()))
                future.way = self
                self._backlog.append(future)
                self._sent += 1

    def located(self, incarnation: int, line: Line) -> None:
        """The actor is there; what has waited for it goes there."""
        with self._lock:
            if line.ended:
                self._seek(incarnation)
                return
            self._incarnation, self.line, self.adrift = incarnation, line, False
            line.routes.add(self)
            given_up = 0
            while self._backlog:
                future = self._backlog.popleft()
                if future.given_up:
                    given_up += 1
                else:
                    line.call(self.actor, future)
            self.answered += given_up
        if given_up:
            self.after_answers()
        self.on_location()

    def gone(self, error: BaseException, lived: bool = True) -> None:
        """The actor is no more, or was never made: nothing that is not answered yet will be."""
        with self._lock:
            self._error = error
            open_calls = [] if self.line is None else self.line.take_back(self)
            unanswered, unsent = [*open_calls, *self._unanswered], list(self._backlog)
            self._unanswered = []
            self._backlog.clear()
            if self.on_loss is None:
                self.answered = self._sent
            self._room.notify_all()
        if self.on_loss is not None:
            self.on_loss(Loss(unanswered, unsent, error, lived, self._alone))
            return
        for future in [*unanswered, *unsent]:
            future.fail(error)
        self._office.drop(self.actor)

    def lost(self, futures: list[Future], alone: bool) -> None:
        """The connection has ended with these calls unanswered; see `Loss`."""
        again: list[Future] = []
        failed: list[Future] = []
        error = ActorLostError(
            f"{self.spec.title} was lost with this call unanswered; it may have been carried out"
        )
        with self._lock:
            known, self.line, self.adrift, self._alone = self._error, None, True, alone
            for future in futures:
                future.number = 0
                more = known is None and future.tries < self.spec.max_retries
                more = more and not future.given_up
                future.tries += more
                (again if more else failed).append(future)
            if known is None:
                self._backlog.extendleft(reversed(again))
                self._seek(self._incarnation)
                if self.on_loss is not None:
                    self._unanswered = failed  # the head will say why
                    return
                self.answered += len(failed)
                self._room.notify_all()
        if self.on_loss is not None and known is not None:
            self.on_loss(Loss(failed, [], known, True, alone))
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
        self._waiting += 1
        try:
            while self._error is None and self.open_calls >= self.spec.max_pending:
                self._room.wait()
        finally:
            self._waiting -= 1

    def _make_room(self) -> None:
        if self._waiting:
            with self._lock:
                self._room.notify_all()


def pack_call(
    method: str | int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str | int, Any, Any]:
    """A call as it is now: arguments that might be changed later are copied."""
    for value in args:
        if type(value) not in FIXED and not is_plain(value):
            return method, pack((args, kwargs)), None
    for value in kwargs.values():
        if not is_plain(value):
            return method, pack((args, kwargs)), None
    return method, args, kwargs or ()
