"""`psrpc.Pool`: many actors that do jobs, shaped like `concurrent.futures.Executor`."""

from __future__ import annotations

import concurrent.futures as cf
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from psrpc.actors import cluster
from psrpc.actors.cell import Functions
from psrpc.actors.definitions import Definitions
from psrpc.actors.future import Future, left_s
from psrpc.actors.handle import ActorClass, actor
from psrpc.actors.members import Job, Member, choose
from psrpc.actors.messages import CHUNK, LEARN
from psrpc.actors.packing import unpack_error
from psrpc.actors.route import Loss, Route, pack_call
from psrpc.core.crowd import AHEAD_S, bounds, wanted_members
from psrpc.errors import ActorLostError, ClosedError, ConfigError, PsrpcError

_LOOK_AGAIN_S = 0.1
_IDLE_S = 10.0
_MOST_UNBORN = 3


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
    if its member died after it had begun it and before its answer was here. Which of several that
    a process had was the cause, nobody can say: they are then done one at a time, each in a process
    that has no other of the pool's. A job that was alone at `max_retries` deaths fails with
    ActorLostError at the next; with None it never does, and nobody is to blame. An exception that
    a job raises is its answer, and not tried again.
    """

    def __init__(
        self,
        kind: type | ActorClass[Any] | None = None,
        size: int | tuple[int, int] = 4,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        max_retries: int | None = 3,
        **options: Any,
    ) -> None:
        self._class = self._actor_class(kind, options)
        self._client = cluster.client()
        self._made_with = (args, kwargs or {})
        self._least, self._most = bounds(size)
        self._max_retries = max_retries
        self._members: list[Member] = []
        self._queue: deque[Job] = deque()
        self._functions = Definitions()
        self._unborn = 0  # generations of members, one after the other, of which one was not made
        self._unborn_s = 0.0  # when that was
        self._waited = False
        self._hungry = True  # whether some member has nothing to do
        self._error: BaseException | None = None
        self._closed = False
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._wake = threading.Event()
        with self._lock:
            for _ in range(self._least):
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
        name, number = self._named(function)
        return self._give(Job(self, pack_call(name, args, kwargs), number))

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
        if chunksize < 1:
            raise ConfigError([f"chunksize must be a number from 1, not {chunksize!r}"])
        items = zip(*iterables, strict=False)
        if chunksize == 1:
            name, number = self._named(function)
            calls = (pack_call(name, each, {}) for each in items)
            singles = [self._give(Job(self, call, number)) for call in calls]
            return self._singles(singles, deadline, ordered)
        chunks = iter(lambda: list(islice(items, chunksize)), [])
        jobs = [self._submit_chunk(function, chunk) for chunk in chunks]
        return self._results(jobs, deadline, ordered)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs, do those that there are (or cancel those not begun), and end."""
        with self._lock:
            self._closed = True
            given_up = list(self._queue) if cancel_futures else []
        for job in given_up:
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
                member = choose(members, queue[0].suspect)
                if member is None:
                    return
                room = member.window - member.route.open_calls
                share = min(room, max(1, len(queue) // len(members)))
                jobs = [queue.popleft()]
                while len(jobs) < share and not (jobs[0].suspect or queue[0].suspect):
                    jobs.append(queue.popleft())
                self._hand(member, jobs)
            # What comes while all have something to do gathers until the next answers.
            self._hungry = any(not member.route.open_calls for member in members)
            if self._closed:
                self._idle.notify_all()
        if self._hungry and self._queue:  # one that came before we were hungry
            self.feed()

    def again(self, job: Job) -> None:
        """A job has come back undone."""
        with self._lock:
            self._queue.appendleft(job)

    def failed(self, route: Route, job: Job, error: BaseException) -> None:
        """A member says that it is no more; `job` has not been done."""
        self.again(job)
        for member in list(self._members):
            if member.route is route:
                self.lost(member, Loss([], [], error, lived=True, alone=False))

    def lost(self, member: Member, loss: Loss) -> None:
        """A member has died, or cannot be."""
        failed: list[Future] = []
        with self._lock:
            jobs, unsent = (
                [job for job in some if isinstance(job, Job) and not job.given_up]
                for some in (loss.unanswered, loss.unsent)
            )
            if member in self._members:
                self._members.remove(member)
                if not isinstance(loss.error, ActorLostError):
                    self._break(loss.error)
                elif loss.lived or member.answered:
                    self._unborn = 0
                elif not jobs or self._max_retries is None:
                    self._stillborn(member, loss.error)
            if self._max_retries is not None:
                for each in jobs:
                    each.suspect = True
                    each.tries += loss.alone
                if jobs and jobs[0].tries > self._max_retries:
                    failed.append(jobs.pop(0))
            self._queue.extendleft(reversed([*jobs, *unsent]))
            self._replace()
            if self._error is not None:
                failed += self._queue
                self._queue.clear()
            self._idle.notify_all()
        for job in failed:
            job.fail(self._error or loss.error)
        self.feed()

    def _stillborn(self, member: Member, error: BaseException) -> None:
        """A member has died while it was made; all that are made meanwhile count as one."""
        if member.made_s < self._unborn_s:
            return
        self._unborn_s = time.monotonic()
        self._unborn += 1
        if self._unborn > _MOST_UNBORN and not self._closed:
            self._break(error)

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
        if self._error is not None:
            raise self._error
        if self._closed:
            raise ClosedError("this pool was shut down")
        self._queue.append(job)
        if self._hungry:
            self.feed()
        if not self._wake.is_set():
            self._wake.set()
        broken: BaseException | None = self._error  # meanwhile
        if broken is not None:
            job.fail(broken)
        return job

    def _hand(self, member: Member, jobs: list[Job]) -> None:
        member.alone = jobs[0].suspect
        jobs = [job for job in jobs if not job.given_up]
        for number in {job.function for job in jobs} - member.known:
            member.known.add(number)
            member.route.tell(LEARN, (number, self._functions.packed[number]))
        if not member.route.open_calls:
            member.since_s = time.monotonic()
        if jobs and not member.route.post_all(jobs):
            self._queue.extendleft(reversed(jobs))
            self._members.remove(member)  # it will be said why
            self._replace()

    def _named(self, function: Any) -> tuple[str | int, int]:
        """What members know a function or method by; and its number, if it is to be learned."""
        if type(function) is str:
            return function, 0
        if self._class.kind is Functions:
            number = self._functions.number_of(function)
            return number, number
        return function.__name__, 0

    def _submit_chunk(self, function: Any, chunk: list[tuple[Any, ...]]) -> Job:
        name, number = self._named(function)
        job = Job(self, pack_call(CHUNK, (name, chunk), {}), number)
        return self._give(job)

    def _singles(
        self, jobs: Sequence[Future], deadline: float | None, ordered: bool
    ) -> Iterator[Any]:
        try:
            for job in jobs if ordered else cf.as_completed(jobs, left_s(deadline)):
                yield job.result(left_s(deadline))
        finally:
            for job in jobs:
                job.cancel()

    def _results(self, jobs: list[Job], deadline: float | None, ordered: bool) -> Iterator[Any]:
        for chunk in self._singles(jobs, deadline, ordered):
            for error, value in chunk:
                if error is not None:
                    raise unpack_error(error)
                yield value

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
            quiet = [m for m in self._members if not m.route.open_calls]
            idle = [m for m in quiet if now_s - m.since_s > _IDLE_S]
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
        with self._lock:
            if self._queue or not any(member.idle for member in self._members):
                return
            for member in self._members:
                if member.route.open_calls > 1 and time.monotonic() - member.since_s > AHEAD_S:
                    for job in member.route.open_futures()[1:]:
                        member.route.withdraw(job)
