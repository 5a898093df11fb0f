"""The coordinator: who has come, who steps, and words that are said twice."""

from __future__ import annotations

import pytest

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.decisions import Answer, Decision, Hold, Same, some_workers
from psrpc.core.membership import Membership
from psrpc.counts import WorkerStats
from psrpc.messages import Acquire, Done, Failure, Granted, Idle, Leave, Register, View
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous


def core_of(mode: Mode, workers: int) -> CoordinatorCore:
    core = CoordinatorCore(mode, workers)
    for worker in range(workers):
        core.register(Register(worker, 1, ()), token=-1 - worker)
    return core


def ask(worker: int, serial: int, *, clock: int = 0, epoch: int = 0, **more: object) -> Acquire:
    more.setdefault("samples", 12)
    return Acquire(worker, serial, clock, epoch, **more)  # type: ignore[arg-type]


def granted(decisions: list[Decision]) -> dict[int, Granted]:
    """The grants, by token."""
    answers = [d for d in decisions if isinstance(d, Answer)]
    return {d.token: d.reply for d in answers if isinstance(d.reply, Granted)}


def test_registration_waits_for_all() -> None:
    core = CoordinatorCore(Synchronous(), 3)
    (hold,) = core.register(Register(1, 1, ()), 10)
    assert isinstance(hold, Hold)
    assert hold.reason == "workers [0, 2] have not come yet"
    core.register(Register(1, 1, ()), 11)
    core.register(Register(0, 1, ()), 12)
    decisions = core.register(Register(2, 1, ()), 13)
    assert sorted(d.token for d in decisions) == [10, 11, 12, 13]
    (late,) = core.register(Register(1, 1, ()), 14)
    assert late == Answer(14, Done(), "all workers have come")


def test_a_late_registration_brings_nobody_back() -> None:
    core = core_of(Asynchronous(), 2)
    core.leave(Leave(0, 1, 0, 0), 10, floor=0)
    core.register(Register(0, 1, ()), 11)
    assert core.members.live == {1}


def test_synchronous_workers_begin_together() -> None:
    core = core_of(Synchronous(), 2)
    (hold,) = core.acquire(ask(0, 1, clock=3), 10, floor=0)
    assert isinstance(hold, Hold)
    assert hold.reason == "epoch 0 begins when workers [1] come to it"
    grants = granted(core.acquire(ask(1, 1, clock=5), 11, floor=4))
    assert set(grants) == {10, 11}
    assert {grant.view for grant in grants.values()} == {View(1, ((0, 5), (1, 5)))}


@pytest.mark.parametrize("mode", [BoundedStaleness(1), Asynchronous()])
def test_other_workers_begin_when_they_come(mode: Mode) -> None:
    core = core_of(mode, 2)
    assert granted(core.acquire(ask(0, 1), 10, floor=0))[10].view == View(1, ((0, 0),))
    view = granted(core.acquire(ask(1, 1, clock=2), 11, floor=7))[11].view
    assert view == View(2, ((0, 0), (1, 7))), "it starts where the slowest is"


def test_the_barrier_does_not_wait_for_one_that_leaves() -> None:
    core = core_of(Synchronous(), 2)
    core.acquire(ask(0, 1), 10, floor=0)
    decisions = core.leave(Leave(1, 1, 0, 0), 11, floor=0)
    assert set(granted(decisions)) == {10}
    assert decisions[-1] == Hold(11, "workers [0] still train")


def test_idle_workers_are_not_waited_for() -> None:
    core = core_of(Asynchronous(), 2)
    for worker in (0, 1):
        core.acquire(ask(worker, 1), worker, floor=0)
    grant = granted(core.idle(Idle(0, 2, 4, 0), 10))[10]
    assert (grant.view, grant.exhausted) == (View(3, ((1, 0),)), True)
    grant = granted(core.idle(Idle(0, 3, 4, 0), 11))[11]
    assert grant.view.epoch == 3, "nothing changes for one that is idle already"


def test_leases_are_handed_out_until_there_are_none() -> None:
    core = core_of(Asynchronous(), 1)
    leases = []
    for serial in range(1, 20):
        grant = granted(core.acquire(ask(0, serial, batch_size=3), serial, floor=0))[serial]
        if grant.exhausted:
            break
        leases.append(grant.lease)
    assert [lease.stop for lease in leases if lease] == [6, 9, 12]


