"""The coordinator when workers die, in every state: who waits, who does their samples, who knows.

Processes have other numbers than workers here: see `council`.
"""

from __future__ import annotations

import pytest

from psrpc.core.decisions import Answer, Hold
from psrpc.errors import FencedError, JobFailedError
from psrpc.messages import Bye, Done, Granted, Idle, Lease, Leave, Left, View, Welcome
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, OnFailure, OnPoison, Synchronous
from psrpc.orders import Watch
from tests.unit.council import Council, answers, ask, granted, refused, register

MODES = [Synchronous(), BoundedStaleness(1), Asynchronous()]
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
FENCED = FencedError.__name__


# While they come.


def test_one_that_dies_before_the_start_is_waited_for_anew() -> None:
    council = Council(Asynchronous(), 2, come=False)
    council.say(register(0), 10)
    assert refused(council.lose(0)) == {10: FENCED}
    (hold,) = council.say(register(1), 11)
    assert hold == Hold(11, "workers [0] have not come yet")
    decisions = council.say(register(0, process=200), 12)
    assert answers(decisions) == {11: Welcome(1, 1), 12: Welcome(2, 0)}
    assert council.core.verdict is None


def test_what_the_dead_said_before_counts_no_more() -> None:
    council = Council(Asynchronous(), 2, come=False)
    assert council.lose(0) == [], "its first word is still on its way"
    assert refused(council.say(register(0), 10)) == {10: FENCED}
    assert council.core.members.live == set()
    (hold,) = council.say(register(0, serial=1), 11)
    assert isinstance(hold, Hold)
    assert council.core.members.live == {0}


def test_one_that_comes_anew_was_dead_before() -> None:
    council = Council(Asynchronous(), 2)
    lease = council.take(0, 1)
    council.say(Idle(1, 1, 0, 0), 11)
    decisions = council.say(register(0, serial=1), 12)
    assert answers(decisions) == {12: Welcome(2, 0)}
    assert council.core.members.lost == 1
    assert council.core.worker_of(100) == 2
    assert refused(council.say(ask(0, 2), 13)) == {13: FENCED}
    assert council.take(2, 1).id == lease.id


def test_a_late_repeat_of_the_old_coming_changes_nothing() -> None:
    council = Council(Asynchronous(), 1)
    council.say(register(0, serial=1), 10)
    assert answers(council.say(register(0, serial=0), 11)) == {11: Done()}
    assert council.core.members.live == {1}


def test_a_death_is_told_more_than_once() -> None:
    council = Council(Asynchronous(), 2)
    council.take(0, 1)
    council.lose(0)
    view = council.core.members.view
    assert council.lose(0) == []
    assert council.lose(7) == [], "a process that never came"
    assert (council.core.members.view, council.core.members.lost) == (view, 1)
    assert council.core.processes == [101]


@every_mode
def test_whatever_the_dead_say_is_refused(mode: Mode) -> None:
    council = Council(mode, 2)
    council.say(ask(0, 1), 10)
    council.lose(0)
    words = [ask(0, 1), ask(0, 2), Idle(0, 3, 0, 0), Leave(0, 4, 0, 0)]
    for token, word in enumerate(words, 20):
        assert refused(council.say(word, token)) == {token: FENCED}
    assert council.core.stats == {}


# Who waits.


def test_a_barrier_does_not_wait_for_the_dead() -> None:
    council = Council(Synchronous(), 3)
    for token, worker in ((10, 0), (11, 1)):
        assert granted(council.say(ask(worker, 1), token)) == {}
    decisions = council.lose(2)
    assert set(granted(decisions)) == {10, 11}


def test_one_that_dies_while_it_asks_is_given_nothing() -> None:
    council = Council(Synchronous(), 2)
    council.say(ask(0, 1), 10)
    decisions = council.lose(0)
    assert refused(decisions) == {10: FENCED}
    lease = council.take(1, 1)
    assert (lease.start, lease.again) == (0, False)
    assert dict(council.core.members.view.active) == {1: 0}


def test_a_round_does_not_wait_for_the_dead() -> None:
    council = Council(Synchronous(), 2)
    council.say(ask(0, 1), 10)
    lease = granted(council.say(ask(1, 1), 11))[11].lease
    assert lease is not None
    assert isinstance(council.push(1, 0, lease.key(0))[-1], Hold)
    pushed = [d for d in council.lose(0) if isinstance(d, Answer) and d.token >= 500_000]
    assert [answer.token for answer in pushed] == [501_000]
    assert council.shard.version == 1


def test_those_who_wait_for_the_end_do_not_wait_for_the_dead() -> None:
    council = Council(Asynchronous(), 2)
    council.say(Leave(1, 1, 0, 0), 10)
    assert answers(council.lose(0)) == {10: Left(main=True)}
    assert council.core.members.finished
    assert not council.core.over, "worker 1 has not said its last word"
    council.say(Bye(1), 90 + 1)
    assert council.core.over


