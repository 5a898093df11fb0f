"""Updates that are sent again, answers that are held: alike on every data plane."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from psrpc.job import Job
from psrpc.messages import Lease, Peek, Ping, Pull, Stepped
from psrpc.modes import Asynchronous, BoundedStaleness, Synchronous
from tests.contract.fleet import Fleet, Plan, until
from tests.contract.hand import WAIT_S, Hand, initial, stepped


def test_an_update_that_is_sent_again_while_it_waits_is_applied_once(
    launch: Callable[[Plan], Fleet],
) -> None:
    fleet = launch(Plan(Job(2, mode=Synchronous())))
    hand, other = Hand(fleet), Hand(fleet, 1)
    hand.begin(workers=2)
    hand.flats.gradients[0].fill_(1.0)
    other.flats.gradients[0].fill_(1.0)
    push = hand.push()
    first = hand.link.exchange(push, send=True, land=True)
    again = [hand.link.call(push, [torch.ones_like(hand.flats.gradients[0])]) for _ in range(3)]
    until(lambda: hand.stats().shard.duplicates_dropped == 3)
    assert not first.done()
    assert not any(pending.done() for pending in again)
    answers = [stepped(other.link.exchange(other.push(), send=True, land=True))]
    answers += [stepped(pending) for pending in (first, *again)]
    assert answers == [Stepped(1)] * 5
    torch.testing.assert_close(hand.flats.weights[0], initial(fleet)[0] - 1.0)
    assert hand.stats().shard.updates_applied == 2


def test_an_update_that_is_sent_again_from_many_threads_is_applied_once(
    launch: Callable[[Plan], Fleet],
) -> None:
    """Some come before the first is answered, some after; all get the first one's answer."""
    hand = Hand(fleet := launch(Plan(Job(1, mode=Asynchronous()))))
    hand.begin()
    push, answers, clocks, threads = hand.push(), [], 3, 6
    barrier = threading.Barrier(threads, timeout=WAIT_S)

    def send() -> None:
        for clock in range(clocks):
            barrier.wait()
            ones = [torch.ones_like(hand.flats.gradients[0])]
            answers.append((clock, stepped(hand.link.call(hand.push(clock), ones))))

    crowd = [threading.Thread(target=send) for _ in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(WAIT_S)
    assert len(answers) == threads * clocks
    assert all(answer.version == clock + 1 for clock, answer in answers)
    counts = hand.stats().shard
    assert (counts.updates_applied, counts.optimizer_steps) == (clocks, clocks)
    assert counts.duplicates_dropped == (threads - 1) * clocks
    hand.link.exchange(Peek(0), send=False, land=True).wait(WAIT_S)
    torch.testing.assert_close(hand.flats.weights[0], initial(fleet)[0] - float(clocks))
    late = stepped(hand.link.call(push, [torch.ones_like(hand.flats.gradients[0])]))
    assert late == replace(late, duplicate=True, version=clocks), "long ago: only that it is done"


def test_held_answers_block_nobody(launch: Callable[[Plan], Fleet]) -> None:
    fleet = launch(Plan(Job(2, mode=BoundedStaleness(0))))
    hand, other = Hand(fleet), Hand(fleet, 1)
    hand.begin(workers=2)
    held = [hand.link.call(Pull(0, 1)) for _ in range(50)]
    for _ in range(3):
        hand.link.call(Ping(0)).wait(WAIT_S)
        other.link.call(Ping(1)).wait(WAIT_S)
    assert not any(pending.done() for pending in held)
    pushes = [each.link.exchange(each.push(), send=True, land=True) for each in (hand, other)]
    for pending in (*pushes, *held):
        stepped(pending)
    assert all(pending.done() for pending in held)


def test_a_wait_with_a_timeout_can_be_taken_up_again(launch: Callable[[Plan], Fleet]) -> None:
    fleet = launch(Plan(Job(2, mode=Synchronous())))
    hand, other = Hand(fleet), Hand(fleet, 1)
    hand.begin(workers=2)
    before = hand.flats.weights[0].clone()
    hand.flats.gradients[0].fill_(2.0)
    held = hand.link.exchange(hand.push(), send=True, land=True)
    for timeout_s in (0.0, 0.05):
        with pytest.raises(TimeoutError):
            held.wait(timeout_s)
    assert torch.equal(hand.flats.weights[0], before)
    stepped(other.link.exchange(other.push(void=True), send=False, land=True))
    stepped(held)
    torch.testing.assert_close(hand.flats.weights[0], before - 2.0)


def test_a_batch_that_another_worker_did_already_is_not_applied_again(
    launch: Callable[[Plan], Fleet],
) -> None:
    """Its step counts as made, so that it is not held up, but its gradients do not."""
    fleet = launch(Plan(Job(2, mode=Asynchronous())))
    hand, other = Hand(fleet), Hand(fleet, 1)
    hand.begin(workers=2)
    key = Lease(epoch=0, index=3, start=0, stop=8, batch_size=4).key(1)
    for each in (hand, other):
        each.flats.gradients[0].fill_(1.0)
        push = replace(each.push(), key=key)
        assert stepped(each.link.exchange(push, send=True, land=True)).version == 1
        torch.testing.assert_close(each.flats.weights[0], initial(fleet)[0] - 1.0)
    counts = hand.stats().shard
    assert (counts.updates_applied, counts.duplicates_dropped) == (1, 1)
