"""`psrpc.Pool`: many actors that do jobs, shaped like `concurrent.futures.Executor`."""

from __future__ import annotations

import concurrent.futures as cf
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from psrpc.actors import cluster
from psrpc.actors.cell import Functions
from psrpc.actors.definitions import Definitions
from psrpc.actors.future import Future
from psrpc.actors.handle import ActorClass, actor
from psrpc.actors.messages import CANCELLED, CHUNK, GONE, LEARN, PLAIN, RUN
from psrpc.actors.packing import unpack_error
from psrpc.actors.route import Route, pack_call
from psrpc.core.crowd import AHEAD_S, next_window, wanted_members
from psrpc.errors import ActorLostError, ClosedError, ConfigError, PsrpcError

_LOOK_AGAIN_S = 0.1
_IDLE_S = 10.0
_MOST_EMPTY_DEATHS = 3


class Job(Future):
    """A job of a pool, and its future."""

    def __init__(self, pool: Pool, call: tuple[str, Any, Any], function: int) -> None:
        super().__init__(pool, call)  # in no member's hands: the pool is its way
        self.pool = pool
        self.function = function

    def settle(self, status: int, value: Any) -> None:
        """See `Future`; a job that came back undone is given out again."""
        if status == PLAIN:
            try:
                self.set_result(value)
            except cf.InvalidStateError:
                return  # given up meanwhile
        elif status == CANCELLED and not self.cancelled():
            self.pool.again(self)
        elif status == GONE:
            self.pool.failed(self.way, self, unpack_error(value))
        else:
            super().settle(status, value)


class Member:
    """An actor of a pool."""

    def __init__(self, pool: Pool, route: Route) -> None:
        self.route = route
        self.window = 1
        self.known = {0}  # functions, by number; 0 is none
        self.since_s = time.monotonic()  # of its latest answer, or its first job after idling
        self.answered = 0
        self._pool = pool
        route.after_answers = self._after_answers
        route.on_loss = lambda futures, error: pool.lost(self, futures, error)

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
        self._client = cluster.client()
        self._made_with = (args, kwargs or {})
        self._least, self._most = least, most
        self._max_retries = max_retries
        self._members: list[Member] = []
        self._queue: deque[Job] = deque()
        self._functions = Definitions()
        self._empty_deaths = 0
        self._waited = False
        self._hungry = True  # whether some member has room
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
        number = self._functions.number_of(function)
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
        self.feed()
        if wait:
            with self._lock:
                while self._error is None and (self._queue or self._busy()):
                    self._idle.wait()
        self._wake.set()

    def feed(self) -> None:
        """Give out what waits to members that have room for it: the least busy first."""
        with self._lock:
            queue, members = self._queue, self._members
            self._hungry = False
            while queue and members:
                member = min(members, key=_busyness)
                room = member.window - member.route.open_calls
                if room <= 0:
                    return
                share = min(room, max(1, len(queue) // len(members)))
                self._hand(member, [queue.popleft() for _ in range(min(share, len(queue)))])
            self._hungry = True
            if self._closed:
                self._idle.notify_all()
        if self._queue and members:  # one that came before we were hungry
            self.feed()

    def again(self, job: Job) -> None:
        """A job has come back undone."""
        with self._lock:
            self._queue.appendleft(job)

    def give_up(self, future: Future) -> None:
        """See `Giver`. One that waits is passed over when its turn comes."""
        if future.number:
            future.way.withdraw(future)

    def failed(self, route: Route, job: Job, error: BaseException) -> None:
        """A member says that it is no more; `job` has not been done."""
        self.again(job)
        for member in list(self._members):
            if member.route is route:
                self.lost(member, [], error)

    def lost(self, member: Member, futures: Sequence[Future], error: BaseException) -> None:
        """A member has died, or cannot be; these jobs of its are not answered."""
        failed: list[Future] = []
        with self._lock:
            jobs = [job for job in futures if isinstance(job, Job) and not job.cancelled()]
            if member in self._members:
                self._members.remove(member)
                if not isinstance(error, ActorLostError):
                    self._break(error)
                elif not jobs:
                    self._empty_deaths += 1
                    if self._empty_deaths > _MOST_EMPTY_DEATHS and not self._closed:
                        self._break(error)
            if jobs and jobs[0].tries >= self._max_retries:
                failed.append(jobs.pop(0))
            elif jobs:
                jobs[0].tries += 1
            self._queue.extendleft(reversed(jobs))
            self._replace()
            if self._error is not None:
                failed += self._queue
                self._queue.clear()
            self._idle.notify_all()
        for job in failed:
            job.fail(self._error or error)
        self.feed()

    def _replace(self) -> None:
        while self._error is None and len(self._members) < self._least:
            if self._closed and not self._queue:
                return
            try:
                self._add()
            except PsrpcError as error:
                self._break(error)

    def _break(self, error: BaseException) -> None:
        self._error = error
        self._wake.set()

    def _add(self) -> None:
        args, kwargs = self._made_with
        self._members.append(Member(self, self._class.make(self._client, args, kwargs)))

    def _give(self, job: Job) -> Job:
        self._check()
        self._queue.append(job)
        if self._hungry:
            self.feed()
        if not self._wake.is_set():
            self._wake.set()
        broken: BaseException | None = self._error  # meanwhile
        if broken is not None:
            job.fail(broken)
        return job

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise ClosedError("this pool was shut down")

    def _hand(self, member: Member, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if not job.cancelled()]
        for number in {job.function for job in jobs} - member.known:
            member.known.add(number)
            member.route.tell(LEARN, (number, self._functions.packed[number]))
        if not member.route.open_calls:
            member.since_s = time.monotonic()
        if jobs and not member.route.post_all(jobs):
            self._queue.extendleft(reversed(jobs))
            self._members.remove(member)  # it will be said why
            self._replace()

    def _submit_chunk(self, function: Any, chunk: list[tuple[Any, ...]]) -> Job:
        number, name = 0, function
        if type(function) is not str:
            if self._class.kind is Functions:
                number = name = self._functions.number_of(function)
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
            if self._quiet():
                self._wake.clear()
                if self._queue or self._closed:
                    self._wake.set()
            self._resize()
            self._share()
            time.sleep(_LOOK_AGAIN_S)
        with self._lock:
            members, self._members = self._members, []
        for member in members:
            member.route.end()

    def _busy(self) -> bool:
        return any(member.route.open_calls for member in self._members)

    def _quiet(self) -> bool:
        """Whether there is nothing to look after until there are jobs."""
        return not self._queue and not self._busy() and len(self._members) <= self._least

    def _resize(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            idle = [
                m for m in self._members if not m.route.open_calls and now_s - m.since_s > _IDLE_S
            ]
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
            if self._queue or all(m.route.open_calls for m in self._members):
                return
            for member in self._members:
                if member.route.open_calls > 1 and now_s - member.since_s > AHEAD_S:
                    for job in member.route.open_futures()[1:]:
                        member.route.withdraw(job)


def _busyness(member: Member) -> tuple[bool, int]:
    busy = member.route.open_calls
    return busy >= member.window, busy
