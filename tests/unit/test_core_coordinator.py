"""The coordinator: who has come, who steps, and words that are said twice."""

from __future__ import annotations

import pytest

from psrpc.core.decisions import Answer, Hold, Same, some_workers
from psrpc.core.ledger import Ledger
from psrpc.core.progress import Progress
from psrpc.counts import EpochLeases, WorkerStats
from psrpc.messages import (
    Bye,
    Done,
    Failure,
    Granted,
    Idle,
    Leave,
    Left,
    Push,
    Stream,
    StreamKind,
    UpdateKey,
    View,
    Welcome,
)
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from tests.unit.office import Office, answers, ask, full_office, granted, lease_of, left, welcomed


def test_registration_waits_for_all() -> None:
    office = Office(Synchronous(), 3)
    (hold,) = office.register(1, 10, rank=1)
    assert isinstance(hold, Hold)
    assert hold.reason == "workers [0, 2] have not come yet"
    assert office.register(1, 11, rank=1) == [Same(11, 10, "said before, and still open")]
    office.register(0, 12, rank=0)
    decisions = office.register(2, 13, rank=2)
    assert welcomed(decisions) == {10: (1, 1), 12: (0, 0), 13: (2, 2)}
    (late,) = office.register(1, 14, rank=1)
    assert isinstance(late, Answer)
    assert late.reply == Welcome(1, 1), "a repeated word is answered like the first"


def test_a_late_registration_brings_nobody_back() -> None:
    office = full_office(Asynchronous(), 2)
    office.leave(Leave(0, 1, 0, 0), 10)
    office.register(0, 11, rank=0)
    assert office.core.members.live == {1}


def test_synchronous_workers_begin_together() -> None:
    office = full_office(Synchronous(), 2)
    (hold,) = office.acquire(ask(0, 1, clock=3), 10)
    assert isinstance(hold, Hold)
    assert hold.reason == "epoch 0 begins when workers [1] come to it"
    grants = granted(office.acquire(ask(1, 1, clock=5), 11))
    assert set(grants) == {10, 11}
    assert {grant.view for grant in grants.values()} == {View(1, ((0, 5), (1, 5)))}
    assert {grant.since for grant in grants.values()} == {1}


@pytest.mark.parametrize("mode", [BoundedStaleness(1), Asynchronous()])
def test_other_workers_begin_when_they_come(mode: Mode) -> None:
    office = full_office(mode, 2)
    grant = granted(office.acquire(ask(0, 1), 10))[10]
    assert (grant.view, grant.since) == (View(1, ((0, 0),)), 1)
    assert grant.lease is not None
    for step in range(2):
        office.push(0, grant.lease.key(step))
    grant = granted(office.acquire(ask(1, 1, clock=1), 11))[11]
    assert grant.view == View(2, ((0, 0), (1, 2))), "it starts where the slowest is"
    assert grant.since == 2


def test_the_barrier_does_not_wait_for_one_that_leaves() -> None:
    office = full_office(Synchronous(), 2)
    office.acquire(ask(0, 1), 10)
    decisions = office.leave(Leave(1, 1, 0, 0), 11)
    assert set(granted(decisions)) == {10}
    assert decisions[-1] == Hold(11, "workers [0] still train")


def test_idle_workers_are_not_waited_for() -> None:
    office = full_office(Asynchronous(), 2)
    for worker in (0, 1):
        office.acquire(ask(worker, 1), worker)
    grant = granted(office.idle(Idle(0, 2, 4, 0), 10))[10]
    assert (grant.view, grant.exhausted) == (View(3, ((1, 0),)), True)
    grant = granted(office.idle(Idle(0, 3, 4, 0), 11))[11]
    assert grant.view.epoch == 3, "nothing changes for one that is idle already"


def test_leases_are_handed_out_until_there_are_none() -> None:
    office = full_office(Asynchronous(), 1)
    leases = []
    for serial in range(1, 20):
        grant = granted(office.acquire(ask(0, serial, batch_size=3), serial))[serial]
        if grant.exhausted:
            break
        leases.append(grant.lease)
    assert [lease.stop for lease in leases if lease] == [6, 9, 12]


