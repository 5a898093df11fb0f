"""Whoever reads, reads weights between two updates, never within one: shown by hammering.

Every gradient is all ones and the learning rate 1, so that all elements of a shard have
been lowered by the same whole number at any moment between two updates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from psrpc.job import Job
from psrpc.messages import Peek
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from tests.contract.fleet import Fleet, Plan
from tests.contract.hand import WAIT_S, Hand, initial, stepped

WORKERS, STEPS = 3, 20
# 0.5 MB a shard, over which an optimizer step takes several stretches.
PLAN = {"rows": 256, "columns": 1024}
MODES: list[Mode] = [Synchronous(), BoundedStaleness(2), Asynchronous()]


def lowered(weights: torch.Tensor, start: torch.Tensor) -> int:
    """By how much all elements of a shard have been lowered; fails if not all by the same."""
    steps = (start - weights).round()
    assert steps.min() == steps.max(), "an update is half applied"
    torch.testing.assert_close(weights, start - steps[0], atol=1e-4, rtol=0.0)
    return int(steps[0])


def push_and_look(
    hand: Hand, starts: list[torch.Tensor], seen: list[int], looked: threading.Event
) -> None:
    for clock in range(STEPS):
        if clock == STEPS // 2:
            assert looked.wait(WAIT_S), "nobody has looked on"
        at_once = clock % 3 != 2
        for buffers in hand.buffers:
            for flat in buffers.gradients:
                flat.fill_(1.0)
        pending = [
            link.exchange(hand.push(clock), send=True, land=True, at_once=at_once)
            for link in hand.links
        ]
        if not at_once:
            for buffers in hand.buffers:
                buffers.turn()
        for each in pending:
            stepped(each)
        for buffers, start in zip(hand.buffers, starts, strict=True):
            seen.append(lowered(buffers.weights[0], start))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_no_reader_sees_a_half_applied_update(launch: Callable[[Plan], Fleet], mode: Mode) -> None:
    fleet = launch(Plan(Job(WORKERS, servers=2, mode=mode), **PLAN))
    starts = initial(fleet)
    hands = [Hand(fleet, worker) for worker in range(WORKERS)]
    for hand in hands:
        hand.begin(WORKERS)
    seen: list[list[int]] = [[] for _ in hands]
    errors: list[BaseException] = []
    onlooker, looked = Hand(fleet, 0), threading.Event()

    def hammer(hand: Hand) -> None:
        try:
            push_and_look(hand, starts, seen[hand.worker], looked)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=hammer, args=(hand,), daemon=True) for hand in hands]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for link, buffers, start in zip(onlooker.links, onlooker.buffers, starts, strict=True):
            link.exchange(Peek(0), send=False, land=True).wait(WAIT_S)
            lowered(buffers.weights[0], start)
        looked.set()
    assert errors == []
    assert looked.is_set()
    total = STEPS if mode == Synchronous() else WORKERS * STEPS
    assert max(max(values) for values in seen) == total