def test_one_that_dies_while_it_waits_for_the_end_has_done_its_work() -> None:
    council = Council(Asynchronous(), 2, on_failure=OnFailure.STOP)
    council.say(Leave(0, 1, 0, 0), 10)
    assert refused(council.lose(0)) == {10: FENCED}
    assert (council.core.members.lost, council.core.verdict) == (0, None)
    assert answers(council.say(Leave(1, 1, 0, 0), 11)) == {11: Left(main=True)}


def test_one_that_dies_before_its_last_word_does_not_keep_servers_waiting() -> None:
    council = Council(Asynchronous(), 1)
    council.core.watch(Watch(1, 0), 50, council.shard)
    council.say(Leave(0, 1, 0, 0), 10)
    assert not council.core.over
    council.lose(0)
    assert council.core.over
    assert answers(council.core.news({})) == {50: Done()}


def test_servers_are_told_who_died() -> None:
    council = Council(Asynchronous(), 2)
    for worker in (0, 1):
        council.take(worker, 1)
    council.core.watch(Watch(1, council.core.members.view.epoch), 50, council.shard)
    council.lose(1)
    assert granted(council.core.news({})) == {50: Granted(View(3, ((0, 0),)))}


# What they leave.


def test_two_leases_come_back_each_from_where_it_was() -> None:
    council = Council(Asynchronous(), 2)
    current, ahead = council.take(0, 1, samples=40), council.take(0, 2, samples=40)
    for step in range(3):
        council.push(0, step, current.key(step))
    council.lose(0)
    again = {lease.id: lease for lease in (council.take(1, n, samples=40) for n in (1, 2))}
    assert again.keys() == {current.id, ahead.id}
    assert (again[current.id].first_step, again[ahead.id].first_step) == (2, 0)
    assert all(lease.again for lease in again.values())
    assert not council.take(1, 3, samples=40).again


def test_the_second_to_die_with_a_lease_leaves_it_where_it_was_if_it_did_nothing() -> None:
    council = Council(Asynchronous(), 3)
    lease = council.take(0, 1, samples=40)
    for step in range(3):
        council.push(0, step, lease.key(step))
    council.lose(0)
    for worker in (1, 2):
        again = council.take(worker, 1, samples=40)
        assert (again.id, again.first_step) == (lease.id, 2)
        council.lose(worker)


def test_a_lease_of_which_all_is_done_does_not_come_back() -> None:
    """It died between the answer to its last push and the word that the lease is done."""
    council = Council(Asynchronous(), 2)
    first, second = council.take(0, 1), council.take(0, 2)
    for step in range(first.steps):
        council.push(0, step, first.key(step))
    council.push(0, first.steps, second.key(0))
    council.lose(0)
    assert council.take(1, 1).id == second.id
    assert not council.take(1, 2).again
    (epoch,) = council.core.leases.export()
    assert epoch.done == first.stop - first.start


def test_its_last_push_of_a_lease_may_be_missing_elsewhere() -> None:
    council = Council(Asynchronous(), 2)
    lease = council.take(0, 1)
    for step in range(lease.steps):
        council.push(0, step, lease.key(step))
    council.lose(0)
    again = council.take(1, 1)
    assert (again.id, again.first_step) == (lease.id, lease.steps - 1)


def test_what_the_dead_leave_is_done_even_in_a_later_epoch() -> None:
    council = Council(Asynchronous(), 2)
    mine, theirs = (council.take(w, 1, samples=2) for w in (0, 1))
    council.say(Idle(1, 2, 1, 0, done=(theirs.id,)), 11)
    council.say(ask(1, 3, epoch=1, samples=2), 12)
    council.lose(0)
    assert council.take(1, 4, epoch=1, samples=2).id == mine.id


@every_mode
def test_who_waits_for_an_epochs_end_does_what_the_dead_leave(mode: Mode) -> None:
    council = Council(mode, 2)
    council.say(ask(0, 1, samples=2), 10)
    lease = granted(council.say(ask(1, 1, samples=2), 11))[11].lease
    assert lease is not None
    council.say(Idle(1, 2, 1, 0, done=(lease.id,)), 12)
    assert isinstance(council.say(ask(1, 3, clock=1, samples=2), 13)[-1], Hold)
    again = granted(council.lose(0))[13]
    assert again.lease is not None
    assert again.lease.again
    assert again.lease.id != lease.id
    assert dict(again.view.active).keys() == {1}


# Who comes later.


@pytest.mark.parametrize("mode", [BoundedStaleness(2), Asynchronous()])
def test_a_joiner_begins_where_the_slowest_is(mode: Mode) -> None:
    council = Council(mode, 1)
    lease = council.take(0, 1)
    for step in range(3):
        council.push(0, step, lease.key(step))
    assert answers(council.say(register(None, process=200), 11)) == {11: Welcome(1, 1)}
    assert dict(granted(council.say(ask(1, 1), 12))[12].view.active) == {0: 0, 1: 3}


