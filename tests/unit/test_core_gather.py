"""Pushes whose gradients are elsewhere: which of them make a round, before a shard has any."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from psrpc.core.decisions import Apply, Decision
from psrpc.core.shard import ShardCore
from psrpc.messages import Push
from psrpc.modes import Synchronous
from psrpc.orders import Cut
from tests.unit.test_core_shard import core_of, key_of, push_of, view_of


def gathered(core: ShardCore, *pushes: Push) -> list[tuple[int, bool]] | None:
    """Whose pushes make the round, and whether they carry something."""
    found = core.gather(pushes)
    return None if found is None else [(push.worker, carries) for push, carries in found]


def test_a_round_is_complete_with_all_that_it_lacks() -> None:
    core = core_of(Synchronous(), 0, 1, 2)
    first, second, third = (push_of(worker, 0) for worker in range(3))
    assert gathered(core, first, third) is None
    assert gathered(core, third, first, second) == [(0, True), (1, True), (2, True)]
    core.push(second, 5)
    assert gathered(core, third, first) == [(0, True), (2, True)]
    assert gathered(core, third, first, second) == [(0, True), (2, True)], "one is there already"
    assert core.version == 0, "to ask changes nothing"


def test_those_of_other_rounds_and_of_strangers_are_left_out() -> None:
    core = core_of(Synchronous(), 0, 1)
    pushes = [push_of(worker, clock) for worker in (0, 1) for clock in (0, 1)]
    assert gathered(core, *pushes, push_of(7, 0)) == [(0, True), (1, True)]
    assert [p.clock for p, _ in core.gather(pushes) or ()] == [0, 0]
    assert gathered(core, push_of(0, 1), push_of(1, 1)) is None
    assert gathered(core) is None


def test_who_is_dead_is_not_waited_for() -> None:
    core = core_of(Synchronous(), 0, 1)
    assert gathered(core, push_of(0, 0)) is None
    core.adopt(view_of(2, 0))
    assert gathered(core, push_of(0, 0)) == [(0, True)]
    assert not core.wants(push_of(1, 0)), "it is refused, without its gradients"


def test_what_is_applied_carries_nothing() -> None:
    core = core_of(Synchronous(), 0, 1)
    for worker in (0, 1):
        core.push(push_of(worker, 0), worker)
    twice = push_of(1, 1, key=key_of(0, 0))
    assert gathered(core, push_of(0, 1), twice) == [(0, True), (1, False)]
    assert gathered(core, push_of(0, 1), push_of(1, 1, key=key_of(0, 1))) == [(0, True), (1, False)]
    core.push(push_of(0, 1), 7)
    assert gathered(core, push_of(1, 1, key=key_of(0, 1))) == [(1, False)]


def test_a_push_is_wanted_once() -> None:
    core = core_of(Synchronous(), 0, 1)
    assert core.wants(push_of(0, 0))
    core.push(push_of(0, 0), 5)
    assert not core.wants(push_of(0, 0))
    core.push(push_of(1, 0), 6)
    assert not core.wants(push_of(0, 0))
    assert core.wants(push_of(0, 1))


def test_a_round_after_a_cut_waits_for_it() -> None:
    core = core_of(Synchronous(), 0, 1)
    pushes = [push_of(worker, 0) for worker in (0, 1)]
    core.halt(3)
    assert gathered(core, *pushes) is None
    core.cut(Cut(3, ((0, 0), (1, 0)), "folder", view_of(1, 0, 1)))
    assert gathered(core, *pushes) == [(0, True), (1, True)], "the image is made"
    assert gathered(core, *pushes) == [(0, True), (1, True)]
    core.halt(4)
    assert gathered(core, *pushes) is None
    core.cut(Cut(4, ((0, 1), (1, 1)), "folder", view_of(1, 0, 1)))
    assert gathered(core, *pushes) == [(0, True), (1, True)], "it comes before the cut"


def applied(decisions: Sequence[Decision], pushes: dict[int, Push]) -> list[set[Push]]:
    """Of what the steps were made."""
    steps = [decision for decision in decisions if isinstance(decision, Apply)]
    return [{pushes[token] for token in step.tokens} for step in steps]


@pytest.mark.parametrize("seed", range(200))
def test_what_is_gathered_is_what_a_shard_makes_of_the_same_pushes(seed: int) -> None:
    """Some pushes come by themselves, some are gathered, some repeat an update; workers die."""
    choose = random.Random(seed)
    workers = list(range(choose.randint(1, 5)))
    plain, other = core_of(Synchronous(), *workers), core_of(Synchronous(), *workers)
    tokens: dict[int, Push] = {}
    epoch = 1
    for clock in range(12):
        if len(workers) > 1 and choose.random() < 0.1:
            workers.remove(choose.choice(workers))
            epoch += 1
            for core in (plain, other):
                core.adopt(view_of(epoch, *workers, clock=clock))
        pushes = {}
        for worker in choose.sample(workers, len(workers)):
            old = choose.random() < 0.2 and clock > 0
            key = key_of(choose.choice(workers), choose.randrange(clock)) if old else None
            key = key or key_of(worker, clock)
            pushes[len(tokens)] = tokens[len(tokens)] = push_of(worker, clock, key=key)
        waiting = [token for token in pushes if choose.random() < 0.7]
        steps, made = [], []
        order = [*(t for t in pushes if t not in waiting), *sorted(waiting, key=_worker(pushes))]
        for token in order:
            steps += applied(plain.push(pushes[token], token), tokens)
        for token in order:
            if token not in waiting:
                assert other.gather([pushes[t] for t in waiting[1:]]) is None
                made += applied(other.push(pushes[token], token), tokens)
        if waiting:
            found = other.gather([pushes[token] for token in waiting])
            assert found is not None
            carriers = {push for push, carries in found if carries}
            for token in order:
                if token in waiting:
                    made += applied(other.push(pushes[token], token), tokens)
            mixed = set(pushes.values()) - {push for push, _ in found}
            assert [step - mixed for step in made] == ([carriers] if made else [])
        assert made == steps
    assert other.record() == plain.record()


def _worker(pushes: dict[int, Push]):  # type: ignore[no-untyped-def]
    return lambda token: pushes[token].worker
