"""The coordinator: workers that are lost, come back and join; servers that watch; poison."""

from __future__ import annotations

import pytest

from psrpc.core.decisions import Hold, Same
from psrpc.messages import Bye, Done, Idle, Lease, Leave, View
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, OnFailure, OnPoison, Synchronous
from tests.unit.office import (
    Office,
    answers,
    ask,
    full_office,
    granted,
    lease_of,
    left,
    refused,
    welcomed,
)

MODES = [Synchronous(), BoundedStaleness(1), Asynchronous()]
by_name = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def working(mode: Mode, workers: int = 2, **options: object) -> tuple[Office, list[Lease]]:
    """All workers step, each with a lease."""
    office = full_office(mode, workers, **options)
    decisions = []
    for worker in range(workers):
        decisions += office.acquire(ask(worker, 1), 10 + worker)
    return office, [lease_of(decisions, 10 + worker) for worker in range(workers)]


# Coming.


def test_who_is_lost_before_it_came_must_come_again() -> None:
    """Its heartbeat may be silent before its first word arrives."""
    office = Office(Asynchronous(), 1)
    assert office.lose(5) == []
    assert refused(office.register(5, 10)) == {10: "FencedError"}
    assert welcomed(office.register(5, 11, serial=1)) == {11: (0, 0)}


def test_a_coming_that_is_said_twice_is_one() -> None:
    office = full_office(Asynchronous(), 1)
    first = welcomed(office.register(8, 10))
    assert welcomed(office.register(8, 11)) == {11: first[10]}
    assert office.core.members.live == {0, 1}
    office.lose(8)
    assert refused(office.register(8, 12)) == {12: "FencedError"}


def test_who_comes_when_the_job_is_over_is_told() -> None:
    office = full_office(Asynchronous(), 1)
    office.leave(Leave(0, 1, 0, 0), 10)
    assert refused(office.register(3, 11)) == {11: "JobOverError"}
    assert refused(office.register(3, 12)) == {12: "JobOverError"}
    assert office.core.members.live == set()


def test_a_synchronous_joiner_with_its_own_data_need_not_wait_for_all_to_pause() -> None:
    office = full_office(Synchronous(), 2)
    office.acquire(ask(0, 1, samples=None), 10)
    office.acquire(ask(1, 1, samples=None), 11)
    office.register(7, 20)
    grant = granted(office.acquire(ask(2, 1, samples=None), 21))[21]
    assert dict(grant.view.active)[2] == 1
    office.idle(Idle(2, 2, 1, 0), 22)
    (hold,) = office.acquire(ask(2, 3, samples=None), 23)
    assert isinstance(hold, Hold), "one that has stepped before begins again with the others"


@by_name
def test_a_joiner_in_the_gap_between_epochs_is_waited_for(mode: Mode) -> None:
    office = full_office(mode, 1)
    office.register(7, 10)
    decisions = office.acquire(ask(0, 1), 11)
    waits = mode.name == "sync"
    assert isinstance(decisions[-1], Hold) is waits
    decisions += office.acquire(ask(1, 1), 12)
    assert {lease_of(decisions, 11).index, lease_of(decisions, 12).index} == {0, 1}


# Dying.


@by_name
def test_the_dead_ones_samples_go_to_the_next_who_asks(mode: Mode) -> None:
    office, (lease, _) = working(mode)
    assert lease.steps == 3
    office.lose(0)
    assert office.core.members.view == View(office.shard.gate.epoch, ((1, 0),))
    again = lease_of(office.acquire(ask(1, 2), 20), 20)
    assert (again.id, again.first_step, again.again) == (lease.id, 0, True)
    assert office.core.members.lost == 1


def test_a_word_of_the_dead_changes_nothing() -> None:
    office, (lease, _) = working(Asynchronous())
    office.lose(0)
    before = office.core.leases.export(), office.core.members.view
    assert refused(office.acquire(ask(0, 1), 20)) == {20: "FencedError"}
    assert refused(office.acquire(ask(0, 2, done=(lease.id,)), 21)) == {21: "FencedError"}
    assert refused(office.idle(Idle(0, 3, 0, 0, done=(lease.id,)), 22)) == {22: "FencedError"}
    assert refused(office.leave(Leave(0, 4, 0, 0, done=(lease.id,)), 23)) == {23: "FencedError"}
    assert (office.core.leases.export(), office.core.members.view) == before
    assert 0 not in office.core.stats


