"""Rounds in process groups: with workers of other planes, and when one of the members fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from psrpc.errors import JobFailedError, PeerLostError
from psrpc.job import Job
from psrpc.messages import Ping
from psrpc.modes import Reduction
from psrpc.planes.conductor import Cue, Enter, Outcome
from tests.contract.fleet import Dock, Fleet, Plan
from tests.contract.hand import WAIT_S, Hand, initial, stepped

TIMEOUT_S = 1.0
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
    assert time.monotonic() - began < 5.0


def cued(hand: Hand, clock: int) -> Cue:
    """Push, and wait for the cue, as a worker does that stops then."""
    reply, _ = hand.link.call(Enter(hand.worker, hand.push(clock))).wait(WAIT_S)
    assert isinstance(reply, Cue)
    return reply


@pytest.mark.parametrize(
    ("rounds", "reason"),
    [(0, r"server0 and workers 0, 1 .*\(worker 1 did not come\)"), (1, r"\(Timed out waiting")],
)
def test_a_member_that_stands_still_ends_the_round_at_the_time_limit(
    start: Start, rounds: int, reason: str
) -> None:
    fleet = start(Job(2, collective_timeout_s=TIMEOUT_S))
    hand, still = (Hand(fleet, worker) for worker in range(2))
    for each in (hand, still):
        each.begin(workers=2)
    for clock in range(rounds):
        round_of([hand, still], clock)
    pending = hand.link.exchange(hand.push(rounds), send=True, land=True)
    cue = cued(still, rounds)
    assert (cue.workers, cue.weight) == ((0, 1), 0.5)
    began = time.monotonic()
    # The server is in the round, and says that it is there all the same.
    still.link.call(Ping(1)).wait(TIMEOUT_S / 2)
    with pytest.raises(PeerLostError, match=f"^collective plane: .*{reason}"):
        pending.wait(WAIT_S)
    assert TIMEOUT_S / 2 < time.monotonic() - began < TIMEOUT_S + 5.0
    with pytest.raises(PeerLostError, match=r"^collective plane: "):
        still.link.call(Outcome(1, rounds)).wait(WAIT_S)


def test_a_member_that_leaves_its_groups_ends_the_round_at_once(start: Start) -> None:
    fleet = start(Job(2))
    hand, gone = (Hand(fleet, worker) for worker in range(2))
    for each in (hand, gone):
        each.begin(workers=2)
    round_of([hand, gone], 0)
    gone.link.close()
    pending = hand.link.exchange(hand.push(1), send=True, land=True)
    began = time.monotonic()
    cued(Hand(fleet, 1, "rpc"), 1)
    with pytest.raises(PeerLostError, match=r"^collective plane: server0 and workers 0, 1 "):
        pending.wait(WAIT_S)
    assert time.monotonic() - began < 5.0
