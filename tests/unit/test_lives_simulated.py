"""Simulated jobs lose servers without backups, go back, and count each sample once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.membership import Membership
from psrpc.core.shard import ShardCore
from psrpc.store.shard import ShardStore
from psrpc.testing import lives
from psrpc.testing.aging import Fall
from psrpc.testing.lives import main, relive
from psrpc.testing.schedule import MODES
from psrpc.testing.simulator import SimulationError

SEEDS = 12

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("churn", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_each_sample_counts_once_in_whatever_life(mode: str, churn: bool) -> None:
    ages = [relive(mode, seed, churn=churn)[0].life for seed in range(SEEDS)]
    assert max(ages) > 2


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("mode", MODES)
def test_weights_are_those_of_one_process(mode: str, optimizer: str) -> None:
    jobs = [relive(mode, seed, churn=True, optimizer=optimizer)[0] for seed in range(3)]
    assert any(
        job.life > 1 and machine and machine.history for job in jobs for machine in job.serving
    )


def test_servers_die_at_every_point() -> None:
    met = {fall for mode, seed in itertools.product(MODES, range(15)) for fall in died(mode, seed)}
    assert met == set(Fall)


def died(mode: str, seed: int) -> list[Fall]:
    return relive(mode, seed)[0].died


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_run(mode: str) -> None:
    first, second = (relive(mode, 1, churn=True, trace=True)[1] for _ in range(2))
    assert first == second


def test_the_command_replays_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mode", "async", "--seed", "3", "--seeds", "2", "--churn", "--trace"]) == 0
    printed = capsys.readouterr().out
    assert "life 2 begins" in printed
    assert "2 jobs held their promises" in printed


# What is broken on purpose.


def forget_the_ledger(patch: Patch) -> None:
    original = ShardCore.restore

    def restore(self: ShardCore, record: Any) -> None:
        original(self, {**record, "ledger": {"open": [], "closed": []}})

    patch.setattr(ShardCore, "restore", restore)


def forget_what_earlier_epochs_lack(patch: Patch) -> None:
    def go_back(self: CoordinatorCore, first: int) -> None:
        self.members = Membership(self.workers, self.least or 1, first)

    patch.setattr(CoordinatorCore, "go_back", go_back)


def number_all_lives_alike(patch: Patch) -> None:
    patch.setattr(lives, "NUMBERS_A_LIFE", 0)


BROKEN: list[Callable[[Patch], None]] = [
    forget_the_ledger,
    forget_what_earlier_epochs_lack,
    number_all_lives_alike,
]


def relive_all(modes: Sequence[str], seeds: int, **more: Any) -> None:
    for seed, mode in itertools.product(range(seeds), modes):
        relive(mode, seed, **more)


@pytest.mark.parametrize("break_it", BROKEN)
def test_a_broken_life_is_found_out(monkeypatch: Patch, break_it: Callable[[Patch], None]) -> None:
    break_it(monkeypatch)
    with pytest.raises(SimulationError, match=r"replay with: python -m psrpc\.testing\.lives"):
        relive_all(MODES, 100, churn=True)


def test_weights_that_differ_are_found_out(monkeypatch: Patch) -> None:
    original = ShardStore.restore

    def restore(self: ShardStore, image: Any) -> None:
        original(self, image)
        self.flats[0][0] += 2.0**-20

    monkeypatch.setattr(ShardStore, "restore", restore)
    with pytest.raises(SimulationError, match="other weights than one process"):
        relive_all(["async"], 60, optimizer="adam")
