"""A usual push decided in one look leaves a shard as the same push decided in full."""

import random

import pytest

from psrpc.core.decisions import Answer, Apply
from psrpc.core.shard import ShardCore
from psrpc.messages import Lease, Pull, Push, Stepped, UpdateKey, View
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.orders import Cut
from psrpc.usual import Usual

WORKERS = 3
LEASE = 5  # updates


def pushes(seed: int, count: int = 200) -> list[Push]:
    """Steps of three workers in a random order, some of them sent twice."""
    chance = random.Random(seed)
    clocks = [0] * WORKERS
    made: list[Push] = []
    for _ in range(count):
        worker = chance.randrange(WORKERS)
        if min(clocks) + 2 < clocks[worker]:
            worker = clocks.index(min(clocks))
        clock = clocks[worker]
        key = key_of(worker, clock)
        push = Push(worker, clock, key, samples=8, pull=chance.random() < 0.9)
        made += [push] * (1 + (chance.random() < 0.1))
        clocks[worker] += 1
    return made


def key_of(worker: int, clock: int) -> UpdateKey:
    return lease_of(worker, clock).key(clock % LEASE)


def lease_of(worker: int, clock: int) -> Lease:
    return Lease(0, WORKERS * (clock // LEASE) + worker, 0, 8 * LEASE, 8)


def fronts(core: ShardCore, push: Push) -> tuple[int, int]:
    """How far the coordinator would think that a worker has come, if it died now."""
    lease = lease_of(push.worker, push.clock)
    return (
        core.steps_done(lease, push.worker, settled=True),
        core.steps_done(lease, push.worker, settled=False),
    )


def take(core: ShardCore, push: Push) -> int | None:
    usual = Usual.of(push)
    return None if usual is None else core.quick(usual)


def shard(mode: Mode) -> ShardCore:
    core = ShardCore(mode)
    core.adopt(View(1, tuple((worker, 0) for worker in range(WORKERS))))
    return core


@pytest.mark.parametrize("mode", [Asynchronous(), BoundedStaleness(3)])
@pytest.mark.parametrize("often", [1.0, 0.05])
@pytest.mark.parametrize("seed", range(20))
def test_both_ways_leave_the_same(mode: Mode, often: float, seed: int) -> None:
    """However often somebody looks at the books."""
    full, quick = shard(mode), shard(mode)
    chance = random.Random(seed)
    looks, stale = 0, list[tuple[Push, int]]()
    for token, push in enumerate(pushes(seed)):
        decisions = full.push(push, token)
        lead = take(quick, push)
        if lead is None:
            assert [d[:1] for d in quick.push(push, token)] == [d[:1] for d in decisions]
        else:
            looks += 1
            apply, answer = decisions
            assert isinstance(apply, Apply)
            assert isinstance(answer, Answer)
            assert answer.reply == Stepped(quick.version, lead)
            stale.append((push, apply.staleness[0]))
        assert quick.gate.floor == full.gate.floor
        if chance.random() < often:
            assert quick.record() == full.record()
            assert quick.stats() == full.stats()
            assert fronts(quick, push) == fronts(full, push)
    assert quick.record() == full.record()
    assert quick.stats() == full.stats()
    assert quick.books.take_entered() == stale
    assert quick.books.take_entered() == []
    assert looks > 80, "most pushes are usual"


def unusual() -> dict[str, Push]:
    usual = Push(0, 1, key_of(0, 1), samples=8)
    return {
        "repeated": Push(0, 0, key_of(0, 0), samples=8),
        "of a step to come": Push(0, 2, key_of(0, 2), samples=8),
        "of a step to come, with the next name": Push(0, 2, usual.key, samples=8),
        "of a step that was made, with the next name": Push(0, 0, usual.key, samples=8),
        "of another stream": Push(0, 1, key_of(0, LEASE + 1), samples=8),
        "that skips an update": Push(0, 1, key_of(0, 2), samples=8),
        "of an unknown worker": Push(7, 1, usual.key, samples=8),
        "without gradients": Push(0, 1, usual.key, samples=8, void=True),
        "with others in it": Push(0, 1, usual.key, samples=8, also=(key_of(0, 2),)),
        "with news": Push(0, 1, usual.key, samples=8, view=View(2, ((0, 0),))),
    }


@pytest.mark.parametrize("kind", unusual())
def test_an_unusual_push_is_not_decided_and_changes_nothing(kind: str) -> None:
    core = shard(Asynchronous())
    core.push(Push(0, 0, key_of(0, 0), samples=8), 0)
    before = core.record(), core.stats(), core.gate.clock(0)
    assert take(core, unusual()[kind]) is None
    assert (core.record(), core.stats(), core.gate.clock(0)) == before
    assert take(core, Push(0, 1, key_of(0, 1), samples=8)) is not None


def test_a_whole_lease_is_decided_so_once() -> None:
    core = shard(Asynchronous())
    for clock in range(LEASE):
        assert take(core, Push(0, clock, key_of(0, clock), samples=8)) is not None
    (coverage,) = core.stats().coverage
    assert (coverage.closed, coverage.open) == (((0, 1),), ())
    assert take(core, Push(0, LEASE, key_of(0, 0), samples=8)) is None, "that lease is done"


def test_a_push_that_would_wait_or_let_others_go_is_decided_in_full() -> None:
    core = shard(BoundedStaleness(1))
    for worker in range(WORKERS):
        core.push(Push(worker, 0, key_of(worker, 0), samples=8), worker)
    assert take(core, Push(0, 1, key_of(0, 1), samples=8)) is not None
    assert take(core, Push(0, 2, key_of(0, 2), samples=8)) is None, "it would be 2 ahead"
    core.pull(Pull(0, 3), 10)
    assert take(core, Push(1, 1, key_of(1, 1), samples=8)) is None, "somebody waits"


def test_nothing_is_decided_in_one_look_before_a_checkpoint_is_cut() -> None:
    core = shard(Asynchronous())
    core.push(Push(0, 0, key_of(0, 0), samples=8), 0)
    push = Push(0, 1, key_of(0, 1), samples=8)
    core.halt(1)
    assert take(core, push) is None
    core.cut(Cut(1))
    assert take(core, push) == 2
    assert core.books.take_entered() == [(push, 1)]


@pytest.mark.parametrize("kind", unusual())
def test_an_unusual_push_waits_for_no_round_outside(kind: str) -> None:
    core = shard(Synchronous())
    for worker in range(WORKERS):
        core.push(Push(worker, 0, key_of(worker, 0), samples=8), worker)
    usual = Usual.of(unusual()[kind])
    assert usual is None or not core.may_park(usual)
    mine = Usual.of(Push(0, 1, key_of(0, 1), samples=8))
    assert mine is not None
    assert core.may_park(mine)


def test_a_round_is_decided_in_one_look_when_all_have_come_and_all_are_told() -> None:
    core = shard(Synchronous())
    pushes = [Push(worker, 0, key_of(worker, 0), samples=8) for worker in range(WORKERS)]
    usual = [each for each in map(Usual.of, pushes) if each is not None]
    assert not any(map(core.may_park, usual)), "nobody has shown yet what it knows of the view"
    for worker, push in enumerate(pushes):
        core.push(push, worker)
    following = [
        Usual.part_of(Push(worker, 1, key_of(worker, 1), samples=8)) for worker in range(WORKERS)
    ]
    assert all(map(core.may_park, following))
    assert not core.quick_round(following[:-1])
    assert not core.quick_round([following[0], *following[:-1]])
    assert core.version == 1
    assert core.quick_round(following)
    assert (core.version, core.gate.floor) == (2, 2)
    assert not any(map(core.may_park, following)), "they are made"


def test_a_push_that_waits_for_its_round_inside_keeps_others_from_waiting_outside() -> None:
    core = shard(Synchronous())
    for clock in range(2):
        for worker in range(WORKERS - clock):
            core.push(Push(worker, clock, key_of(worker, clock), samples=8), 10 * clock + worker)
    last = Usual.part_of(Push(WORKERS - 1, 1, key_of(WORKERS - 1, 1), samples=8))
    assert not core.may_park(last)


def test_a_round_is_not_decided_in_one_look_while_somebody_waits() -> None:
    core = shard(Synchronous())
    for worker in range(WORKERS):
        core.push(Push(worker, 0, key_of(worker, 0), samples=8), worker)
    core.pull(Pull(0, 2), 10)
    following = [
        Usual.part_of(Push(worker, 1, key_of(worker, 1), samples=8)) for worker in range(WORKERS)
    ]
    assert not core.quick_round(following)
    assert core.gate.floor == 1


def test_synchronous_steps_are_not_decided_alone() -> None:
    core = shard(Synchronous())
    core.push(Push(0, 0, key_of(0, 0), samples=8), 0)
    assert take(core, Push(1, 0, key_of(1, 0), samples=8)) is None
