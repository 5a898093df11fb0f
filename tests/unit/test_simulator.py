"""Thousands of simulated jobs hold every promise."""

from __future__ import annotations

import itertools

import pytest

from psrpc.errors import UsageError
from psrpc.modes import Asynchronous, BoundedStaleness, Synchronous
from psrpc.testing.clock import ManualClock
from psrpc.testing.events import EventHeap
from psrpc.testing.schedule import MODES, Fate, Manner, Point, draw
from psrpc.testing.simulator import main, simulate

# Seeds from 150 on bring next to nothing that those before have not brought: of the 1400 ways from
# line to line that the core goes, one is seen first in the next 650. The last of the faults in
# test_simulator_finds_faults.py to be found needs seed 367.
SEEDS = 400
CHURN_SEEDS = 300
RARE_SEEDS = 500
BLOCK = 100


def churn_seeds(mode: str) -> list[int]:
    """The first of them, and those of more in which a worker loses server 3, which is rare."""
    rare = [
        seed
        for seed in range(CHURN_SEEDS, RARE_SEEDS)
        if any(
            mishap.fate is Fate.CUT and mishap.server == 3
            for mishap in draw(mode, seed, churn=True).mishaps
        )
    ]
    return [*range(CHURN_SEEDS), *rare]


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
@pytest.mark.parametrize("mode", MODES)
def test_every_promise_is_held(mode: str, first: int) -> None:
    for seed in range(first, first + BLOCK):
        simulate(mode, seed)


@pytest.mark.parametrize("mode", MODES)
def test_every_promise_is_held_while_workers_die_and_come(mode: str) -> None:
    for seed in churn_seeds(mode):
        simulate(mode, seed, churn=True)


@pytest.mark.parametrize("churn", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_run(mode: str, churn: bool) -> None:
    for seed in range(20):
        first, second = (simulate(mode, seed, churn=churn, trace=True) for _ in range(2))
        assert first == second


def test_given_sizes_are_not_drawn() -> None:
    report = simulate("async", 5, workers=7, servers=4, epochs=1)
    assert (report.schedule.workers, report.schedule.servers) == (7, 4)
    assert len(report.stats) == 4


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="there are sync, bounded, async, backup"):
        simulate("eventual", 1)


def test_the_seeds_cover_what_can_happen() -> None:
    for mode in MODES:
        drawn = [draw(mode, seed) for seed in range(SEEDS)]
        assert {s.workers for s in drawn} == {1, 2, 3, 4} - ({1} if mode == "backup" else set())
        assert {s.servers for s in drawn} == {1, 2, 3, 4}
        assert {len(s.checkpoints) for s in drawn} == {0, 1, 3}
        manners = {s.departure.manner for s in drawn if s.departure}
        assert manners == set(Manner)
        assert any(s.pause for s in drawn)
        assert any(s.voids for s in drawn)
        assert any(s.folds for s in drawn)
        assert any(s.blind for s in drawn)
        assert any(len(set(s.own_steps)) > 1 for s in drawn)
        assert any(len(set(s.own_steps)) == 1 for s in drawn)
        assert any(s.weather.loss > 0.19 and s.weather.duplication > 0.1 for s in drawn)
    bounds = {draw("bounded", seed).mode for seed in range(100)}
    assert bounds == {BoundedStaleness(k) for k in range(5)}
    assert draw("sync", 0).mode == Synchronous()
    assert draw("async", 0).mode == Asynchronous()
    backups = {draw("backup", seed).mode for seed in range(100)}
    assert backups == {Synchronous(k) for k in (1, 2, 3)}


def test_the_churn_seeds_cover_what_can_happen() -> None:
    for mode in MODES:
        drawn = [draw(mode, seed, churn=True) for seed in churn_seeds(mode)]
        mishaps = [(each, s) for s in drawn for each in s.mishaps]
        assert {(m.fate, m.point) for m, _ in mishaps} == set(itertools.product(Fate, Point))
        links = {(m.point, m.server) for m, _ in mishaps if m.fate is Fate.CUT}
        assert links == set(itertools.product(Point, (None, 0, 1, 2, 3)))
        assert {m.returns for m, _ in mishaps if m.fate is Fate.KILL} == {True, False}
        for fate in (Fate.STOP, Fate.CUT):
            noticed = {m.seconds > s.dead_after_s for m, s in mishaps if m.fate is fate}
            assert noticed == {True, False}, "some are over before anybody takes it for dead"
        assert {len(s.joins) for s in drawn} == {0, 1, 2}
        assert any(len({m.rank for m in s.mishaps}) > 2 for s in drawn)
        assert any(s.departure for s in drawn)
        assert any(s.folds for s in drawn)
        assert mode in ("sync", "backup") or any(s.overlap for s in drawn)
        assert not any(s.own_steps for s in drawn)


@pytest.mark.parametrize("mode", MODES)
def test_workers_do_die_come_back_and_join(mode: str) -> None:
    """What happens in a run, not only what its schedule says."""
    told = ["is lost: its connection was closed", "is lost: it is silent", "again=True"]
    told += ["FencedError", "Watch", "JobOverError"]
    seen: set[str] = set()
    for seed in range(60):
        trace = "\n".join(simulate(mode, seed, churn=True, trace=True).trace)
        seen |= {words for words in told if words in trace}
    assert seen == set(told)


@pytest.mark.parametrize("mode", ["sync", "bounded"])
def test_fast_workers_are_held(mode: str) -> None:
    held = [simulate(mode, seed, workers=4).holds for seed in range(40)]
    assert sum(count > 0 for count in held) > 20


def test_the_command_replays_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mode", "bounded", "--seed", "12", "--workers", "2", "--trace"]) == 0
    printed = capsys.readouterr().out
    assert "its turn has come" in printed
    assert "seed 12: " in printed


def test_the_command_replays_a_seed_with_churn(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mode", "async", "--seed", "6", "--seeds", "2", "--churn", "--trace"]) == 0
    printed = capsys.readouterr().out
    assert "is lost: " in printed
    assert printed.count("held its promises") == 2


# The clock and the heap under it.


def test_a_manual_clock_goes_on_when_told() -> None:
    clock = ManualClock(5.0)
    clock.advance(2.0)
    clock.advance_to(6.0)
    assert clock.now() == 7.0
    clock.advance_to(9.5)
    assert clock.now() == 9.5
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1.0)


def test_events_run_in_order_and_may_add_others() -> None:
    events = EventHeap(ManualClock())
    seen: list[tuple[float, str]] = []

    def note(name: str) -> None:
        seen.append((events.clock.now(), name))
        if name == "b":
            events.after(1.0, note, "d")

    events.after(2.0, note, "c")
    events.after(1.0, note, "a")
    events.after(1.0, note, "b")
    assert events.run(limit_s=10.0, limit_events=100)
    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c"), (2.0, "d")]


def test_events_stop_at_a_limit() -> None:
    events = EventHeap(ManualClock())

    def again() -> None:
        events.after(1.0, again)

    again()
    assert not events.run(limit_s=5.0, limit_events=100)
    assert events.events_run == 5
    again()
    assert not events.run(limit_s=1e9, limit_events=50)
    assert events.events_run == 50
