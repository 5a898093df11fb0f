"""What a shard does with pushes and pulls, in every mode."""

from __future__ import annotations

from dataclasses import replace

import pytest

from psrpc.core.decisions import Answer, Apply, Decision, Hold, Same
from psrpc.core.shard import ShardCore
from psrpc.messages import (
    Failure,
    Lease,
    Pull,
    Push,
    Stepped,
    Stream,
    StreamKind,
    UpdateKey,
    View,
)
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous

LEASE = Lease(epoch=0, index=3, start=0, stop=10, batch_size=2)
OTHER = Lease(epoch=0, index=5, start=10, stop=20, batch_size=2)
MODES = [Synchronous(), BoundedStaleness(2), Asynchronous()]


def core_of(mode: Mode, *workers: int) -> ShardCore:
    core = ShardCore(mode)
    core.adopt(view_of(1, *workers))
    for worker in workers:
        core.pull(Pull(worker, 0), token=-1 - worker)
    return core


def view_of(epoch: int, *workers: int, clock: int = 0) -> View:
    return View(epoch, tuple((worker, clock) for worker in workers))


def key_of(worker: int, sequence: int) -> UpdateKey:
    return UpdateKey(Stream(StreamKind.WORKER, worker, 0), sequence)


def push_of(worker: int, clock: int, **fields: object) -> Push:
    fields.setdefault("key", key_of(worker, clock))
    return Push(worker, clock, samples=2, **fields)  # type: ignore[arg-type]


def brief(decisions: list[Decision]) -> list[tuple[object, ...]]:
    """Decisions without their reasons."""
    lines: list[tuple[object, ...]] = []
    for decision in decisions:
        assert decision.reason
        match decision:
            case Apply(tokens=tokens):
                lines.append(("apply", *tokens))
            case Answer(token=token, reply=Stepped(version=version, lead=lead, duplicate=again)):
                lines.append(("answer", token, version, lead, *(["again"] if again else [])))
            case Answer(token=token, reply=Failure(error=(name, _))):
                lines.append(("refuse", token, name))
            case Hold(token=token):
                lines.append(("hold", token))
            case Same(token=token, first=first):
                lines.append(("same", token, first))
    return lines


def test_a_round_waits_for_all_and_answers_all() -> None:
    core = core_of(Synchronous(), 0, 1, 2)
    assert brief(core.push(push_of(2, 0), 10)) == [("hold", 10)]
    assert brief(core.push(push_of(0, 0), 11)) == [("hold", 11)]
    decisions = brief(core.push(push_of(1, 0), 12))
    assert decisions[0] == ("apply", 11, 12, 10), "the order is that of the workers"
    assert sorted(decisions[1:]) == [("answer", token, 1, 0) for token in (10, 11, 12)]


def test_who_is_missing_is_named() -> None:
    core = core_of(Synchronous(), 0, 1, 2)
    (hold,) = core.push(push_of(1, 0), 10)
    assert hold.reason == "round 0 waits for workers [0, 2]"


def test_many_who_are_missing_are_counted() -> None:
    core = core_of(Synchronous(), *range(100))
    (hold,) = core.push(push_of(1, 0), 10)
    assert hold.reason == "round 0 waits for 99 workers"


def test_a_push_of_the_next_round_waits_for_that() -> None:
    core = core_of(Synchronous(), 0, 1)
    assert brief(core.push(push_of(0, 1), 10)) == [("hold", 10)]
    assert brief(core.push(push_of(0, 0), 11)) == [("hold", 11)]
    assert ("apply", 11, 12) in brief(core.push(push_of(1, 0), 12))
    assert brief(core.push(push_of(1, 1), 13))[0] == ("apply", 10, 13)


def test_bounded_applies_at_once_and_holds_the_answer() -> None:
    core = core_of(BoundedStaleness(1), 0, 1)
    assert brief(core.push(push_of(0, 0), 10)) == [("apply", 10), ("answer", 10, 1, 1)]
    assert brief(core.push(push_of(0, 1), 11)) == [("apply", 11), ("hold", 11)]
    decisions = brief(core.push(push_of(1, 0), 12))
    assert decisions == [("apply", 12), ("answer", 11, 3, 1), ("answer", 12, 3, 0)]