@by_name
def test_who_dies_while_it_asks_is_answered_and_not_waited_for(mode: Mode) -> None:
    office = full_office(mode, 3)
    for worker in (0, 1):
        office.acquire(ask(worker, 1, samples=2), 10 + worker)
    if mode.name == "sync":
        assert refused(office.lose(0)) == {10: "FencedError"}
        assert set(granted(office.acquire(ask(2, 1, samples=2), 12))) == {11, 12}
        return
    office.idle(Idle(0, 2, 0, 0), 20)
    office.acquire(ask(2, 1, samples=2), 12)
    office.acquire(ask(0, 3, samples=2), 21)
    assert refused(office.lose(0))[21] == "FencedError"


def test_the_end_does_not_wait_for_the_dead() -> None:
    office = full_office(Asynchronous(), 3)
    office.leave(Leave(2, 1, 0, 0), 12)
    office.leave(Leave(0, 1, 0, 0), 10)
    assert left(office.lose(1)) == {10: True, 12: False}


@by_name
def test_an_epoch_ends_when_the_last_lease_is_done_or_handed_on(mode: Mode) -> None:
    office = full_office(mode, 2)
    decisions = office.acquire(ask(0, 1, samples=2), 10)
    decisions += office.acquire(ask(1, 1, samples=2), 11)
    mine, theirs = lease_of(decisions, 10), lease_of(decisions, 11)
    office.push(1, theirs.key(0))
    office.idle(Idle(1, 2, 1, 0, done=(theirs.id,)), 20)
    (hold,) = office.acquire(ask(1, 3, samples=2), 21)
    assert isinstance(hold, Hold)
    decisions = office.lose(0)
    again = lease_of(decisions, 21)
    assert (again.id, again.again) == (mine.id, True)
    assert office.core.members.view.active[0][0] == 1
    office.push(1, again.key(0))
    office.idle(Idle(1, 4, 2, 0, done=(again.id,)), 22)
    assert granted(office.acquire(ask(1, 5, samples=2), 23))[23].exhausted


def test_who_is_back_in_an_epoch_does_its_own_lease_again() -> None:
    office, (lease, _) = working(Asynchronous())
    office.push(0, lease.key(0))
    office.lose(0)
    ((number, rank),) = welcomed(office.register(0, 20, serial=1)).values()
    assert (number, rank) == (2, 0)
    again = lease_of(office.acquire(ask(number, 9), 21), 21)
    assert (again.id, again.again) == (lease.id, True)


# What a death means for the job.


def test_a_death_may_end_the_job() -> None:
    office, _ = working(Asynchronous(), on_failure=OnFailure.STOP)
    office.lose(1, "its connection was closed")
    assert str(office.core.verdict) == "worker 1 is lost: its connection was closed"


def deaths_of(office: Office, times: int) -> Lease:
    """Processes come one after another, get the same lease and die of it."""
    lease: Lease | None = None
    for n in range(times):
        ((number, _),) = welcomed(office.register(20 + n, 100 + n)).values()
        found = lease_of(office.acquire(ask(number, 1), 200 + n), 200 + n)
        assert lease is None or found.id == lease.id
        lease = found
        assert office.core.verdict is None
        office.lose(20 + n)
    assert lease is not None
    return lease


def test_two_deaths_are_no_poison() -> None:
    office = full_office(Asynchronous(), 1)
    deaths_of(office, 2)
    assert office.core.verdict is None
    assert not any(epoch.given_up for epoch in office.core.leases.export())
    assert lease_of(office.acquire(ask(0, 1), 10), 10).again


def test_who_comes_back_each_time_has_no_poison() -> None:
    """A link that is cut now and then, or a machine that is too busy to say that it lives."""
    office = full_office(Asynchronous(), 1)
    for n in range(5):
        ((number, _),) = welcomed(office.register(30, 100 + n, serial=n)).values()
        lease_of(office.acquire(ask(number, 1), 200 + n), 200 + n)
        office.lose(30)
    assert office.core.verdict is None
    deaths_of(office, 1)
    assert office.core.verdict is None


