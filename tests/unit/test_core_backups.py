"""Rounds that go on without the slowest: what is dropped, who decides it, who does it again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from psrpc.core.decisions import Answer, Apply, Decision, Hold
from psrpc.core.leases import LeaseBook
from psrpc.core.progress import Progress
from psrpc.core.shard import ShardCore
from psrpc.errors import UsageError
from psrpc.messages import Lease, Pull, Push, Stepped, Stream, StreamKind, UpdateKey, View
from psrpc.modes import Synchronous
from tests.unit.council import Council, ask, granted

LEASE = Lease(0, 0, 0, 20, 2)


def key(worker: int, step: int) -> UpdateKey:
    return UpdateKey(Stream(StreamKind.LEASE, 0, worker), step, 90)


def push(worker: int, clock: int, **more: object) -> Push:
    return replace(Push(worker, clock, key(worker, clock), 1), **more)


def shard(workers: int = 3, backups: int = 1, *, follows: bool = False) -> ShardCore:
    core = ShardCore(Synchronous(backups), follows=follows)
    core.adopt(View(1, tuple((worker, 0) for worker in range(workers))))
    for worker in range(workers):
        core.pull(Pull(worker, 0), 1000 + worker)
    return core


def applied(decisions: list[Decision]) -> list[tuple[int, ...]]:
    return [decision.tokens for decision in decisions if isinstance(decision, Apply)]


def answers(decisions: list[Decision]) -> dict[int, object]:
    return {d.token: d.reply for d in decisions if isinstance(d, Answer)}


# One shard.


def test_a_round_is_complete_with_all_but_the_backups() -> None:
    core = shard()
    assert applied(core.push(push(0, 0), 10)) == []
    decisions = core.push(push(2, 0), 12)
    assert applied(decisions) == [(10, 12)]
    assert answers(decisions) == {10: Stepped(1), 12: Stepped(1)}
    assert [core.gate.clock(worker) for worker in range(3)] == [1, 1, 1]


def test_the_late_push_is_dropped_and_its_worker_goes_on_with_the_others() -> None:
    core = shard()
    for clock in range(2):
        core.push(push(0, clock), 10 + clock)
        core.push(push(2, clock), 20 + clock)
    decisions = core.push(push(1, 0, also=(key(1, 7),)), 30)
    assert answers(decisions) == {30: Stepped(2, late=True, clock=2)}
    assert applied(decisions) == []
    assert core.dropped == [(1, key(1, 0)), (1, key(1, 7))]
    assert core.stats().dropped_late == 1
    assert key(1, 0) not in core.ledger
    assert applied(core.push(push(1, 2), 31)) == []
    assert applied(core.push(push(0, 2), 32)) == [(32, 31)]


def test_a_repeat_of_a_late_push_is_answered_like_the_first() -> None:
    core = shard()
    core.push(push(0, 0), 10)
    core.push(push(2, 0), 12)
    first = answers(core.push(push(1, 0), 11))[11]
    assert answers(core.push(push(1, 0), 13)) == {13: first}
    assert core.stats().dropped_late == 1
    assert len(core.dropped) == 1


def test_a_repeat_of_a_push_that_was_in_time_is_not_late() -> None:
    core = shard()
    for clock in range(2):
        core.push(push(0, clock), 10 + clock)
        core.push(push(2, clock), 20 + clock)
    assert answers(core.push(push(0, 0), 30)) == {30: Stepped(2, duplicate=True)}
    assert core.stats().dropped_late == 0


def test_a_dropped_update_is_applied_when_it_comes_in_time() -> None:
    core = shard()
    core.push(push(0, 0), 10)
    core.push(push(2, 0), 12)
    core.push(push(1, 0), 11)
    core.push(push(0, 1, key=key(1, 0)), 20)
    decisions = core.push(push(1, 1, key=key(1, 1)), 21)
    assert applied(decisions) == [(20, 21)]
    assert key(1, 0) in core.ledger


def test_the_workers_that_are_left_make_the_round_smaller() -> None:
    core = shard(4, 2)
    core.push(push(0, 0), 10)
    assert applied(core.adopt(View(2, ((0, 0), (1, 0), (2, 0))))) == [(10,)]
    assert applied(core.push(push(1, 1), 11)) == [(11,)]


def test_a_round_has_one_push_at_least() -> None:
    core = shard(2, 1)
    core.adopt(View(2, ((0, 0),)))
    assert applied(core.push(push(0, 0), 10)) == [(10,)]


def test_one_whose_step_was_overtaken_while_it_waited_starts_where_the_others_are() -> None:
    """A new worker's push for the next round was there: that round closes as well."""
    core = shard(1, 1)
    core.adopt(View(2, ((0, 0), (5, 1))))
    core.push(push(5, 1, view=View(2)), 15)
    decisions = core.push(push(0, 0, view=View(2)), 10)
    assert applied(decisions) == [(10,), (15,)]
    assert answers(decisions)[10] == Stepped(2, clock=2)


# Several shards.


def test_another_shard_waits_for_shard_0s_word() -> None:
    core = shard(follows=True)
    for worker in range(3):
        decisions = core.push(push(worker, 0), 10 + worker)
        assert applied(decisions) == []
        assert isinstance(decisions[-1], Hold)
    decisions = core.tell(0, (0, 2))
    assert applied(decisions) == [(10, 12)]
    assert answers(decisions) == {
        10: Stepped(1),
        11: Stepped(1, late=True, clock=1),
        12: Stepped(1),
    }
    assert core.dropped == [], "shard 0 says what is to be done again"
    assert core.stats().dropped_late == 1