def test_asynchronous_holds_nobody() -> None:
    core = core_of(Asynchronous(), 0, 1)
    for clock in range(50):
        expected = [("apply", clock), ("answer", clock, clock + 1, clock + 1)]
        assert brief(core.push(push_of(0, clock), clock)) == expected


@pytest.mark.parametrize("mode", MODES)
def test_a_repeated_push_is_answered_like_the_first(mode: Mode) -> None:
    core = core_of(mode, 0)
    first = core.push(push_of(0, 0), 10)[-1]
    (again,) = core.push(push_of(0, 0), 11)
    assert isinstance(first, Answer)
    assert isinstance(again, Answer)
    assert again.reply == first.reply
    core.push(push_of(0, 1), 12)
    assert brief(core.push(push_of(0, 0), 13)) == [("answer", 13, 2, 0, "again")]
    assert core.stats().duplicates_dropped == 2
    assert core.stats().updates_applied == 2


@pytest.mark.parametrize("mode", [Synchronous(), BoundedStaleness(0)])
def test_a_repeat_of_an_open_push_shares_its_answer(mode: Mode) -> None:
    core = core_of(mode, 0, 1)
    core.push(push_of(0, 0), 10)
    assert brief(core.push(push_of(0, 0), 11)) == [("same", 11, 10)]
    assert 11 not in [line[1] for line in brief(core.push(push_of(1, 0), 12))]


def test_a_repeat_may_close_the_round_by_its_view() -> None:
    core = core_of(Synchronous(), 0, 1)
    core.push(push_of(0, 0), 10)
    decisions = brief(core.push(push_of(0, 0, view=view_of(2, 0)), 11))
    assert decisions == [("apply", 10), ("answer", 10, 1, 0), ("answer", 11, 1, 0)]


@pytest.mark.parametrize("mode", MODES)
def test_an_update_that_another_worker_made_is_dropped(mode: Mode) -> None:
    core = core_of(mode, 0, 1)
    core.push(push_of(0, 0), 10)
    core.push(push_of(1, 0), 11)
    core.push(push_of(0, 1), 12)
    decisions = brief(core.push(push_of(1, 1, key=key_of(0, 0)), 13))
    assert ("apply", 13) not in decisions
    assert 13 in [line[1] for line in decisions if line[0] == "answer"]
    assert core.stats().updates_applied == 3
    assert core.gate.clock(1) == 2


def test_the_same_update_twice_in_one_round_is_applied_once() -> None:
    core = core_of(Synchronous(), 0, 1)
    core.push(push_of(0, 0), 10)
    decisions = brief(core.push(push_of(1, 0, key=key_of(0, 0)), 11))
    assert decisions == [("apply", 10), ("answer", 10, 1, 0), ("answer", 11, 1, 0)]
    assert core.stats().duplicates_dropped == 1


def test_folded_updates_are_known_too() -> None:
    core = core_of(Asynchronous(), 0)
    core.push(push_of(0, 0, key=key_of(0, 2), also=(key_of(0, 0), key_of(0, 1))), 10)
    assert [key_of(0, n) in core.ledger for n in range(4)] == [True, True, True, False]
    assert core.stats().updates_applied == 1


def test_a_gone_worker_is_waited_for_no_longer_and_its_open_push_is_dropped() -> None:
    core = core_of(Synchronous(), 0, 1, 2)
    core.push(push_of(0, 0), 10)
    core.push(push_of(2, 0), 12)
    decisions = brief(core.adopt(view_of(2, 1, 2)))
    assert decisions == [("refuse", 10, "FencedError")]
    decisions = brief(core.push(push_of(1, 0), 11))
    assert decisions[0] == ("apply", 11, 12)
    assert core.gate.floor == 1
    assert key_of(0, 0) not in core.ledger, "others make that update"


def test_the_last_one_to_leave_takes_its_round_with_it() -> None:
    core = core_of(Synchronous(), 0, 1)
    core.push(push_of(0, 0), 10)
    assert brief(core.adopt(View(2))) == [("refuse", 10, "FencedError")]
    assert (core.version, core.stats().updates_applied) == (0, 0)