@pytest.mark.parametrize("mode", [Synchronous(), Asynchronous()])
def test_who_feeds_itself_gets_no_lease(mode: Mode) -> None:
    office = full_office(mode, 1)
    grant = granted(office.acquire(ask(0, 1, samples=None), 10))[10]
    assert grant == Granted(View(1, ((0, 0),)), lease=None, exhausted=False, since=1)


def test_done_leases_are_counted() -> None:
    office = full_office(Asynchronous(), 1)
    office.acquire(ask(0, 1), 10)
    office.acquire(ask(0, 2, done=((0, 0, 0),)), 11)
    office.idle(Idle(0, 3, 0, 0, done=((0, 1, 0),)), 12)
    (epoch,) = office.core.leases.export()
    assert (epoch.epoch, epoch.samples, epoch.done) == (0, 12, 6 + 3)


def test_workers_with_different_datasets_are_told() -> None:
    office = full_office(Asynchronous(), 2)
    office.acquire(ask(0, 1), 10)
    (answer,) = office.acquire(ask(1, 1, samples=13), 11)
    assert isinstance(answer, Answer)
    assert isinstance(answer.reply, Failure)
    assert answer.reply.error[0] == "UsageError"


def test_a_repeated_word_is_answered_like_the_first() -> None:
    office = full_office(Asynchronous(), 1)
    first = granted(office.acquire(ask(0, 1), 10))[10]
    assert granted(office.acquire(ask(0, 1), 11)) == {11: first}
    assert granted(office.acquire(ask(0, 2), 12))[12].lease != first.lease
    (old,) = office.acquire(ask(0, 1), 13)
    assert isinstance(old, Answer)
    assert old.reply == Done()


def test_a_repeated_word_that_is_open_shares_its_answer() -> None:
    office = full_office(Synchronous(), 2)
    office.acquire(ask(0, 1), 10)
    (same,) = office.acquire(ask(0, 1), 11)
    assert same == Same(11, 10, "said before, and still open")
    assert set(granted(office.acquire(ask(1, 1), 12))) == {10, 12}


def test_leaving_is_answered_when_all_have_left() -> None:
    office = full_office(Asynchronous(), 2)
    assert left(office.leave(Leave(1, 1, 5, 0, stats=WorkerStats(steps=5)), 10)) == {}
    decisions = office.leave(Leave(0, 1, 6, 0, stats=WorkerStats(steps=6)), 11)
    assert left(decisions) == {10: False, 11: True}, "the lowest rank reports, whoever left last"
    assert {worker: stats.steps for worker, stats in office.core.stats.items()} == {1: 5, 0: 6}
    assert left(office.leave(Leave(0, 1, 5, 0), 12)) == {12: True}, "as the first time"


def test_who_leaves_early_is_answered_at_once_and_does_not_report() -> None:
    office = full_office(Asynchronous(), 2)
    decisions = office.leave(Leave(0, 1, 5, 0, early=True, stats=WorkerStats(steps=5)), 10)
    assert left(decisions) == {10: False}
    assert not office.core.members.finished
    assert left(office.leave(Leave(1, 1, 0, 0), 11)) == {11: True}
    assert sorted(office.core.stats) == [0, 1]


@pytest.mark.parametrize("settled", [True, False])
def test_a_leaver_gives_its_lease_back(settled: bool) -> None:
    """What its latest push was may have come to this shard alone, unless all have answered."""
    office = full_office(Asynchronous(), 2)
    lease = lease_of(office.acquire(ask(0, 1), 10), 10)
    for step in range(2):
        office.push(0, lease.key(step))
    office.idle(Idle(0, 2, 2, 0), 11)
    office.leave(Leave(0, 3, 2, 0, settled=settled, early=True), 12)
    again = lease_of(office.acquire(ask(1, 1), 13), 13)
    assert (again.index, again.first_step, again.again) == (lease.index, 1 + settled, True)