def test_poison_may_be_skipped_and_the_epoch_ends_without_it() -> None:
    office = full_office(Asynchronous(), 1, on_poison=OnPoison.SKIP)
    lease = deaths_of(office, 3)
    assert office.core.verdict is None
    serial, done = 1, []
    while True:
        grant = granted(office.acquire(ask(0, serial, done=tuple(done)), 10))[10]
        if grant.lease is None:
            break
        assert grant.lease.id != lease.id
        done = [grant.lease.id]
        serial += 1
    office.idle(Idle(0, serial + 1, 0, 0), 11)
    assert granted(office.acquire(ask(0, serial + 2), 12))[12].exhausted
    (epoch,) = office.core.leases.export()
    assert (epoch.skipped, epoch.done) == (lease.stop, 12 - lease.stop)


def test_who_waits_for_the_poison_is_answered_when_it_is_skipped() -> None:
    office = full_office(Asynchronous(), 4, on_poison=OnPoison.SKIP)
    lease = lease_of(office.acquire(ask(0, 1, samples=1), 10), 10)
    for worker in (1, 2, 3):
        (hold,) = office.acquire(ask(worker, 1, samples=1), 10 + worker)
        assert isinstance(hold, Hold)
    assert lease_of(office.lose(0), 11).id == lease.id
    assert lease_of(office.lose(1), 12).id == lease.id
    assert granted(office.lose(2))[13].exhausted
    assert office.core.leases.closed(0)
    (epoch,) = office.core.leases.export()
    assert [index for index, *_ in epoch.given_up] == [lease.index]


def test_a_lease_of_an_earlier_epoch_that_was_asked_for_ahead_is_not_suspected() -> None:
    office, (left_behind, _) = working(Asynchronous())
    lease = lease_of(office.acquire(ask(1, 2, epoch=1, done=((0, 1, 0),)), 20), 20)
    office.lose(0)
    ahead = lease_of(office.acquire(ask(1, 3, epoch=1), 21), 21)
    assert ahead.id == left_behind.id
    office.lose(1)
    assert [office.core.leases.died_of(each, 9) for each in (lease, ahead)] == [2, 2]


# Servers.


def test_a_server_is_told_of_the_next_view() -> None:
    office = full_office(Asynchronous(), 2)
    (hold,) = office.watch(1, 0, 50)
    assert isinstance(hold, Hold)
    assert office.core.news({}) == []
    office.acquire(ask(0, 1), 10)
    assert granted(office.core.news({}))[50].view == View(1, ((0, 0),))
    assert office.core.news({}) == []


def test_a_server_that_is_behind_is_told_at_once() -> None:
    office, _ = working(Asynchronous())
    view = office.core.members.view
    assert granted(office.watch(1, view.epoch - 1, 50))[50].view == view
    assert isinstance(office.watch(1, view.epoch, 51)[0], Hold)
    office.lose(0)
    assert granted(office.core.news({}))[51].view == office.core.members.view


def test_every_server_is_told() -> None:
    office = full_office(Asynchronous(), 1)
    for server in (1, 2):
        office.watch(server, 0, 50 + server)
    office.acquire(ask(0, 1), 10)
    assert set(granted(office.core.news({}))) == {51, 52}


def test_a_server_that_asks_again_has_one_question_open() -> None:
    office = full_office(Asynchronous(), 1)
    office.watch(1, 0, 50)
    assert office.watch(1, 0, 51) == [Same(51, 50, "it has asked before")]
    office.acquire(ask(0, 1), 10)
    office.core.news({})
    office.watch(1, 1, 52)
    decisions = office.watch(1, 0, 53)
    assert answers(decisions)[52] == Done(), "the question before is closed"
    assert granted(decisions)[53].view == office.core.members.view


def test_servers_hear_of_the_end_when_all_have_said_bye() -> None:
    office = full_office(Asynchronous(), 2)
    office.leave(Leave(0, 1, 0, 0), 10)
    office.leave(Leave(1, 1, 0, 0), 11)
    office.watch(1, office.core.members.view.epoch, 50)
    assert office.core.news({}) == []
    office.bye(Bye(0), 60)
    office.lose(1)
    assert answers(office.core.news({})) == {50: Done()}
    assert answers(office.watch(2, 0, 51)) == {51: Done()}
