"""`psrpc.Pool`: many actors that do jobs, shaped like `concurrent.futures.Executor`."""

from __future__ import annotations

import concurrent.futures as cf
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from psrpc.actors.cell import Functions
from psrpc.actors.client import Route, pack_call
from psrpc.actors.future import Future
from psrpc.actors.handle import ActorClass, actor
from psrpc.actors.messages import CANCELLED, CHUNK, GONE, LEARN, RUN
from psrpc.actors.packing import pack_definition, unpack_error
from psrpc.core.crowd import AHEAD_S, next_window, wanted_members
from psrpc.errors import ActorLostError, ClosedError, ConfigError

_LOOK_AGAIN_S = 0.1
_IDLE_S = 10.0
_MOST_FUNCTIONS = 1_000
_MOST_EMPTY_DEATHS = 3


class Job(Future):
    """A job of a pool, and its future."""

    def __init__(self, pool: Pool, call: tuple[str, Any, Any], function: int) -> None:
        super().__init__(pool, call)  # in no member's hands: the pool is its way
        self.pool = pool
        self.function = function
        self.member: Member | None = None

    def settle(self, status: int, value: Any) -> None:
        """See `Future`; a job that came back undone is given out again."""
        member = self.member
        if member is not None:
            member.jobs.pop(self, None)
        if status == CANCELLED and not self.cancelled():
            self.pool.again(self)
        elif status == GONE:
            self.pool.failed(member, self, unpack_error(value))
        else:
            super().settle(status, value)


class Member:
    """An actor of a pool."""

    def __init__(self, pool: Pool, route: Route) -> None:
        self.route = route
        self.window = 1
        self.jobs: dict[Job, None] = {}  # in the order in which it does them
        self.known: set[int] = set()
        self.since_s = time.monotonic()  # of its latest answer, or its first job after idling
        self.answered = 0
        self._pool = pool
        route.after_answers = self._after_answers
        route.on_loss = lambda futures, error: pool.lost(self, error)

    def _after_answers(self) -> None:
        now_s = time.monotonic()
        answered = self.route.answered - self.answered
        self.answered = self.route.answered
        if answered > 0:
            self.window = next_window(self.window, answered, now_s - self.since_s)
        self.since_s = now_s
        self._pool.feed()