def test_who_feeds_itself_gets_no_lease() -> None:
    core = core_of(Asynchronous(), 1)
    grant = granted(core.acquire(ask(0, 1, samples=None), 10, floor=0))[10]
    assert grant == Granted(View(1, ((0, 0),)), lease=None, exhausted=False)


def test_done_leases_are_counted() -> None:
    core = core_of(Asynchronous(), 1)
    core.acquire(ask(0, 1), 10, floor=0)
    core.acquire(ask(0, 2, done=(0,)), 11, floor=0)
    core.idle(Idle(0, 3, 0, 0, done=(1,)), 12)
    assert core.leases.totals() == ((0, 6 + 3),)


def test_workers_with_different_datasets_are_told() -> None:
    core = core_of(Asynchronous(), 2)
    core.acquire(ask(0, 1), 10, floor=0)
    (answer,) = core.acquire(ask(1, 1, samples=13), 11, floor=0)
    assert isinstance(answer, Answer)
    assert isinstance(answer.reply, Failure)
    assert answer.reply.error[0] == "UsageError"


def test_a_repeated_word_is_answered_like_the_first() -> None:
    core = core_of(Asynchronous(), 1)
    first = granted(core.acquire(ask(0, 1), 10, floor=0))[10]
    assert granted(core.acquire(ask(0, 1), 11, floor=9)) == {11: first}
    assert granted(core.acquire(ask(0, 2), 12, floor=0))[12].lease != first.lease
    (old,) = core.acquire(ask(0, 1), 13, floor=0)
    assert isinstance(old, Answer)
    assert old.reply == Done()


def test_a_repeated_word_that_is_open_shares_its_answer() -> None:
    core = core_of(Synchronous(), 2)
    core.acquire(ask(0, 1), 10, floor=0)
    (same,) = core.acquire(ask(0, 1), 11, floor=0)
    assert same == Same(11, 10, "said before, and still open")
    assert set(granted(core.acquire(ask(1, 1), 12, floor=0))) == {10, 12}


def test_leaving_is_answered_when_all_have_left() -> None:
    core = core_of(Asynchronous(), 2)
    core.leave(Leave(0, 1, 5, 0, stats=WorkerStats(steps=5)), 10, floor=0)
    decisions = core.leave(Leave(1, 1, 6, 0, stats=WorkerStats(steps=6)), 11, floor=0)
    assert sorted(d.token for d in decisions) == [10, 11]
    assert {worker: stats.steps for worker, stats in core.stats.items()} == {0: 5, 1: 6}
    (again,) = core.leave(Leave(0, 1, 5, 0), 12, floor=0)
    assert isinstance(again, Answer)
    assert again.reply == Done()


def test_a_leaver_gives_its_lease_back() -> None:
    core = core_of(Asynchronous(), 2)
    lease = granted(core.acquire(ask(0, 1), 10, floor=0))[10].lease
    core.idle(Idle(0, 2, 1, 0), 11)
    core.leave(Leave(0, 3, 1, 0, steps_done=1), 12, floor=0)
    again = granted(core.acquire(ask(1, 1), 13, floor=1))[13].lease
    assert lease is not None
    assert again is not None
    assert (again.index, again.first_step) == (lease.index, 1)


def test_membership_counts_who_came_and_left() -> None:
    members = Membership(3)
    members.join(1)
    members.join(1)
    assert (members.missing, members.to_come, members.finished) == ([0, 2], 2, False)
    for worker in (0, 2):
        members.join(worker)
    for worker in range(3):
        members.leave(worker)
    assert (members.missing, members.finished) == ([], True)
    members.join(0)
    assert members.live == set()


def test_each_change_of_who_steps_is_a_new_view() -> None:
    members = Membership(2)
    assert members.view == View()
    members.activate({1: 4, 0: 3})
    assert members.view == View(1, ((0, 3), (1, 4)))
    members.deactivate(0)
    members.deactivate(0)
    assert members.view == View(2, ((1, 4),))
    assert members.is_active(1)
    members.leave(1)
    assert members.view == View(3, ())


def test_few_workers_are_named_and_many_counted() -> None:
    assert some_workers(2, lambda: {3, 1}) == "workers [1, 3]"
    assert some_workers(9, lambda: pytest.fail("names cost time")) == "9 workers"
