"""What a pool has: jobs, and the members that do them."""

from __future__ import annotations

import time
from typing import Any, Protocol

from psrpc.actors.future import Future
from psrpc.actors.messages import CANCELLED, GONE
from psrpc.actors.packing import unpack_error
from psrpc.actors.route import Loss, Route
from psrpc.core.crowd import next_window


class Owner(Protocol):
    """The pool, as its jobs and members know it."""

    def feed(self) -> None:
        """Give out what waits."""
        ...

    def again(self, job: Job) -> None:
        """A job has come back undone."""
        ...

    def failed(self, route: Route, job: Job, error: BaseException) -> None:
        """A member says that it is no more."""
        ...

    def lost(self, member: Member, loss: Loss) -> None:
        """A member has died."""
        ...


class Job(Future):
    """A job of a pool, and its future."""

    suspect = False  # it was with others at a member that died, and may be the cause

    def __init__(self, pool: Owner, call: tuple[str | int, Any, Any], function: int) -> None:
        self.pool = pool
        self.call, self.function = call, function
        self.way = None  # until a member has it, which may not be there yet

    def withdraw(self) -> None:
        """See `Promise`. One that waits is passed over when its turn comes."""
        if self.number:
            self.way.withdraw(self)
        elif self.way is not None:
            self.way.give_up(self)
            self.pool.feed()

    def settle(self, status: int, value: Any) -> None:
        """See `Future`; a job that came back undone is given out again."""
        if status == CANCELLED and not self.given_up:
            self.pool.again(self)
        elif status == GONE:
            self.pool.failed(self.way, self, unpack_error(value))
        else:
            super().settle(status, value)


class Member:
    """An actor of a pool."""

    def __init__(self, pool: Owner, route: Route) -> None:
        self.route = route
        self.window = 1
        self.known = {0}  # functions, by number; 0 is none
        self.made_s = time.monotonic()
        self.since_s = self.made_s  # of its latest answer, or its first job after idling
        self.answered = 0
        self.alone = False  # whether what it has now is a suspect
        self._pool = pool
        route.group = pool
        route.after_answers = self._after_answers
        route.on_location = pool.feed
        route.on_loss = lambda loss: pool.lost(self, loss)

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do, and may live."""
        return not self.route.open_calls and not self.route.adrift

    def _after_answers(self) -> None:
        now_s = time.monotonic()
        answered = self.route.answered - self.answered
        self.answered = self.route.answered
        if answered > 0:
            self.window = next_window(self.window, answered, now_s - self.since_s)
        self.since_s = now_s
        self._pool.feed()


def choose(members: list[Member], suspect: bool) -> Member | None:
    """Who is to be given the next job, if anybody has room: the least busy.

    One that may be deadly goes to a process in which nobody has another, and none joins it there.
    """
    if suspect:
        busy = {member.route.line for member in members if member.route.open_calls}
        idle = (m for m in members if m.route.line is not None and m.route.line not in busy)
        return next(idle, None)
    apart = {member.route.line for member in members if member.alone and member.route.open_calls}
    apart.discard(None)
    able = [member for member in members if member.route.line not in apart] if apart else members
    member = min(able, key=_busyness, default=None)
    return None if member is None or _busyness(member)[0] else member


def _busyness(member: Member) -> tuple[bool, int]:
    """Whether it can be given no more, and how many jobs it has."""
    route = member.route
    busy = route.open_calls
    return route.adrift or busy >= (1 if member.alone else member.window), busy