def test_what_was_dropped_is_made_by_another() -> None:
    core = core_of(Synchronous(), 0, 1)
    core.push(push_of(0, 0, key=LEASE.key(0)), 10)
    core.adopt(view_of(2, 1))
    decisions = brief(core.push(push_of(1, 0, key=LEASE.key(0)), 11))
    assert decisions == [("apply", 11), ("answer", 11, 1, 0)]
    assert core.stats().duplicates_dropped == 0


def test_a_repeat_that_was_dropped_leaves_the_update_to_its_owner() -> None:
    """A lease came again to a worker that is lost while the first one's push still waits."""
    core = core_of(Synchronous(), 0, 1, 2)
    core.push(push_of(0, 0, key=LEASE.key(0)), 10)
    core.push(push_of(1, 0, key=LEASE.key(0)), 11)
    core.adopt(view_of(2, 0, 2))
    decisions = brief(core.push(push_of(2, 0), 12))
    assert decisions[0] == ("apply", 10, 12)


def test_of_one_that_is_gone_what_is_applied_stays_and_only_its_wait_ends() -> None:
    core = core_of(BoundedStaleness(0), 0, 1)
    assert brief(core.push(push_of(0, 0), 10)) == [("apply", 10), ("hold", 10)]
    assert brief(core.adopt(view_of(2, 1))) == [("refuse", 10, "FencedError")]
    assert key_of(0, 0) in core.ledger
    assert brief(core.push(push_of(1, 0), 11)) == [("apply", 11), ("answer", 11, 2, 0)]


@pytest.mark.parametrize("mode", MODES)
def test_the_death_of_the_slowest_lets_the_others_go(mode: Mode) -> None:
    core = core_of(mode, 0, 1)
    for clock in range(3):
        core.push(push_of(0, clock), clock)
    decisions = brief(core.adopt(view_of(2, 0)))
    opened = {"sync": 0, "bounded": 2, "async": None}[mode.name]
    expected = [("answer", opened, 3, 0)] if mode.name == "bounded" else []
    if mode.name == "sync":
        assert [line for line in decisions if line[0] == "apply"] == [
            ("apply", n) for n in range(3)
        ]
    else:
        assert decisions == expected
    assert core.gate.floor == 3
    assert core.stats().updates_applied == 3


def test_who_comes_late_is_no_part_of_the_round_under_way() -> None:
    core = core_of(Synchronous(), 0, 1)
    core.push(push_of(0, 0), 10)
    core.adopt(View(2, ((0, 0), (1, 0), (2, 1))))
    assert brief(core.push(push_of(2, 1), 12)) == [("hold", 12)]
    assert brief(core.push(push_of(1, 0), 11))[0] == ("apply", 10, 11)
    core.push(push_of(0, 1), 13)
    assert brief(core.push(push_of(1, 1), 14))[0] == ("apply", 13, 14, 12)


# How much of a lease is done, as far as one shard knows.


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("mode", [Asynchronous(), Synchronous()])
def test_of_a_lease_all_but_the_latest_push_is_everywhere(mode: Mode, settled: bool) -> None:
    core = core_of(mode, 0)
    assert core.steps_done(LEASE, 0, settled=settled) == 0
    for step in range(3):
        core.push(push_of(0, step, key=LEASE.key(step)), step)
    assert core.steps_done(LEASE, 0, settled=settled) == 2 + settled


def test_a_push_of_another_lease_says_that_all_before_it_are_everywhere() -> None:
    core = core_of(Asynchronous(), 0)
    core.push(push_of(0, 0, key=LEASE.key(0)), 0)
    core.push(push_of(0, 1, key=OTHER.key(0)), 1)
    assert core.steps_done(LEASE, 0, settled=False) == 1
    assert core.steps_done(OTHER, 0, settled=False) == 0


