"""Whom a pool gives its jobs, and what it makes of members' deaths: without actors."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from psrpc.actors.members import Job, Member
from psrpc.actors.pool import Pool
from psrpc.actors.route import Loss
from psrpc.errors import ActorLostError


class Way:
    """The way to a member, which notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[Job] = []
        self.answered = 0
        self.adrift = False
        self.line: Any = object()

    @property
    def open_calls(self) -> int:
        return len(self.sent)

    def post_all(self, jobs: Sequence[Job]) -> bool:
        self.sent += jobs
        return True


def pool_of(windows: Sequence[int], max_retries: int = 1) -> Any:
    """A pool with a member for each window, who replaces none."""
    pool: Any = object.__new__(Pool)
    pool._lock = threading.RLock()
    pool._idle = threading.Condition(pool._lock)
    pool._queue = deque()
    pool._hungry = pool._closed = False
    pool._error, pool._max_retries, pool._least = None, max_retries, 0
    pool._unborn, pool._unborn_s = 0, 0.0
    pool._members = []
    for window in windows:
        way: Any = Way()
        pool._members.append(Member(pool, way))
        pool._members[-1].window = window
    return pool


def jobs(pool: Any, count: int, *, suspect: bool = False) -> list[Job]:
    """Jobs that wait for a member."""
    made = [Job(pool, ("f", None, None), 0) for _ in range(count)]
    for each in made:
        each.suspect = suspect
    pool._queue += made
    return made


def sent(pool: Any) -> list[list[Job]]:
    return [member.route.sent for member in pool._members]


def test_a_job_that_may_be_deadly_is_alone_with_its_member() -> None:
    pool = pool_of([4, 4])
    (usual,) = jobs(pool, 1)
    pool.feed()
    one, other = jobs(pool, 2, suspect=True)
    jobs(pool, 3)
    pool.feed()
    assert sent(pool) == [[usual], [one]], "the next one waits, and who comes after it as well"
    pool._members[0].route.sent.clear()
    pool.feed()
    assert sent(pool) == [[other], [one]]
    pool._members[1].route.sent.clear()
    pool.feed()
    assert [len(each) for each in sent(pool)] == [1, 3], "nothing joins a suspect"


def test_a_job_that_may_be_deadly_joins_nobody() -> None:
    pool = pool_of([4])
    (usual,), _ = jobs(pool, 1), jobs(pool, 1, suspect=True)
    pool.feed()
    assert sent(pool) == [[usual]]


def test_a_job_that_may_be_deadly_has_a_process_for_itself() -> None:
    pool = pool_of([4, 4, 4, 4])
    shared, other = object(), object()
    for member, line in zip(pool._members, [shared, shared, other, None], strict=True):
        member.route.line = line
    pool._members[0].route.sent += jobs(pool, 1)
    pool._queue.clear()
    one, _ = jobs(pool, 2, suspect=True)
    pool.feed()
    assert [len(each) for each in sent(pool)] == [1, 0, 1, 0], "one waits for a process"
    assert sent(pool)[2] == [one]
    pool._queue.clear()
    pool._members[2].route.line = shared  # nobody may join it
    (usual,) = jobs(pool, 1)
    pool.feed()
    assert sent(pool)[3] == [usual]
    pool._members[3].route.line = shared
    jobs(pool, 1)
    pool.feed()
    assert len(pool._queue) == 1
    pool._members[2].route.sent.clear()
    pool.feed()
    assert not pool._queue


def test_a_member_of_which_it_is_not_known_whether_it_lives_is_given_nothing() -> None:
    pool = pool_of([4, 4])
    first, second = pool._members
    first.route.adrift = True
    waiting = jobs(pool, 5)
    pool.feed()
    assert sent(pool) == [[], waiting[:4]], "though it has nothing to do"
    assert not first.idle
    second.route.sent.clear()
    second.route.adrift = True
    pool.feed()
    assert list(pool._queue) == waiting[4:]


def test_jobs_that_were_never_sent_to_a_dead_member_are_no_suspects() -> None:
    pool = pool_of([4], max_retries=0)
    begun, *unsent = jobs(pool, 3)
    pool._queue.clear()
    error = ActorLostError("it is dead")
    pool.lost(pool._members[0], Loss([begun], list(unsent), error, lived=True, alone=True))
    assert begun.exception(0) is error
    assert list(pool._queue) == unsent
    assert not any(job.suspect or job.tries or job.done() for job in unsent)


def test_where_nobody_is_to_blame_jobs_are_done_as_often_as_members_die() -> None:
    pool = pool_of([1] * 20)
    (job,) = jobs(pool, 1)
    for _ in range(20):
        pool._queue.clear()
        loss = Loss([job], [], ActorLostError("it is dead"), lived=True, alone=True)
        pool._max_retries = None
        pool.lost(pool._members[0], loss)
        for member in pool._members:
            member.route.sent.clear()
    assert not job.suspect
    assert not job.done()


def test_only_deaths_at_which_it_was_alone_count_against_a_job() -> None:
    pool = pool_of([2, 2, 2, 2])
    error = ActorLostError("it is dead")
    first, second = jobs(pool, 2)
    pool._queue.clear()
    for _ in range(3):
        pool.lost(pool._members[0], Loss([first, second], [], error, lived=True, alone=False))
        assert [first.tries, second.tries] == [0, 0]
        assert first.suspect
        assert second.suspect
        for member in pool._members:
            member.route.sent.clear()
        pool._queue.clear()
    pool.lost(pool._members[0], Loss([first], [], error, lived=True, alone=True))
    assert (first.tries, first.done()) == (1, False)
    pool._queue.clear()
    pool._members.append(Member(pool, Way()))  # type: ignore[arg-type]
    pool.lost(pool._members[0], Loss([first], [], error, lived=True, alone=True))
    assert first.exception() is error
    assert not second.done()


def test_members_that_are_never_made_break_a_pool_and_others_deaths_do_not() -> None:
    error = ActorLostError("it is dead")
    pool = pool_of([1] * 4)

    def dies(lived: bool, count: int = 1) -> None:
        made = [Member(pool, Way()) for _ in range(count)]  # type: ignore[arg-type]
        pool._members += made
        for each in made:
            pool.lost(each, Loss([], [], error, lived=lived, alone=False))

    for _ in range(20):
        dies(lived=True)
    dies(lived=False, count=20)  # a process that they share: one death
    dies(lived=False)
    dies(lived=False)
    assert pool._error is None
    dies(lived=True)  # they can be made
    for _ in range(3):
        dies(lived=False)
    assert pool._error is None
    pool._wake = threading.Event()
    dies(lived=False)
    assert pool._error is error
