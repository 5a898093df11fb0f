"""Rounds in process groups: with workers of other planes, and when one of the members fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from psrpc.errors import JobFailedError, PeerLostError
from psrpc.job import Job
from psrpc.messages import Adopt, Fail, Ping, View
from psrpc.modes import Reduction
from psrpc.planes.base import Pending
from psrpc.planes.conductor import Cue, Enter
from tests.contract.fleet import Dock, Fleet, Plan
from tests.contract.hand import WAIT_S, Hand, initial, stepped

TIMEOUT_S = 4.0
# Far below the half minute that is a round's time limit where nothing else is said.
AT_ONCE_S = 15.0
Start = Callable[[Job], Fleet]


@pytest.fixture
def start(dock: Dock) -> Iterator[Start]:
    """Starts a job's servers afresh, in processes whose end nobody else notices."""
    fleets: list[Fleet] = []

    def start(job: Job) -> Fleet:
        fleets.append(dock.fleet("collective", Plan(job)))
        return fleets[-1]

    yield start
    for fleet in fleets:
        fleet.close()


def round_of(hands: list[Hand], clock: int, gradient: float = 1.0) -> None:
    """All push the same gradient and take the weights."""
    pending = []
    for hand in hands:
        for flat in hand.flats.gradients:
            flat.fill_(gradient)
        pending.append(hand.link.exchange(hand.push(clock), send=True, land=True))
    for each in pending:
        stepped(each)


@pytest.mark.parametrize("reduction", Reduction)
def test_a_round_may_be_of_all_planes(start: Start, reduction: Reduction) -> None:
    fleet = start(Job(4, reduction=reduction))
    planes = ["rpc", "collective", "shm", "collective"]
    hands = [Hand(fleet, worker, plane) for worker, plane in enumerate(planes)]
    pending = []
    for hand in hands:
        hand.begin(workers=4)
        hand.flats.gradients[0].fill_(1.0 + 2 * hand.worker)
    for hand in hands:
        pending.append(hand.link.exchange(hand.push(), send=True, land=True))
    assert [stepped(each).version for each in pending] == [1] * 4
    step = 4.0 if reduction is Reduction.MEAN else 16.0
    for hand in hands:
        torch.testing.assert_close(hand.flats.weights[0], initial(fleet)[0] - step)
        torch.testing.assert_close(hand.flats.gradients[0], torch.full([15], 1 + 2.0 * hand.worker))


def test_workers_come_and_go(start: Start) -> None:
    """Each set of workers that steps together has a group of its own."""
    fleet = start(Job(3))
    hands = [Hand(fleet, worker) for worker in range(3)]
    for hand in hands:
        hand.begin(workers=3)
    round_of(hands, 0)
    for clock, absent in enumerate((1, 0, 2, 1), start=1):
        void = hands[absent].push(clock, void=True)
        skipped = hands[absent].link.exchange(void, send=False, land=True)
        round_of([hand for hand in hands if hand.worker != absent], clock)
        stepped(skipped)
    for hand in hands:
        torch.testing.assert_close(hand.flats.weights[0], initial(fleet)[0] - 5.0)


def test_an_optimizer_that_fails_fails_for_all(start: Start) -> None:
    """The weights never come; that reaches those who wait for them in the group."""
    fleet = start(Job(2))
    hands = [Hand(fleet, worker) for worker in range(2)]
    for hand in hands:
        hand.begin(workers=2)
    round_of(hands, 0)
    wrong = [hand.push(1, overrides=((0, "nonsense", 1),)) for hand in hands]
    pending = [
        hand.link.exchange(push, send=True, land=True)
        for hand, push in zip(hands, wrong, strict=True)
    ]
    began = time.monotonic()
    for each in pending:
        with pytest.raises(JobFailedError, match="has no option 'nonsense'"):
            each.wait(WAIT_S)
    assert time.monotonic() - began < AT_ONCE_S


def cued(hand: Hand, clock: int) -> Cue:
    """Push, and wait for the cue, as a worker does that stops then."""
    enter = Enter(hand.worker, hand.push(clock), time.monotonic_ns())
    reply, _ = hand.link.call(enter).wait(WAIT_S)
    assert isinstance(reply, Cue)
    return reply


def pushed(hand: Hand, clock: int, gradient: float) -> Pending:
    """Push this gradient at a clock."""
    hand.flats.gradients[0].fill_(gradient)
    return hand.link.exchange(hand.push(clock), send=True, land=True)