def test_another_shard_waits_for_all_that_shard_0_has_taken() -> None:
    core = shard(follows=True)
    core.push(push(1, 0), 11)
    assert applied(core.tell(0, (0, 2))) == []
    core.push(push(0, 0), 10)
    assert applied(core.push(push(2, 0), 12)) == [(10, 12)]


def test_another_shard_does_not_wait_for_the_dead() -> None:
    core = shard(follows=True)
    core.push(push(0, 0), 10)
    core.tell(0, (0, 2))
    assert applied(core.adopt(View(2, ((0, 0), (1, 0))))) == [(10,)]


def test_a_round_of_the_dead_alone_ends_all_the_same() -> None:
    core = shard(follows=True)
    core.push(push(1, 0), 11)
    core.tell(0, (0, 2))
    assert answers(core.adopt(View(2, ((1, 0),))))[11] == Stepped(
        0, late=True, clock=1, view=View(2, ((1, 0),))
    )
    assert core.gate.clock(1) == 1


def test_shard_0_keeps_what_it_decided_for_those_who_ask() -> None:
    core = shard()
    for clock in range(12):
        core.push(push(0, clock), 100 + clock)
        core.push(push(2, clock), 200 + clock)
    assert core.closed[11] == (0, 2)
    assert len(core.closed) == 8


# What is dropped is done again.


def test_the_batch_of_a_late_push_is_handed_out_as_a_part_of_its_own() -> None:
    book = LeaseBook()
    main = book.acquire(1, 0, 6, 1, 1)
    assert main is not None
    assert main.steps == 3
    book.take_back(1, main.key(1))
    part = book.acquire(0, 0, 6, 1, 1)
    assert part == replace(main, first_step=1, until=2, again=True)
    assert (part.id, part.end) == ((0, 0, 2), 2)
    book.finish(1, (main.id,))
    assert book.export()[0].done == 2, "the dropped batch is not done"
    book.finish(0, (part.id,))
    assert book.export()[0].done == 3


def test_a_part_that_is_late_again_comes_back_once() -> None:
    book = LeaseBook()
    main = book.acquire(1, 0, 2, 1, 1)
    assert main is not None
    book.take_back(1, main.key(0))
    for worker in (0, 1, 0):
        part = book.acquire(worker, 0, 2, 1, 1)
        assert part is not None
        assert part.until == 1
        book.take_back(worker, part.key(0))
        book.take_back(1 - worker, part.key(0))
    book.finish(1, (main.id,))
    assert book.export()[0].done == 0


def test_what_a_dead_worker_left_does_not_name_what_it_was_late_with() -> None:
    book = LeaseBook()
    main = book.acquire(1, 0, 6, 1, 1)
    assert main is not None
    book.take_back(1, main.key(1))
    (rest,) = book.give_back(1, lambda lease: 1)
    assert (rest.first_step, rest.end) == (2, 3)
    assert book.export()[0].done == 1


def test_a_late_push_comes_back_to_whoever_asks_next() -> None:
    council = Council(Synchronous(1), 2)
    council.say(ask(0, 1), 10)
    lease = granted(council.say(ask(1, 1), 11))[11].lease
    other = granted(council.say(ask(0, 2), 12))[12].lease
    assert lease is not None
    assert other is not None
    council.push(0, 0, other.key(0))
    council.push(1, 0, lease.key(0))
    council.core.take_back(council.shard)
    again = council.take(0, 3)
    assert (again.id, again.again) == ((lease.epoch, lease.index, 1), True)


# A worker's bookkeeping.


def test_a_late_worker_takes_up_the_others_clock_and_its_next_batch() -> None:
    progress = Progress(1, clock=3)
    progress.begin(LEASE)
    assert progress.answered(progress.next_key(), [Stepped(9, late=True, clock=7)] * 2)
    assert (progress.clock, progress.step, progress.apart) == (7, 1, False)


def test_a_lease_whose_last_batch_was_late_is_done_otherwise() -> None:
    progress = Progress(1)
    progress.begin(replace(LEASE, first_step=9))
    progress.answered(progress.next_key(), [Stepped(9, late=True, clock=7)])
    assert progress.take_done() == (LEASE.id,)


def test_a_part_that_was_late_is_not_done() -> None:
    progress = Progress(1)
    progress.begin(replace(LEASE, first_step=4, until=5, again=True))
    progress.answered(progress.next_key(), [Stepped(9, late=True, clock=7)])
    assert (progress.lease, progress.take_done()) == (None, ())


def test_weights_of_two_rounds_are_told_apart() -> None:
    progress = Progress(1)
    progress.begin(LEASE)
    assert not progress.answered(progress.next_key(), [Stepped(1), Stepped(2, clock=2)])
    assert (progress.clock, progress.apart) == (2, True)
    progress.pulled([Stepped(2), Stepped(2)])
    assert (progress.clock, progress.apart) == (2, False)


def test_an_own_update_that_was_late_gives_its_name_to_the_next() -> None:
    progress = Progress(1)
    first = progress.own_key()
    progress.answered(first, [Stepped(1, late=True, clock=4)])
    assert progress.own_key() == first


@pytest.mark.parametrize("backups", [-1, 1.5, True, "one"])
def test_backup_workers_are_a_number(backups: object) -> None:
    with pytest.raises(UsageError, match="backup_workers must be"):
        Synchronous(backups)  # type: ignore[arg-type]
