"""The simulator finds out a core that is broken on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from psrpc.core import leases
from psrpc.core.consistency import Gate, Ready
from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.decisions import Decision
from psrpc.core.ledger import Ledger
from psrpc.core.shard import ShardCore
from psrpc.messages import Acquire, Lease, View
from psrpc.testing.simulator import SimulationError, main, simulate

SEEDS = 400

Patch = pytest.MonkeyPatch


def simulate_all(mode: str) -> None:
    for seed in range(SEEDS):
        simulate(mode, seed)


def forget_updates(patch: Patch) -> None:
    patch.setattr(Ledger, "__contains__", lambda self, key: False)


def loosen_the_bound(patch: Patch) -> None:
    original = Gate.__init__

    def init(self: Gate, bound: int | None) -> None:
        original(self, None if bound is None else bound + 1)

    patch.setattr(Gate, "__init__", init)


def overlook_what_has_begun(patch: Patch) -> None:
    original = Gate.ask
    patch.setattr(Gate, "ask", lambda self, t, start: original(self, t, replace(start, ahead=0)))


def take_the_latest_weights_for_granted(patch: Patch) -> None:
    original = ShardCore._began_with
    patch.setattr(
        ShardCore, "_began_with", lambda self, push: original(self, replace(push, read=None))
    )


def bound_the_unbounded(patch: Patch) -> None:
    original = Gate.__init__
    patch.setattr(Gate, "__init__", lambda self, bound: original(self, 0))


def never_release(patch: Patch) -> None:
    def raise_floor(self: Gate) -> None:
        while self._floor not in self._standing:
            self._floor += 1

    patch.setattr(Gate, "_raise_floor", raise_floor)


def never_let_anybody_go(patch: Patch) -> None:
    original = Gate.adopt

    def adopt(self: Gate, view: View) -> bool:
        before = self._active
        newer = original(self, view)
        self._active |= before
        self._standing.update(self._clocks[w] for w in before if w not in dict(view.active))
        self._floor = min(self._standing, default=self._floor)
        return newer

    patch.setattr(Gate, "adopt", adopt)


def hand_out_twice(patch: Patch) -> None:
    original = leases._cut
    calls = iter(range(10**9))

    def cut(state: leases._Epoch, epoch: int, workers: int) -> Lease | None:
        before = (state.position, state.leases)
        lease = original(state, epoch, workers)
        if next(calls) % 7 == 3:
            state.position, state.leases = before
        return lease

    patch.setattr(leases, "_cut", cut)


def hand_out_the_samples_twice(patch: Patch) -> None:
    original = leases._cut
    calls = iter(range(10**9))

    def cut(state: leases._Epoch, epoch: int, workers: int) -> Lease | None:
        before = state.position
        lease = original(state, epoch, workers)
        if next(calls) % 7 == 3:
            state.position = before
        return lease

    patch.setattr(leases, "_cut", cut)


def lose_what_is_given_back(patch: Patch) -> None:
    patch.setattr(leases.LeaseBook, "give_back", lambda self, worker, steps_done: None)


def skip_a_lease_fetched_ahead(patch: Patch) -> None:
    original = leases.LeaseBook.give_back
    patch.setattr(leases.LeaseBook, "give_back", lambda self, w, done: original(self, w, done + 1))


def take_repeats_for_new(patch: Patch) -> None:
    patch.setattr(ShardCore, "_seen", lambda self, push: False)


def take_repeated_words_for_new(patch: Patch) -> None:
    original = CoordinatorCore._repeated

    def repeated(
        self: CoordinatorCore, request: Acquire, serial: int, token: int
    ) -> Decision | None:
        self._words.pop(request.worker, None)
        return original(self, request, serial, token)

    patch.setattr(CoordinatorCore, "_repeated", repeated)


def forget_the_answer(patch: Patch) -> None:
    original = ShardCore._grant

    def grant(self: ShardCore, ready: Ready) -> Decision:
        decision = original(self, ready)
        self._answers.clear()
        return decision

    patch.setattr(ShardCore, "_grant", grant)


def close_rounds_early(patch: Patch) -> None:
    patch.setattr(Gate, "slowest", 1)
    patch.setattr(ShardCore, "_missing", lambda self: [])


def refuse_the_wrong_ones(patch: Patch) -> None:
    original = ShardCore.adopt

    def adopt(self: ShardCore, view: View | None) -> list[Decision]:
        decisions = original(self, view)
        self.gate._active -= {1}
        return decisions

    patch.setattr(ShardCore, "adopt", adopt)


BROKEN: list[tuple[Callable[[Patch], None], str, str]] = [
    (forget_updates, "async", "is applied twice"),
    (forget_updates, "sync", "is applied twice"),
    (loosen_the_bound, "bounded", "clocks ahead"),
    (overlook_what_has_begun, "bounded", r"\+ 1 clocks ahead"),
    (take_the_latest_weights_for_granted, "async", "staleness is|update_lag is"),
    (bound_the_unbounded, "async", "an asynchronous push is held"),
    (never_release, "sync", "does not end"),
    (never_release, "bounded", "does not end"),
    (never_let_anybody_go, "async", "the floor is|and lead"),
    (hand_out_twice, "async", "went to worker"),
    (hand_out_the_samples_twice, "sync", "times applied"),
    (lose_what_is_given_back, "bounded", "times applied"),
    (skip_a_lease_fetched_ahead, "async", "replay"),
    (take_repeats_for_new, "async", "counts|applied|clock"),
    (take_repeated_words_for_new, "bounded", "decisions about|times applied|never answered"),
    (forget_the_answer, "async", "at first"),
    (close_rounds_early, "sync", "is of workers"),
    (refuse_the_wrong_ones, "bounded", "refused|the floor is"),
]


@pytest.mark.parametrize(("breakage", "mode", "found"), BROKEN)
def test_a_broken_core_is_found_out(
    breakage: Callable[[Patch], None], mode: str, found: str, monkeypatch: Patch
) -> None:
    breakage(monkeypatch)
    with pytest.raises(SimulationError, match=found) as caught:
        simulate_all(mode)
    seed = re.search(r"--seed (\d+) ", str(caught.value))
    assert seed is not None
    with pytest.raises(SimulationError, match=found):
        simulate(mode, int(seed[1]))


def test_a_job_that_does_not_end_says_who_waits_for_what(monkeypatch: Patch) -> None:
    never_release(monkeypatch)
    with pytest.raises(SimulationError) as caught:
        simulate_all("sync")
    assert re.search(r"worker \d waits for server \d: Push at clock \d+ .*: .+", str(caught.value))


def test_the_command_fails_where_a_seed_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: Patch
) -> None:
    forget_updates(monkeypatch)
    assert main(["--mode", "sync", "--seeds", "400"]) == 1
    command = r"python -m psrpc.testing.simulator --mode sync --seed \d+ --epochs 2 --trace"
    assert re.search(command, capsys.readouterr().out)