def two(start: Start, rounds: int, timeout_s: float = 30.0) -> tuple[Fleet, Hand, Hand]:
    """Two workers that have made so many rounds."""
    fleet = start(Job(2, collective_timeout_s=timeout_s))
    hands = Hand(fleet, 0), Hand(fleet, 1)
    for hand in hands:
        hand.begin(workers=2)
    for clock in range(rounds):
        round_of(list(hands), clock)
    return fleet, *hands


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_member_that_stands_still_holds_the_round_up_until_it_comes_again(
    start: Start, rounds: int
) -> None:
    """The group ends at its time limit, new or not; the round is made in another, once."""
    fleet, hand, still = two(start, rounds, TIMEOUT_S)
    pending = pushed(hand, rounds, 1.0)
    cue = cued(still, rounds)
    assert (cue.workers, cue.weight) == ((0, 1), 0.5)
    # The server is in the round, and says that it is there all the same.
    still.link.call(Ping(1)).wait(TIMEOUT_S / 2)
    with pytest.raises(TimeoutError):
        pending.wait(TIMEOUT_S + 2.0)
    again = pushed(still, rounds, 3.0)
    assert [stepped(each).version for each in (pending, again)] == [rounds + 1] * 2
    for each in (hand, still):
        torch.testing.assert_close(each.flats.weights[0], initial(fleet)[0] - rounds - 2.0)
    counts = hand.stats().shard
    assert (counts.updates_applied, counts.duplicates_dropped) == (2 * rounds + 2, 0)


@pytest.mark.parametrize("how", ["it has died", "its push is void", "the job has failed"])
def test_a_push_that_waits_is_looked_at_when_something_else_has_come(
    start: Start, how: str
) -> None:
    _, hand, other = two(start, 1)
    pending = pushed(hand, 1, 2.0)
    with pytest.raises(TimeoutError):
        pending.wait(0.2)
    if how == "it has died":
        hand.link.call(Adopt(0, View(2, ((0, 1),)))).wait(WAIT_S)
    elif how == "its push is void":
        other.link.exchange(other.push(1, void=True), send=False, land=True).wait(WAIT_S)
    else:
        other.link.call(Fail(1, ("ValueError", "of its own"))).wait(WAIT_S)
        with pytest.raises(JobFailedError, match="worker 1 failed: ValueError: of its own"):
            pending.wait(WAIT_S)
        return
    assert stepped(pending).version == 2


@pytest.mark.parametrize("rounds", [0, 1])
def test_the_others_make_a_round_without_one_that_died(start: Start, rounds: int) -> None:
    fleet, hand, dead = two(start, rounds, TIMEOUT_S)
    pending = pushed(hand, rounds, 2.0)
    cued(dead, rounds)
    dead.link.close()
    view = View(2, ((0, rounds),))
    hand.link.call(Adopt(0, view)).wait(WAIT_S)
    assert stepped(pending).version == rounds + 1
    torch.testing.assert_close(hand.flats.weights[0], initial(fleet)[0] - rounds - 2.0)


def test_a_member_that_leaves_its_groups_breaks_the_round_at_once(start: Start) -> None:
    fleet, hand, gone = two(start, 1)
    gone.link.close()
    pending = pushed(hand, 1, 1.0)
    began = time.monotonic()
    cued(Hand(fleet, 1, "rpc"), 1)
    round_again = pushed(Hand(fleet, 1), 1, 1.0)
    assert [stepped(each).version for each in (pending, round_again)] == [2, 2]
    assert time.monotonic() - began < AT_ONCE_S


def test_who_missed_the_weights_gets_them_when_he_comes_again(start: Start) -> None:
    """His round is made: it is not made again, and the others do not wait."""
    fleet, hand, torn = two(start, 1)
    original, calls = torn.link._groups.join, []  # type: ignore[attr-defined]

    def join(*arguments: Any) -> Any:
        group = original(*arguments)
        if not calls:
            calls.append(1)

            def broken(tensor: torch.Tensor) -> None:
                raise PeerLostError("of no use")

            group.broadcast = broken
        return group

    torn.link._groups.join = join  # type: ignore[attr-defined]
    pending = [pushed(hand, 1, 1.0), pushed(torn, 1, 1.0)]
    assert [stepped(each).version for each in pending] == [2, 2]
    assert calls
    for each in (hand, torn):
        torch.testing.assert_close(each.flats.weights[0], initial(fleet)[0] - 2.0)
    counts = hand.stats().shard
    assert (counts.updates_applied, counts.duplicates_dropped) == (4, 1)
    round_of([hand, torn], 2)


def test_a_round_that_breaks_again_and_again_ends_the_job(start: Start) -> None:
    """All are there, and come again, but in no group they come to an end."""
    _, hand, other = two(start, 0)

    def join(*arguments: Any) -> Any:
        raise PeerLostError("collective plane: no way")

    other.link._groups.join = join  # type: ignore[attr-defined]
    pending = [pushed(hand, 0, 1.0), pushed(other, 0, 1.0)]
    for each in pending:
        with pytest.raises(PeerLostError, match=r"^collective plane: server0 and workers 0, 1 did"):
            each.wait(WAIT_S)


def test_an_update_that_is_there_already_is_not_added_up(start: Start) -> None:
    """Another worker made it, who died: a round is of those that carry something."""
    fleet, hand, other = two(start, 1)
    key = hand.push(0).key
    twice = replace(other.push(1), key=key)
    other.flats.gradients[0].fill_(7.0)
    pending = [
        pushed(hand, 1, 1.0),
        other.link.exchange(twice, send=True, land=True),
    ]
    assert [stepped(each).version for each in pending] == [2, 2]
    for each in (hand, other):
        torch.testing.assert_close(each.flats.weights[0], initial(fleet)[0] - 2.0)