def test_epochs_that_are_done_are_empty_to_a_latecomer() -> None:
    for mode in (Synchronous(), Asynchronous()):
        office = full_office(mode, 1)
        lease = lease_of(office.acquire(ask(0, 1, samples=1), 10), 10)
        office.push(0, lease.key(0))
        office.idle(Idle(0, 2, 1, 0, done=(lease.id,)), 11)
        office.register(7, 12)
        grant = granted(office.acquire(ask(1, 1, samples=1), 13))[13]
        assert (grant.lease, grant.exhausted) == (None, True)
        assert not office.core.members.is_active(1), "it is not made to step for nothing"


@pytest.mark.parametrize("mode", [Synchronous(), BoundedStaleness(1), Asynchronous()])
def test_an_epoch_is_not_over_before_its_last_sample_is_done(mode: Mode) -> None:
    office = full_office(mode, 2)
    decisions = office.acquire(ask(0, 1, samples=2), 10)
    decisions += office.acquire(ask(1, 1, samples=2), 11)
    mine, theirs = lease_of(decisions, 10), lease_of(decisions, 11)
    office.push(0, mine.key(0))
    assert granted(office.acquire(ask(0, 2, samples=2, done=(mine.id,)), 12))[12].exhausted
    office.idle(Idle(0, 3, 1, 0), 13)
    (hold,) = office.acquire(ask(0, 4, samples=2), 14)
    assert hold == Hold(14, "the last samples of epoch 0 are with others")
    office.push(1, theirs.key(0))
    decisions = office.acquire(ask(1, 2, samples=2, done=(theirs.id,)), 15)
    assert granted(decisions)[14].exhausted
    assert not office.core.members.is_active(0)


def test_who_waits_at_an_epochs_end_does_what_another_gives_back() -> None:
    office = full_office(Asynchronous(), 2)
    mine = lease_of(office.acquire(ask(0, 1, samples=2), 10), 10)
    theirs = lease_of(office.acquire(ask(1, 1, samples=2), 11), 11)
    office.idle(Idle(0, 2, 1, 0, done=(mine.id,)), 12)
    office.acquire(ask(0, 3, samples=2), 13)
    decisions = office.leave(Leave(1, 2, 0, 0, early=True), 14)
    again = lease_of(decisions, 13)
    assert (again.id, again.first_step, again.again) == (theirs.id, 0, True)
    assert office.core.members.view.active == ((0, 0),)


def test_a_worker_that_goes_on_gives_back_what_it_broke_off() -> None:
    """Only those still in that epoch do it: the others have gone on as well, or will."""
    office = full_office(Asynchronous(), 2)
    lease = lease_of(office.acquire(ask(0, 1), 10), 10)
    office.push(0, lease.key(0))
    following = lease_of(office.acquire(ask(0, 2, epoch=1), 11), 11)
    assert following.epoch == 1
    assert lease_of(office.acquire(ask(1, 1, epoch=1), 12), 12).epoch == 1
    again = lease_of(office.acquire(ask(1, 2, epoch=0), 13), 13)
    assert (again.id, again.first_step) == (lease.id, 0), "its last push may not be everywhere"


def test_few_workers_are_named_and_many_counted() -> None:
    assert some_workers(2, lambda: {3, 1}) == "workers [1, 3]"
    assert some_workers(9, lambda: pytest.fail("names cost time")) == "9 workers"


def test_a_job_is_over_when_the_last_word_is_said() -> None:
    office = full_office(Asynchronous(), 2)
    office.leave(Leave(0, 1, 0, 0), 10)
    office.leave(Leave(1, 1, 0, 0), 11)
    assert office.core.members.finished
    assert not office.core.over
    assert left(office.bye(Bye(1), 12)) == {}, "the one that reports has not got the results yet"
    assert not office.core.over
    assert left(office.bye(Bye(0), 13)) == {13: True, 12: False}
    assert office.core.over