class Pool(cf.Executor):
    """Actors of a class, or processes that run functions, that do jobs: whoever is least busy.

    `size` is their number, or (least, most): there is one more while jobs wait, and one less when
    it has had nothing to do for 10 s. `args` and `kwargs` are the constructor's. With a class,
    `submit("method", ...)` or `submit(Class.method, ...)` calls that method of some member, without
    one `submit(function, ...)` calls a function; what a function refers to is sent when it is first
    submitted. `options` are `actor`'s; each member has a process of its own unless they say
    otherwise.

    A job is given to one member at a time. If a member dies, another takes its place, and its
    jobs that were not answered are done again: a job is done at least once, and more than once only
    if its member died after it had begun it and before its answer was here. The one at which
    the member was is counted: after `max_retries` such deaths it fails with ActorLostError. An
    exception that a job raises is its answer, and not tried again.
    """

    def __init__(
        self,
        kind: type | ActorClass[Any] | None = None,
        size: int | tuple[int, int] = 4,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        max_retries: int = 3,
        **options: Any,
    ) -> None:
        least, most = (size, size) if isinstance(size, int) else size
        if not 1 <= least <= most:
            raise ConfigError([f"size must be a number from 1 or (least, most), not {size!r}"])
        self._class = self._actor_class(kind, options)
        self._made_with = (args, kwargs or {})
        self._least, self._most = least, most
        self._max_retries = max_retries
        self._members: list[Member] = []
        self._queue: deque[Job] = deque()
        self._functions: dict[Any, int] = {}
        self._definitions: dict[int, bytes] = {}
        self._numbers = itertools.count(1)
        self._empty_deaths = 0
        self._waited = False
        self._error: BaseException | None = None
        self._closed = False
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._wake = threading.Event()
        with self._lock:
            for _ in range(least):
                self._add()
        threading.Thread(target=self._keep, name="psrpc-pool", daemon=True).start()

    @property
    def size(self) -> int:
        """The number of members now."""
        return len(self._members)

    @property
    def queued(self) -> int:
        """The number of jobs that no member has yet."""
        return len(self._queue)

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        """Let a member do this; returns its future at once.

        Raises UsageError if something cannot be sent, ClosedError after `shutdown`.
        """
        if type(function) is str:
            return self._give(Job(self, pack_call(function, args, kwargs), 0))
        if self._class.kind is not Functions:
            return self._give(Job(self, pack_call(function.__name__, args, kwargs), 0))
        number = self._number_of(function)
        return self._give(Job(self, pack_call(RUN, (number, *args), kwargs), number))

    def map(
        self,
        function: Any,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        ordered: bool = True,
    ) -> Iterator[Any]:
        """Call a function or method with each item; yields results in order, or as they come.

        `chunksize` items travel, and are done, by one member together. An item's exception is
        raised where its result would have come. Raises TimeoutError `timeout` seconds from now.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        items = list(zip(*iterables, strict=False))
        if chunksize < 1:
            raise ConfigError([f"chunksize must be a number from 1, not {chunksize!r}"])
        chunks = [items[i : i + chunksize] for i in range(0, len(items), chunksize)]
        jobs = [self._submit_chunk(function, chunk) for chunk in chunks]
        return self._results(jobs, deadline, ordered)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs, do those that there are (or cancel those not begun), and end."""
        with self._lock:
            self._closed = True
            waiting = list(self._queue) if cancel_futures else []
        for job in waiting:
            job.cancel()
        if wait:
            with self._lock:
                while self._error is None and (self._queue or any(m.jobs for m in self._members)):
                    self._idle.wait()
        self._wake.set()

    def feed(self) -> None:
        """Give out what waits to members that have room for it."""
        with self._lock:
            queue = self._queue
            while queue:
                best, least = None, 0
                for member in self._members:
                    busy = len(member.jobs)
                    if busy < member.window and (best is None or busy < least):
                        best, least = member, busy
                if best is None:
                    return
                self._hand(best, queue.popleft())
            if self._closed:
                self._idle.notify_all()

    def again(self, job: Job) -> None:
        """A job has come back undone."""
        with self._lock:
            self._queue.appendleft(job)

    def give_up(self, future: Future) -> None:
        """See `Giver`."""
        assert isinstance(future, Job)
        with self._lock:
            member = future.member
            if member is None:
                if future in self._queue:
                    self._queue.remove(future)
            elif future in member.jobs:
                member.route.withdraw(future)

    def failed(self, member: Member | None, job: Job, error: BaseException) -> None:
        """A member says that it is no more; `job` has not been done."""
        with self._lock:
            self._queue.appendleft(job)
        if member is not None:
            self.lost(member, error)

    def lost(self, member: Member, error: BaseException) -> None:
        """A member has died, or cannot be."""
        failed: list[Job] = []
        with self._lock:
            if member not in self._members:
                return
            self._members.remove(member)
            jobs = [job for job in member.jobs if not job.cancelled()]
            member.jobs.clear()
            if not isinstance(error, ActorLostError):
                self._break(error)
            if not jobs:
                self._empty_deaths += 1
                if self._empty_deaths > _MOST_EMPTY_DEATHS and not self._closed:
                    self._break(error)
            elif jobs[0].tries >= self._max_retries:
                failed.append(jobs.pop(0))
            else:
                jobs[0].tries += 1
            for job in reversed(jobs):
                job.member = None
                self._queue.appendleft(job)
            if self._error is None and (not self._closed or self._queue):
                while len(self._members) < self._least:
                    self._add()
            if self._error is not None:
                failed += self._queue
                self._queue.clear()
            self._idle.notify_all()
        for job in failed:
            job.fail(self._error or error)
        self.feed()

    def _break(self, error: BaseException) -> None:
        self._error = error
        self._wake.set()

    def _add(self) -> None:
        args, kwargs = self._made_with
        self._members.append(Member(self, self._class.make(args, kwargs)))

    def _give(self, job: Job) -> Job:
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._closed:
                raise ClosedError("this pool was shut down")
            self._queue.append(job)
            self.feed()
        if not self._wake.is_set():
            self._wake.set()
        return job

    def _hand(self, member: Member, job: Job) -> None:
        if job.cancelled():
            return
        if job.function and job.function not in member.known:
            member.known.add(job.function)
            definition = self._definitions[job.function]
            member.route.tell(LEARN, (job.function, definition))
        if not member.jobs:
            member.since_s = time.monotonic()
        member.jobs[job] = None
        job.member = member
        member.route.post(job)

    def _number_of(self, function: Any) -> int:
        try:
            number = self._functions.get(function)
        except TypeError:  # not hashable
            number, function = None, object()
        if number is None:
            definition = pack_definition(function)
            with self._lock:
                number = self._functions[function] = next(self._numbers)
                self._definitions[number] = definition
                if len(self._functions) > _MOST_FUNCTIONS:
                    del self._functions[next(iter(self._functions))]
        return number

    def _submit_chunk(self, function: Any, chunk: list[tuple[Any, ...]]) -> Job:
        number, name = 0, function
        if type(function) is not str:
            if self._class.kind is Functions:
                number = name = self._number_of(function)
            else:
                name = function.__name__
        job = Job(self, pack_call(CHUNK, (name, chunk), {}), number)
        return self._give(job)

    def _results(self, jobs: list[Job], deadline: float | None, ordered: bool) -> Iterator[Any]:
        def left_s() -> float | None:
            return None if deadline is None else max(deadline - time.monotonic(), 0.0)

        try:
            for job in jobs if ordered else cf.as_completed(jobs, left_s()):
                for error, value in job.result(left_s()):
                    if error is not None:
                        raise unpack_error(error)
                    yield value
        finally:
            for job in jobs:
                job.cancel()

    def _actor_class(self, kind: Any, options: dict[str, Any]) -> ActorClass[Any]:
        made = kind if isinstance(kind, ActorClass) else actor(kind or Functions)
        made = made.options(**options)
        own = made.given.own_process
        return ActorClass(
            made.kind,
            replace(
                made.given,
                own_process=True if own is None else own,
                max_restarts=0,
                max_retries=0,
                max_pending=1 << 60,
                name=None,
            ),
        )

    def _keep(self) -> None:
        """The pool's own thread: looks after its size while there are jobs."""
        while True:
            self._wake.wait(None if self._quiet() else _LOOK_AGAIN_S)
            if self._error is not None or (self._closed and self._quiet()):
                break
            if not self._queue and not any(m.jobs for m in self._members):
                self._wake.clear()
                if self._queue:
                    self._wake.set()
            self._resize()
            self._share()
            time.sleep(_LOOK_AGAIN_S)
        with self._lock:
            members, self._members = self._members, []
        for member in members:
            member.route.end()

    def _quiet(self) -> bool:
        return (
            not self._queue
            and not any(m.jobs for m in self._members)
            and (len(self._members) <= self._least)
        )

    def _resize(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            idle = [m for m in self._members if not m.jobs and now_s - m.since_s > _IDLE_S]
            now, queued = len(self._members), len(self._queue)
            wanted = wanted_members(now, self._least, self._most, queued, self._waited, len(idle))
            self._waited = queued > 0
            if wanted > now and not self._closed:
                self._add()
            gone = idle[: max(now - wanted, 0)]
            for member in gone:
                self._members.remove(member)
        for member in gone:
            member.route.end()
        self.feed()

    def _share(self) -> None:
        """Where somebody has nothing to do, take jobs from who is stuck at one."""
        now_s = time.monotonic()
        with self._lock:
            if self._queue or all(m.jobs for m in self._members):
                return
            for member in self._members:
                if len(member.jobs) > 1 and now_s - member.since_s > AHEAD_S:
                    for job in list(member.jobs)[1:]:
                        member.route.withdraw(job)
