"""Thousands of simulated jobs lose servers, and nothing that a worker was told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from psrpc.core.cutting import Cutting
from psrpc.core.replication import Backup, Primary, Reign
from psrpc.testing.failover import Failover, endure, main
from psrpc.testing.machines import Machine
from psrpc.testing.ordeal import OF_PAIRS, Blow, Moment, draw_ordeal
from psrpc.testing.schedule import MODES
from psrpc.testing.simulator import SimulationError

SEEDS = 40
WITH_TENSORS = 8

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Seen:
    """What happened in a job."""

    struck: frozenset[tuple[Moment, Blow]]
    promoted: int
    cuts: int


@cache
def see(mode: str, seed: int) -> Seen:
    """Look at a job whose workers live; two tests do."""
    job = endure(mode, seed)
    struck = frozenset((strike.moment, strike.blow) for strike in job.struck)
    promoted = sum(r.primary is not None and r.backup.last >= 0 for r in job.replicas)
    return Seen(struck, promoted, job.cuts.made if promoted else 0)


@pytest.mark.parametrize("mode", MODES)
def test_every_promise_is_held_while_servers_die(mode: str) -> None:
    for seed in range(SEEDS):
        see(mode, seed)


@pytest.mark.parametrize("mode", MODES)
def test_every_promise_is_held_while_servers_and_workers_die(mode: str) -> None:
    for seed in range(SEEDS):
        endure(mode, seed, churn=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("mode", MODES)
def test_weights_are_those_of_one_process(mode: str, optimizer: str) -> None:
    steps = 0
    for seed in range(WITH_TENSORS):
        job = endure(mode, seed, churn=True, optimizer=optimizer)
        steps += len(job.replicas[-1].machine.history)
    assert steps > WITH_TENSORS


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_run(mode: str) -> None:
    for seed in range(5):
        first, second = (endure(mode, seed, churn=True, trace=True) for _ in range(2))
        assert first.trace == second.trace
        assert first.struck == second.struck


def test_the_seeds_cover_what_can_happen() -> None:
    for mode in MODES:
        drawn = [draw_ordeal(mode, seed, churn=True) for seed in range(600)]
        strikes = [strike for ordeal in drawn for strike in ordeal.strikes]
        assert {(s.moment, s.blow) for s in strikes} == set(itertools.product(OF_PAIRS, Blow))
        assert {s.other for s in strikes} == {s.returns for s in strikes} == {True, False}
        longer = {(s.blow, s.seconds > o.dead_after_s) for o in drawn for s in o.strikes}
        assert longer == set(itertools.product(Blow, [True, False]))


def test_servers_are_struck_at_every_moment_and_others_take_over() -> None:
    jobs = [see(mode, seed) for mode, seed in itertools.product(MODES, range(SEEDS))]
    struck = {strike for job in jobs for strike in job.struck}
    assert {moment for moment, _ in struck} == set(OF_PAIRS)
    assert {blow for _, blow in struck} == set(Blow)
    assert sum(job.promoted for job in jobs) > 60
    assert sum(job.cuts for job in jobs) > 30, "checkpoints are made all the same"


def test_the_command_replays_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mode", "async", "--seed", "3", "--seeds", "2", "--churn", "--trace"]) == 0
    printed = capsys.readouterr().out
    assert "authority: shard 0 has Reign" in printed
    assert "2 jobs held their promises" in printed


# Servers that are broken on purpose.


def answer_at_once(patch: Patch) -> None:
    patch.setattr(Primary, "settled", property(lambda self: self.last))


def go_on_without_leave(patch: Patch) -> None:
    original = Primary.lose

    def lose(self: Primary[Any], replica: int) -> None:
        original(self, replica)
        self.reign = Reign(self.reign.epoch, self.me)

    patch.setattr(Primary, "lose", lose)


def let_anybody_reign(patch: Patch) -> None:
    """An authority that sets, and does not compare."""
    original = Failover.change

    def change(self: Failover, replica: Any, expected: Reign, wanted: Reign, then: Any) -> None:
        original(self, replica, self.reigns[replica.index], wanted, lambda reign: then(wanted))

    patch.setattr(Failover, "change", change)


def hear_nothing_of_a_deposition(patch: Patch) -> None:
    patch.setattr(Primary, "ruled", lambda self, reign: setattr(self, "reign", reign))


def take_entries_while_claiming(patch: Patch) -> None:
    def take(self: Backup, epoch: int, number: int) -> bool:
        self.epoch, self.last = epoch, number
        return True

    patch.setattr(Backup, "take", take)
    patch.setattr(Backup, "claim", lambda self, seen: seen.alone(self.me))


def name_a_newcomer_too_soon(patch: Patch) -> None:
    """It is named when it is near, whatever was answered that it does not have."""

    def choose(self: Primary[Any]) -> None:
        near = [r for r, has in self._has.items() if has >= 0 and self.last - has <= 8]
        self._chosen = (near[0], -1) if near and self._chosen is None else self._chosen

    patch.setattr(Primary, "_choose", choose)


def copy_all_but_the_ledger(patch: Patch) -> None:
    original = Machine.copied

    def copied(self: Machine) -> dict[str, Any]:
        state = original(self)
        state["cores"][0].ledger = type(state["cores"][0].ledger)()
        return state

    patch.setattr(Machine, "copied", copied)


def copy_all_but_the_cut(patch: Patch) -> None:
    original = Machine.copied

    def copied(self: Machine) -> dict[str, Any]:
        state = original(self)
        state["cores"][0]._cutting = Cutting(state["cores"][0].gate)
        return state

    patch.setattr(Machine, "copied", copied)


def forget_what_was_answered(patch: Patch) -> None:
    """A repeated push is refused by one that took over."""
    original = Machine.copied

    def copied(self: Machine) -> dict[str, Any]:
        state = original(self)
        state["cores"][0].gate = type(self.shard.gate)(self.shard.mode.bound)
        return state

    patch.setattr(Machine, "copied", copied)


# Each with the first of the seeds among which it is found.
BROKEN: list[tuple[Callable[[Patch], None], int]] = [
    (answer_at_once, 0),
    (go_on_without_leave, 0),
    (let_anybody_reign, 0),
    (hear_nothing_of_a_deposition, 0),
    (take_entries_while_claiming, 0),
    (name_a_newcomer_too_soon, 270),
    (copy_all_but_the_ledger, 0),
    (copy_all_but_the_cut, 0),
    (forget_what_was_answered, 0),
]


def endure_all(modes: Sequence[str], seeds: range, **more: Any) -> None:
    for seed in seeds:
        for mode in modes:
            endure(mode, seed, **more)


@pytest.mark.parametrize(("break_it", "first"), BROKEN)
def test_a_broken_server_is_found_out(
    monkeypatch: Patch, break_it: Callable[[Patch], None], first: int
) -> None:
    break_it(monkeypatch)
    with pytest.raises(SimulationError, match=r"replay with: python -m psrpc\.testing\.failover"):
        endure_all(MODES, range(first, first + 100))


def test_weights_that_differ_are_found_out(monkeypatch: Patch) -> None:
    original = Machine.load

    def load(self: Machine, state: dict[str, Any]) -> None:
        original(self, state)
        assert self.weights is not None
        self.weights._store.flats[0][0] += 2.0**-20

    monkeypatch.setattr(Machine, "load", load)
    with pytest.raises(SimulationError, match="other weights than one process"):
        endure_all(["async"], range(60), optimizer="adam")