def test_one_that_waits_for_the_others_leaving_may_go_before() -> None:
    """It is not chosen to report the results then."""
    office = full_office(Asynchronous(), 2)
    office.leave(Leave(0, 1, 0, 0), 10)
    assert left(office.bye(Bye(0), 12)) == {10: False, 12: False}
    assert left(office.leave(Leave(1, 1, 0, 0), 11)) == {11: True}
    assert left(office.bye(Bye(1), 13)) == {13: True}
    assert office.core.over


def test_one_that_leaves_waits_for_work_no_longer() -> None:
    office = full_office(Synchronous(), 2)
    assert answers(office.acquire(ask(0, 1), 10)) == {}
    decisions = office.leave(Leave(0, 2, 0, 0, early=True), 11)
    assert answers(decisions) == {10: Done(), 11: Left()}
    assert isinstance(answers(office.acquire(ask(1, 1), 12))[12], Granted)


def test_processes_are_those_that_work_here() -> None:
    office = full_office(Asynchronous(), 2)
    office.register(9, 10)
    assert office.core.processes == [0, 1, 9]
    assert [office.core.worker_of(process) for process in (0, 1, 9, 5)] == [0, 1, 2, None]
    office.lose(1)
    assert office.core.processes == [0, 9]


def test_answers_are_given_once() -> None:
    office = full_office(Synchronous(), 2)
    office.acquire(ask(0, 1), 10)
    office.acquire(ask(1, 1), 11)
    seen = answers(office.idle(Idle(0, 2, 0, 0), 12))
    assert set(seen) == {12}


def test_after_going_back_nobody_has_an_old_number() -> None:
    office = Office(Asynchronous(), 2)
    office.core.go_back(1000)
    office.shard.adopt(View(1000))
    assert welcomed(office.register(7, 10, rank=1)) == {10: (1001, 1)}, "whoever comes begins"
    assert welcomed(office.register(8, 11)) == {11: (1002, 0)}
    grant = granted(office.acquire(ask(1001, 1), 12))[12]
    assert grant.view == View(1001, ((1001, 0),))
    (refusal,) = office.acquire(ask(1, 9), 13)
    assert isinstance(refusal, Answer)
    assert isinstance(refusal.reply, Failure)
    old = UpdateKey(Stream(StreamKind.WORKER, 1, 0), 0)
    (late,) = office.shard.push(Push(1, 0, old, 1, view=View(3, ((1, 0),))), 14)
    assert isinstance(late, Answer)
    assert late.reply == Failure(("FencedError", late.reason)), "an old view counts no more"


def test_work_that_nobody_is_left_to_do_again_ends_the_job() -> None:
    office = Office(Asynchronous(), 1)
    office.core.go_back(1000)
    office.core.leases.restore([EpochLeases(0, 4, 0, 0, 2, (4,), False, ())], [Ledger()])
    office.register(0, 10, rank=0)
    office.leave(Leave(1000, 1, 0, 0), 11)
    assert "lacks of epochs [0]: start the job again" in str(office.core.verdict)


@pytest.mark.parametrize(("epochs", "lacking"), [(0, None), (1, None), (3, [1, 2])])
def test_and_so_do_epochs_of_which_the_checkpoint_knows_nothing(
    epochs: int, lacking: list[int] | None
) -> None:
    """Who leaves had come further than the checkpoint, and others may not have come back yet."""
    office = Office(Asynchronous(), 1)
    office.core.go_back(1000)
    over = EpochLeases(0, 4, 0, 0, 2, (4,), True, ())
    office.core.leases.restore([over], [Ledger()])
    office.register(0, 10, rank=0)
    office.leave(Leave(1000, 1, 0, 0, epochs=epochs), 11)
    if lacking is None:
        assert office.core.verdict is None
    else:
        assert f"lacks of epochs {lacking}: start" in str(office.core.verdict)


def test_a_worker_says_at_the_end_to_how_many_epochs_it_has_come() -> None:
    progress = Progress(0)
    progress.acquire(None)
    assert progress.leave(WorkerStats()).epochs == 0, "data of its own"
    progress.epoch = 2
    progress.acquire(12)
    progress.begin_anew(5)
    assert progress.leave(WorkerStats()).epochs == 3
