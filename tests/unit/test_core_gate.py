"""The gate: who may start, who waits, and what a new view changes."""

from __future__ import annotations

import random

import pytest

from psrpc.core.consistency import Gate, Start
from psrpc.messages import View


def gate_of(bound: int | None, **clocks: int) -> Gate:
    """A gate whose workers (w0, w1, ...) step from the given clocks."""
    gate = Gate(bound)
    gate.adopt(View(1, tuple((int(name[1:]), clock) for name, clock in clocks.items())))
    return gate


def ask(gate: Gate, worker: int, clock: int) -> list[int]:
    """Ask with a token equal to the worker; returns the tokens that may go."""
    gate.ask(worker, Start(worker, clock))
    return [ready.token for ready in gate.release()]


@pytest.mark.parametrize(
    ("bound", "ahead", "held"),
    [(0, 0, False), (0, 1, True), (3, 3, False), (3, 4, True), (None, 1000, False)],
)
def test_the_bound_decides_who_waits(bound: int | None, ahead: int, held: bool) -> None:
    gate = gate_of(bound, w0=5, w1=5 + ahead)
    assert ask(gate, 1, 5 + ahead) == ([] if held else [1])
    assert bool(gate.obstacle(Start(1, 5 + ahead))) is held
    assert ask(gate, 0, 5) == [0]


def test_the_obstacle_is_named() -> None:
    gate = gate_of(2, w0=0, w3=3)
    reason = "worker 3 is 3 clocks ahead of the slowest and may be 2"
    assert gate.obstacle(Start(3, 3)) == reason
    assert gate.obstacle(Start(0, 1)) == "worker 0's own step 0 is not applied yet"


def test_the_slowest_lets_the_others_go() -> None:
    gate = gate_of(0, w0=0, w1=1, w2=1)
    assert ask(gate, 1, 1) == []
    assert ask(gate, 2, 1) == []
    gate.finish(0, 0)
    assert (gate.floor, gate.slowest) == (1, 3)
    assert [(r.token, r.lead) for r in gate.release()] == [(1, 0), (2, 0)]
    assert gate.release() == []


def test_the_lead_is_that_of_the_moment() -> None:
    gate = gate_of(3, w0=0, w1=4)
    assert ask(gate, 1, 4) == []
    gate.finish(0, 0)
    assert [r.lead for r in gate.release()] == [3]


def test_a_start_waits_for_its_workers_own_step() -> None:
    gate = gate_of(None, w0=0)
    assert ask(gate, 0, 1) == []
    gate.finish(0, 0)
    assert [r.token for r in gate.release()] == [0]


def test_steps_may_finish_out_of_order() -> None:
    gate = gate_of(None, w0=0)
    gate.finish(0, 1)
    assert gate.clock(0) == 0
    assert not gate.finished(0, 0)
    assert gate.finished(0, 1)
    gate.finish(0, 0)
    assert (gate.clock(0), gate.floor) == (2, 2)
    gate.finish(0, 0)
    assert gate.clock(0) == 2


def test_a_view_lets_those_go_who_waited_for_one_that_is_gone() -> None:
    gate = gate_of(0, w0=0, w1=3)
    assert ask(gate, 1, 3) == []
    assert gate.adopt(View(2, ((1, 3),)))
    assert [r.token for r in gate.release()] == [1]
    assert gate.floor == 3
    assert gate.active == {1}


def test_a_worker_that_joins_below_is_waited_for() -> None:
    gate = gate_of(1, w0=5)
    assert gate.adopt(View(2, ((0, 5), (1, 3))))
    assert gate.floor == 3
    assert ask(gate, 0, 5) == []
    gate.finish(1, 3)
    assert [r.token for r in gate.release()] == [0]


def test_an_old_view_changes_nothing() -> None:
    gate = gate_of(0, w0=0, w1=0)
    assert not gate.adopt(View(1, ((0, 9),)))
    assert not gate.adopt(View(0, ()))
    assert gate.active == {0, 1}
    assert gate.floor == 0


def test_a_view_never_takes_a_clock_back() -> None:
    gate = gate_of(0, w0=4)
    gate.adopt(View(2, ((0, 2), (1, 6))))
    assert (gate.clock(0), gate.clock(1)) == (4, 6)


def test_a_view_takes_a_clock_over_steps_that_are_finished_already() -> None:
    gate = gate_of(None, w0=0)
    gate.finish(0, 5)
    gate.finish(0, 2)
    gate.adopt(View(2, ((0, 5),)))
    assert gate.clock(0) == 6


def test_nobody_stepping_leaves_the_highest_clock() -> None:
    gate = gate_of(0, w0=3, w1=7)
    gate.adopt(View(2, ()))
    assert gate.floor == 7
    assert ask(gate, 0, 3) == [0], "who does not step waits for nobody"


def test_no_worker_at_all() -> None:
    gate = Gate(0)
    assert (gate.floor, gate.clock(3), gate.active) == (0, 0, frozenset())


def test_the_floor_is_the_lowest_clock_whatever_happens() -> None:
    for seed in range(200):
        draw = random.Random(seed)
        bound = draw.choice([0, 1, 3])
        gate = gate_of(bound, **{f"w{w}": draw.randrange(3) for w in range(4)})
        waiting: set[int] = set()
        for epoch in range(2, 60):
            worker = draw.choice(sorted(gate.active))
            if worker not in waiting:
                gate.finish(worker, gate.clock(worker))
                gate.ask(worker, Start(worker, gate.clock(worker)))
                waiting.add(worker)
            if draw.random() < 0.1:
                stay = [(w, 0) for w in range(4) if w in waiting or draw.random() < 0.7]
                gate.adopt(View(epoch, tuple(stay) or ((0, 0),)))
            waiting -= {ready.token for ready in gate.release()}
            assert gate.floor == min(gate.clock(w) for w in gate.active)
            held = {w for w in gate.active if gate.clock(w) - gate.floor > bound} & waiting
            assert waiting == held, f"seed {seed}"
