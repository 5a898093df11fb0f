"""Simulated pairs of servers come, go and die, and every promise is held; faults are found out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from psrpc.orders import Cut
from psrpc.testing.migrants import MovingMachine, MovingReplica, Rows, Standing
from psrpc.testing.migrating import main, migrate
from psrpc.testing.ordeal import OF_LAYOUTS
from psrpc.testing.schedule import MODES
from psrpc.testing.simulator import SimulationError

SEEDS = 25


@pytest.mark.parametrize("churn", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_promise_is_held_while_pairs_come_go_and_die(mode: str, churn: bool) -> None:
    jobs = [migrate(mode, seed, churn=churn)[0] for seed in range(SEEDS)]
    layouts = [job.replicas[job.reigns[0].primary].machine.layout for job in jobs]
    assert sum(layout > 0 for layout in layouts) > SEEDS / 3
    assert sum(len(job.struck) for job in jobs) > SEEDS / 2


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weights_are_those_of_one_process(optimizer: str) -> None:
    for seed in range(10):
        migrate("async", seed, optimizer=optimizer)


def test_servers_are_struck_at_every_point_of_a_change() -> None:
    struck = Counter(
        (strike.moment, strike.blow)
        for seed in range(100)
        for strike in migrate("async", seed)[0].struck
    )
    assert {moment for moment, _ in struck} >= set(OF_LAYOUTS)
    assert len(struck) > 40


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (migrate("bounded", 5, churn=True, trace=True)[1] for _ in range(2))
    assert first == second


def fails(mode: str, seeds: int) -> str:
    """What some seed shows to be wrong."""
    for seed in range(seeds):
        try:
            migrate(mode, seed)
        except SimulationError as error:
            return str(error)
    return ""


def test_one_that_is_ready_before_its_backup_has_the_rows_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def take_rows(self: MovingReplica, cut: Cut, standing: list[Standing]) -> None:
        marks = tuple({each.stood.mark for each in standing})
        if self.serves:
            self.machine._take_rows(Rows(cut.layout, standing[0] if standing else None))
            self.say_ready(cut.layout, marks, "" if standing else "a server gave no rows")

    monkeypatch.setattr(MovingReplica, "take_rows", take_rows)
    assert "has no rows of layout" in fails("async", 100)


def test_a_copy_without_the_next_layout_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = MovingMachine.copied

    def forgetful(self: MovingMachine) -> dict[str, Any]:
        state = copied(self)
        layout, _, *rest = state["places"]
        return {**state, "places": (layout, None, *rest)}

    monkeypatch.setattr(MovingMachine, "copied", forgetful)
    assert "has no rows of layout" in fails("async", 400)


def test_an_heir_that_cannot_hear_of_a_cut_that_it_did_not_halt_for_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin_to_take = MovingReplica._begin_to_take

    def insist(self: MovingReplica, cut: Cut) -> None:
        assert cut.layout != self._inherited, "it has halted for no layout"
        begin_to_take(self, cut)

    monkeypatch.setattr(MovingReplica, "_begin_to_take", insist)
    assert "it has halted for no layout" in fails("async", 400)


def test_an_heir_hears_of_a_layout_that_is_in_force_no_more() -> None:
    """Of a new server that died: a later change has come into force before the heir asks."""
    migrate("backup", 300_089, churn=True)


def test_the_command_replays_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mode", "sync", "--seed", "3", "--churn", "--trace"]) == 0
    assert "server 0 <- " in capsys.readouterr().out