def test_batches_that_were_added_up_are_as_uncertain_as_their_push() -> None:
    core = core_of(Asynchronous(), 0)
    core.push(push_of(0, 0, key=LEASE.key(0)), 0)
    core.push(push_of(0, 1, key=LEASE.key(3), also=(LEASE.key(1), LEASE.key(2))), 1)
    assert core.steps_done(LEASE, 0, settled=False) == 1
    assert core.steps_done(LEASE, 0, settled=True) == 4
    core.push(push_of(0, 2, key=OTHER.key(0), also=(LEASE.key(4),)), 2)
    assert core.steps_done(LEASE, 0, settled=False) == 4, "the push names the end of this lease too"
    assert core.steps_done(LEASE, 0, settled=True) == 5


def test_what_an_earlier_holder_pushed_is_not_the_next_ones() -> None:
    core = core_of(Asynchronous(), 0, 1)
    for step in range(3):
        core.push(push_of(0, step, key=LEASE.key(step)), step)
    again = replace(LEASE, first_step=2, again=True)
    assert core.steps_done(again, 1, settled=False) == 2
    core.push(push_of(1, 0, key=LEASE.key(2)), 10)
    assert core.steps_done(again, 1, settled=False) == 2
    core.push(push_of(1, 1, key=LEASE.key(3)), 11)
    assert core.steps_done(again, 1, settled=False) == 3
    core.push(push_of(0, 3, key=LEASE.key(4)), 12)
    assert core.steps_done(again, 1, settled=False) == 3, "what others push is theirs"


def test_of_a_lease_that_nobody_asks_about_nothing_is_kept() -> None:
    core = core_of(Asynchronous(), 0)
    for step in range(3):
        core.push(push_of(0, step, key=LEASE.key(step)), step)
    core.forget(0, [LEASE.id, OTHER.id])
    assert core.steps_done(LEASE, 0, settled=True) == 0


def test_what_a_shard_covers_is_counted() -> None:
    core = core_of(Asynchronous(), 0)
    core.push(push_of(0, 0, key=LEASE.key(0)), 0)
    core.push(push_of(0, 1, key=LEASE.key(2), also=(LEASE.key(1), LEASE.key(0))), 1)
    (cover,) = core.stats().coverage
    assert (cover.open, cover.doubled) == (((LEASE.index, ((0, 3),)),), ((LEASE.index, 1),))


def test_a_view_is_adopted_once_and_in_order() -> None:
    core = core_of(Synchronous(), 0, 1)
    core.adopt(view_of(3, 0))
    assert core.adopt(view_of(2, 0, 1)) == []
    assert core.adopt(None) == []
    assert core.gate.active == {0}


@pytest.mark.parametrize("mode", MODES)
def test_who_does_not_step_is_refused(mode: Mode) -> None:
    core = core_of(mode, 0)
    assert brief(core.push(push_of(5, 0), 10)) == [("refuse", 10, "FencedError")]
    assert brief(core.pull(Pull(5, 0), 11)) == [("refuse", 11, "FencedError")]
    assert core.stats().updates_applied == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_late_repeat_after_leaving_is_still_answered(mode: Mode) -> None:
    core = core_of(mode, 0)
    core.push(push_of(0, 0), 10)
    core.adopt(View(2))
    assert brief(core.push(push_of(0, 0), 11)) == [("answer", 11, 1, 0)]
    assert brief(core.push(push_of(0, 1), 12)) == [("refuse", 12, "FencedError")]


def test_a_push_brings_the_view_that_admits_it() -> None:
    core = core_of(Asynchronous(), 0)
    view = View(2, ((0, 0), (1, 7)))
    assert brief(core.push(push_of(1, 7, view=view), 10)) == [("apply", 10), ("answer", 10, 1, 8)]


def test_a_pull_waits_for_its_turn() -> None:
    core = core_of(BoundedStaleness(0), 0)
    pull = Pull(1, 1, View(2, ((0, 0), (1, 1))))
    assert brief(core.pull(pull, 10)) == [("hold", 10)]
    decisions = brief(core.push(push_of(0, 0), 11))
    assert decisions == [("apply", 11), ("answer", 10, 1, 0), ("answer", 11, 1, 0)]


@pytest.mark.parametrize("mode", MODES)
def test_who_leaves_is_refused_what_waits_for_its_own_step(mode: Mode) -> None:
    core = core_of(mode, 0, 1)
    assert brief(core.pull(Pull(1, 5), 10)) == [("hold", 10)]
    assert brief(core.adopt(view_of(2, 0))) == [("refuse", 10, "FencedError")]
    assert core.adopt(view_of(3, 0, 1)) == []