def test_a_synchronous_joiner_begins_with_the_next_round() -> None:
    """The round that is under way is not its own: it may be complete on other shards."""
    council = Council(Synchronous(), 1)
    lease = council.take(0, 1)
    for step in range(2):
        council.push(0, step, lease.key(step))
    council.say(register(None, process=200), 11)
    assert dict(granted(council.say(ask(1, 1), 12))[12].view.active) == {0: 0, 1: 3}
    council.push(0, 2, lease.key(2))
    assert council.shard.version == 3, "round 2 did not wait for it"
    council.push(0, 3, lease.key(3))
    assert council.shard.version == 3, "round 3 does"


def test_synchronous_joiners_with_their_own_data_wait_for_nobody() -> None:
    council = Council(Synchronous(), 1)
    council.say(ask(0, 1, samples=None), 10)
    council.say(register(None, process=200), 11)
    assert granted(council.say(ask(1, 1, samples=None), 12))[12].view == View(2, ((0, 0), (1, 1)))


def test_a_synchronous_joiner_between_epochs_begins_with_the_others() -> None:
    council = Council(Synchronous(), 1)
    lease = council.take(0, 1, samples=1)
    council.say(Idle(0, 2, 1, 0, done=(lease.id,)), 10)
    council.say(register(None, process=200), 11)
    (hold,) = council.say(ask(1, 1, epoch=1, samples=2), 12)
    assert hold == Hold(12, "epoch 1 begins when workers [0] come to it")
    grants = granted(council.say(ask(0, 3, clock=1, epoch=1, samples=2), 13))
    assert dict(grants[12].view.active) == {0: 1, 1: 1}


# What ends a job.


def kill_in_a_row(council: Council, times: int) -> Lease:
    """Kill the holders of one lease, one after the other; worker 0 lives."""
    lease = None
    for number in range(times):
        process, worker = 200 + number, number + 1
        council.say(register(None, process=process), 600 + number)
        lease = council.take(worker, 1)
        council.core.lose(process, "a bad sample", council.shard)
    assert lease is not None
    return lease


def test_a_lease_that_kills_three_in_a_row_ends_the_job() -> None:
    council = Council(Asynchronous(), 1)
    kill_in_a_row(council, 2)
    assert council.core.verdict is None
    council = Council(Asynchronous(), 1)
    lease = kill_in_a_row(council, 3)
    assert isinstance(council.core.verdict, JobFailedError)
    where = f"positions 0 to 0 of epoch 0's order, or later ones up to {lease.stop - 1}"
    assert where in str(council.core.verdict)


def test_or_its_samples_are_given_up() -> None:
    council = Council(Asynchronous(), 1, on_poison=OnPoison.SKIP)
    lease = kill_in_a_row(council, 3)
    assert council.core.verdict is None
    taken, serial = [council.take(0, 1)], 2
    while not (reply := granted(council.say(ask(0, serial), serial))[serial]).exhausted:
        assert reply.lease is not None
        taken.append(reply.lease)
        serial += 1
    assert lease.id not in [each.id for each in taken]
    council.say(Idle(0, serial + 1, 0, 0, done=tuple(each.id for each in taken)), 20)
    assert council.core.leases.closed(0)
    (epoch,) = council.core.leases.export()
    assert (epoch.done, epoch.skipped) == (12 - lease.stop, lease.stop)
    assert epoch.given_up == ((lease.index, lease.first_step, lease.end),)


def test_a_lease_that_was_only_fetched_ahead_kills_nobody() -> None:
    council = Council(Asynchronous(), 5)
    for worker in (1, 2, 3):
        council.take(worker, 1, samples=99)
    ahead = council.take(4, 1, samples=99)
    council.say(Leave(4, 2, 0, 0, early=True), 10)
    for worker in (1, 2, 3):
        assert council.take(worker, 2, samples=99).id == ahead.id
        council.lose(worker)
    assert council.core.verdict is None


def test_what_was_done_since_is_no_row() -> None:
    council = Council(Asynchronous(), 1)
    lease = kill_in_a_row(council, 2)
    assert council.take(0, 1).id == lease.id
    council.say(ask(0, 2, done=(lease.id,)), 20)
    council.lose(0)
    assert council.core.verdict is None


@pytest.mark.parametrize("early", [True, False])
def test_a_job_that_is_to_stop_stops_at_a_death_and_not_at_a_leave(early: bool) -> None:
    council = Council(Asynchronous(), 2, on_failure=OnFailure.STOP)
    council.say(Leave(1, 1, 0, 0, early=early), 10)
    assert council.core.verdict is None
    council.lose(0, "its connection was closed")
    assert str(council.core.verdict) == "worker 0 is lost: its connection was closed"


def test_before_the_start_no_death_stops_a_job() -> None:
    council = Council(Asynchronous(), 2, come=False, on_failure=OnFailure.STOP)
    council.say(register(0), 10)
    council.lose(0)
    assert council.core.verdict is None
