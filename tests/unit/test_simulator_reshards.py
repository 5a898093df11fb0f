"""Simulated jobs whose servers come and go hold every promise, and broken cores are found out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from psrpc.core.decisions import Decision
from psrpc.core.ledger import Ledger
from psrpc.core.resharding import Resharding
from psrpc.core.shard import ShardCore
from psrpc.messages import Push
from psrpc.orders import Cut
from psrpc.testing.calls import CheckError
from psrpc.testing.resharding import Resharded, main, simulate
from psrpc.testing.schedule import MODES, draw
from psrpc.testing.simulator import SimulationError

SEEDS = 60


@pytest.mark.parametrize("churn", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_promise_is_held_while_servers_come_and_go(mode: str, churn: bool) -> None:
    layouts = [simulate(mode, seed, churn=churn)[-1] for seed in range(SEEDS)]
    assert sum("layout 0" not in line for line in layouts) > SEEDS / 2


def own_data(mode: str) -> list[Resharded]:
    """Jobs whose workers feed themselves, and die, while servers come and go; run and checked."""
    jobs = []
    for seed in range(SEEDS):
        drawn = draw(mode, seed, churn=True, reshards=True)
        if drawn.mishaps:
            own_steps = (15,) * (drawn.workers + len(drawn.mishaps) + len(drawn.joins))
            jobs.append(Resharded(replace(drawn, own_steps=own_steps, departure=None), None))
            jobs[-1].run()
    return jobs


@pytest.mark.parametrize("mode", MODES)
def test_what_the_dead_leave_on_some_servers_holds_no_change_up(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    give_up = Resharding.give_up

    def note(self: Resharding, why: str) -> list[Decision]:
        told.append(why if self.under_way else "")
        return give_up(self, why)

    monkeypatch.setattr(Resharding, "give_up", note)
    jobs = own_data(mode)
    layouts = [job.servers[0].coordinator.resharding.layout for job in jobs]
    assert [why for why in told if "different updates" in why] == []
    assert sum(layout > 0 for layout in layouts) > len(jobs) / 3


def test_the_seeds_cover_what_can_happen() -> None:
    for mode in MODES:
        drawn = [draw(mode, seed, churn=True, reshards=True) for seed in range(SEEDS)]
        wishes = [each for schedule in drawn for each in schedule.reshards]
        assert {each.servers for each in wishes} == {1, 2, 3, 4}
        assert {each.dies for each in wishes} == {None, -1, 1, 2, 3}
        assert any(len(schedule.reshards) == 5 for schedule in drawn)
        assert any(schedule.checkpoints for schedule in drawn)


def test_changes_are_made_given_up_and_made_again() -> None:
    told = ["is in force", "the job goes on with", "is lost", "Moved", "Retire", "Again"]
    seen: set[str] = set()
    for seed in range(120):
        trace = "\n".join(simulate("sync", seed, churn=True, trace=True))
        seen |= {words for words in told if words in trace}
    assert seen == set(told)


def test_the_same_seed_gives_the_same_run() -> None:
    for seed in range(8):
        first, second = (simulate("bounded", seed, churn=True, trace=True) for _ in range(2))
        assert first == second


def fails(mode: str) -> bool:
    """Whether some seed shows that a promise is broken."""
    for seed in range(150):
        try:
            simulate(mode, seed, churn=True)
        except SimulationError:
            return True
    return False


def test_a_shard_that_goes_on_at_the_cut_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = ShardCore._try_cut

    def hasty(self: ShardCore) -> list[Decision]:
        decisions = cut(self)
        return [*decisions, *self._go_on()] if decisions else []

    monkeypatch.setattr(ShardCore, "_try_cut", hasty)
    assert fails("async")


def test_one_that_takes_what_comes_again_for_done_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle = ShardCore.settle

    def forgetful(self: ShardCore, **more: Any) -> None:
        heard = dict(self._heard)
        settle(self, **more)
        self._heard = heard

    monkeypatch.setattr(ShardCore, "settle", forgetful)
    assert fails("backup")


def test_one_that_answers_ahead_of_the_bound_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def again(self: ShardCore, push: Push, token: int) -> Any:
        return [self._repeat(push, token)]

    monkeypatch.setattr(ShardCore, "_again", again)
    assert fails("bounded")


def test_a_layout_of_different_updates_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = Resharding._ready

    def trusting(self: Resharding, word: Any, token: int, shard: ShardCore, here: Any) -> Any:
        assert self._change is not None
        mark = shard.ledger.mark(self._change.dealt or Cut(0))
        return ready(self, replace(word, marks=(mark,)), token, shard, here)

    monkeypatch.setattr(Resharding, "_ready", trusting)
    assert fails("async")


def test_a_digest_without_the_living_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = Ledger.mark

    def leave_out(self: Ledger, cut: Cut) -> str:
        return mark(self, replace(cut, view=None))

    monkeypatch.setattr(Ledger, "mark", leave_out)
    with pytest.raises(CheckError, match="have different updates"):
        own_data("async")


def test_the_command_replays_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mode", "sync", "--seed", "3", "--churn", "--trace"]) == 0
    assert "server 0 <- " in capsys.readouterr().out