def test_void_updates_are_counted_and_make_no_step() -> None:
    core = core_of(Asynchronous(), 0)
    assert brief(core.push(push_of(0, 0, void=True), 10)) == [("answer", 10, 0, 0)]
    stats = core.stats()
    assert (stats.updates_applied, stats.void_updates, stats.optimizer_steps) == (1, 1, 0)
    assert key_of(0, 0) in core.ledger


def test_a_round_with_a_void_update_is_made_of_the_others() -> None:
    core = core_of(Synchronous(), 0, 1)
    core.push(push_of(0, 0, void=True), 10)
    decisions = brief(core.push(push_of(1, 0), 11))
    assert decisions == [("apply", 11), ("answer", 10, 1, 0), ("answer", 11, 1, 0)]
    assert core.version == 1


def test_staleness_and_lag_are_counted() -> None:
    core = core_of(BoundedStaleness(2), 0, 1)
    for clock in range(3):
        core.push(push_of(0, clock), clock)
    core.push(push_of(1, 0), 3)
    stats = core.stats()
    assert stats.staleness == ((0, 2), (1, 1), (2, 1))
    assert stats.update_lag == ((0, 3), (3, 1)), "worker 1 began before three others' updates"
    assert stats.max_clock_gap == 2
    assert stats.samples == 8


def test_staleness_of_a_push_is_told_with_its_step() -> None:
    core = core_of(BoundedStaleness(2), 0, 1)
    core.push(push_of(0, 0), 0)
    apply = core.push(push_of(0, 1), 1)[0]
    assert isinstance(apply, Apply)
    assert apply.staleness == (1,)


def test_steps_without_a_pull_keep_their_old_weights() -> None:
    core = core_of(Asynchronous(), 0, 1)
    for clock in range(3):
        core.push(push_of(0, clock, pull=False), clock)
    assert core.stats().staleness == ((0, 1), (1, 1), (2, 1))
    assert core.stats().update_lag == ((0, 3),), "its own updates do not count"


def test_a_dropped_update_is_not_taken_for_lag() -> None:
    core = core_of(Asynchronous(), 0, 1)
    core.push(push_of(1, 0), 0)
    core.push(push_of(0, 0, key=key_of(1, 0), pull=False), 1)
    core.push(push_of(0, 1), 2)
    assert core.stats().update_lag == ((0, 1), (1, 1))


def test_who_pauses_begins_anew() -> None:
    core = core_of(Asynchronous(), 0, 1)
    core.adopt(view_of(2, 1))
    core.push(push_of(1, 0), 0)
    core.adopt(view_of(3, 0, 1))
    core.pull(Pull(0, 0), 1)
    core.push(push_of(0, 0), 2)
    assert core.stats().update_lag == ((0, 2),)


def test_synchronous_gradients_are_never_stale() -> None:
    core = core_of(Synchronous(), 0, 1)
    for clock in range(5):
        core.push(push_of(0, clock), 2 * clock)
        core.push(push_of(1, clock), 2 * clock + 1)
    stats = core.stats()
    assert (stats.staleness, stats.update_lag) == (((0, 10),), ((0, 10),))
    assert (stats.optimizer_steps, stats.updates_applied, stats.max_clock_gap) == (5, 10, 0)
    assert core.ledger.size == 2


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_pull_lets_a_worker_that_overlaps_into_two_steps(ahead: int) -> None:
    """Nothing is under way at a pull; without its `ahead`, the second step would be too stale."""
    core = core_of(BoundedStaleness(1), 0, 1)
    core.push(push_of(1, 0, ahead=1), 10)
    pulled = brief(core.pull(Pull(1, 1, ahead=ahead), 11))
    if ahead:
        assert pulled == [("hold", 11)]
        core.push(push_of(0, 0), 12)  # the slowest catches up
    for clock in (1, 2):
        core.push(push_of(1, clock, read=1, ahead=1), 12 + clock)
    staleness = dict(core.stats().staleness)
    assert max(staleness) == (1 if ahead else 2)
    assert core.stats().max_clock_gap == 1
