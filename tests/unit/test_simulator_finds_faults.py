"""The simulator finds out a core that is broken on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from psrpc.core import leases
from psrpc.core.consistency import Gate, Ready
from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.counting import Counting
from psrpc.core.cutting import Cutting
from psrpc.core.decisions import Decision
from psrpc.core.ledger import Ledger
from psrpc.core.membership import Membership
from psrpc.core.newsroom import Newsroom
from psrpc.core.progress import Progress
from psrpc.core.rounds import Rounds
from psrpc.core.shard import ShardCore
from psrpc.core.told import Told
from psrpc.messages import Lease, Register, Reply, View
from psrpc.orders import Cut
from psrpc.testing.simulator import SimulationError, main, simulate

SEEDS = 400

Patch = pytest.MonkeyPatch


def simulate_all(mode: str, *, churn: bool = False, first: int = 0) -> None:
    for seed in range(first, SEEDS):
        simulate(mode, seed, churn=churn)


def forget_updates(patch: Patch) -> None:
    patch.setattr(Ledger, "__contains__", lambda self, key: False)


def loosen_the_bound(patch: Patch) -> None:
    original = Gate.__init__

    def init(self: Gate, bound: int | None) -> None:
        original(self, None if bound is None else bound + 1)

    patch.setattr(Gate, "__init__", init)


def overlook_what_has_begun(patch: Patch) -> None:
    original = Gate.ask
    patch.setattr(Gate, "ask", lambda self, t, start: original(self, t, start._replace(ahead=0)))


def take_the_latest_weights_for_granted(patch: Patch) -> None:
    original = Counting._began_with
    patch.setattr(
        Counting, "_began_with", lambda self, push: original(self, replace(push, read=None))
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
        lease = original(state, epoch, workers)
        if lease is not None and next(calls) % 7 == 3:
            state.stops.pop()
        return lease

    patch.setattr(leases, "_cut", cut)


def hand_out_the_samples_twice(patch: Patch) -> None:
    original = leases._cut

    def cut(state: leases._Epoch, epoch: int, workers: int) -> Lease | None:
        lease = original(state, epoch, workers)
        if lease is None or not lease.start:
            return lease
        return replace(lease, start=lease.start - 1, stop=lease.stop - 1)

    patch.setattr(leases, "_cut", cut)


def lose_what_is_given_back(patch: Patch) -> None:
    original = leases.LeaseBook.give_back

    def give_back(
        self: leases.LeaseBook, worker: int, steps_done: leases.StepsDone, *, before: int | None
    ) -> list[Lease]:
        freed = original(self, worker, steps_done, before=before)
        for lease in freed:
            self._epochs[lease.epoch].returned.remove(lease)
        return freed

    patch.setattr(leases.LeaseBook, "give_back", give_back)


def hand_on_from_too_far(patch: Patch) -> None:
    original = ShardCore.steps_done
    patch.setattr(
        ShardCore,
        "steps_done",
        lambda self, lease, worker, *, settled: original(self, lease, worker, settled=settled) + 1,
    )


def take_repeats_for_new(patch: Patch) -> None:
    patch.setattr(ShardCore, "_seen", lambda self, push: False)


def take_repeated_words_for_new(patch: Patch) -> None:
    original = CoordinatorCore._repeated

    def repeated(self: CoordinatorCore, worker: int, serial: int, token: int) -> Decision | None:
        self._words.lose(worker, "")
        return original(self, worker, serial, token)

    patch.setattr(CoordinatorCore, "_repeated", repeated)


def forget_the_answer(patch: Patch) -> None:
    original = ShardCore._grant

    def grant(self: ShardCore, ready: Ready) -> Decision:
        decision = original(self, ready)
        self.books.answers.clear()
        return decision

    patch.setattr(ShardCore, "_grant", grant)


def close_rounds_early(patch: Patch) -> None:
    patch.setattr(Gate, "slowest", 1)
    patch.setattr(Rounds, "missing", lambda self: [])


def refuse_the_wrong_ones(patch: Patch) -> None:
    original = ShardCore.adopt

    def adopt(self: ShardCore, view: View | None) -> list[Decision]:
        decisions = original(self, view)
        self.gate._active -= {1}
        return decisions

    patch.setattr(ShardCore, "adopt", adopt)


def take_every_push_for_settled(patch: Patch) -> None:
    original = ShardCore.steps_done
    patch.setattr(
        ShardCore,
        "steps_done",
        lambda self, lease, worker, *, settled: original(self, lease, worker, settled=True),
    )


def keep_what_the_dead_pushed(patch: Patch) -> None:
    patch.setattr(ShardCore, "_drop_absent", lambda self: [])


def let_the_dead_wait_on(patch: Patch) -> None:
    patch.setattr(Gate, "withdraw", lambda self, token: None)


def give_numbers_twice(patch: Patch) -> None:
    original = Membership.join

    def join(self: Membership, rank: int | None) -> int:
        self._next = next(n for n in range(99) if n not in self._ranks)
        return original(self, rank)

    patch.setattr(Membership, "join", join)


def fold_whatever_comes(patch: Patch) -> None:
    patch.setattr(Progress, "may_fold", lambda self, following: True)


def tell_no_server(patch: Patch) -> None:
    patch.setattr(CoordinatorCore, "news", lambda self, rounds: [])


def end_epochs_with_their_last_lease_handed_out(patch: Patch) -> None:
    def closed(self: leases.LeaseBook, epoch: int) -> bool:
        state = self._epochs.get(epoch)
        return state is not None and state.position == state.samples

    patch.setattr(leases.LeaseBook, "closed", closed)


def take_repeated_comings_for_new(patch: Patch) -> None:
    original = CoordinatorCore.register

    def register(
        self: CoordinatorCore, request: Register, token: int, shard: ShardCore
    ) -> list[Decision]:
        self._comings.pop(request.worker, None)
        return original(self, request, token, shard)

    patch.setattr(CoordinatorCore, "register", register)


def wait_for_the_dead(patch: Patch) -> None:
    def lose(self: Membership, worker: int) -> None:
        self._ranks.pop(worker, None)
        self.lost += 1

    patch.setattr(Membership, "lose", lose)


def let_every_shard_decide(patch: Patch) -> None:
    original = Rounds.__init__

    def init(self: Rounds, gate: Gate, backups: int, *, follows: bool) -> None:
        original(self, gate, backups, follows=False)
        self.decides = not follows

    patch.setattr(Rounds, "__init__", init)


def go_on_with_one_more_backup(patch: Patch) -> None:
    original = Rounds._enough
    patch.setattr(Rounds, "_enough", lambda self: max(original(self) - 1, 1))


def lose_what_came_too_late(patch: Patch) -> None:
    patch.setattr(leases.LeaseBook, "take_back", lambda self, worker, key: None)


def keep_weights_of_two_rounds(patch: Patch) -> None:
    original = Progress._take_in

    def take_in(self: Progress, replies: list[Reply | None], usual: int) -> list[int]:
        clocks = original(self, replies, usual)
        self.apart = False
        return clocks

    patch.setattr(Progress, "_take_in", take_in)


def tell_workers_of_no_view(patch: Patch) -> None:
    patch.setattr(Told, "news_for", lambda self, worker: None)


def take_steps_while_halted(patch: Patch) -> None:
    patch.setattr(Cutting, "holds", lambda self, push: False)


def cut_where_shard_0_is(patch: Patch) -> None:
    original = Newsroom.cut

    def cut(self: Newsroom, view: View) -> Cut | None:
        self._census = dict.fromkeys(self._census, self._census.get(0, ()))
        return original(self, view)

    patch.setattr(Newsroom, "cut", cut)


def close_rounds_while_halted(patch: Patch) -> None:
    patch.setattr(Cutting, "lets_close", lambda self: True)


BROKEN: list[tuple[Callable[[Patch], None], str, str]] = [
    (forget_updates, "async", "is applied twice"),
    (forget_updates, "sync", "is applied twice"),
    (loosen_the_bound, "bounded", "clocks ahead"),
    (overlook_what_has_begun, "bounded", r"\+ 1 clocks ahead|max_clock_gap is"),
    (take_the_latest_weights_for_granted, "async", "staleness is|update_lag is"),
    (bound_the_unbounded, "async", "an asynchronous push is held"),
    (never_release, "sync", "does not end"),
    (never_release, "bounded", "does not end"),
    (never_let_anybody_go, "async", "the floor is|should be"),
    (hand_out_twice, "async", "went to worker"),
    (hand_out_the_samples_twice, "sync", "times applied"),
    (lose_what_is_given_back, "bounded", "does not end"),
    (hand_on_from_too_far, "async", "times applied"),
    (take_repeats_for_new, "async", "counts|applied|clock"),
    (take_repeated_words_for_new, "bounded", "went to worker|decisions about|never answered"),
    (forget_the_answer, "async", "at first"),
    (close_rounds_early, "sync", "is of workers"),
    (refuse_the_wrong_ones, "bounded", "refused|the floor is"),
    (let_every_shard_decide, "backup", r"times applied\) .*, 0\)|round .* is of|does not end"),
    (go_on_with_one_more_backup, "backup", "is of workers"),
    (lose_what_came_too_late, "backup", r"does not end|times applied\) .*, 0\)"),
    (take_steps_while_halted, "async", "differs on shards|has not what"),
    (cut_where_shard_0_is, "async", "differs on shards"),
    (close_rounds_while_halted, "sync", "differs on shards"),
]


# What only churn brings to light.
BROKEN_AT_DEATHS: list[tuple[Callable[[Patch], None], str, str]] = [
    (lose_what_is_given_back, "sync", "does not end"),
    (lose_what_is_given_back, "async", "does not end"),
    (hand_on_from_too_far, "sync", r"times applied\) .*, 0\)"),
    (hand_on_from_too_far, "bounded", r"times applied\) .*, 0\)"),
    (take_every_push_for_settled, "sync", r"times applied\) .*, 0\)"),
    (take_every_push_for_settled, "async", r"times applied\) .*, 0\)"),
    (keep_what_the_dead_pushed, "sync", "that are not held"),
    (let_the_dead_wait_on, "bounded", "is answered twice"),
    (give_numbers_twice, "sync", "went to worker|should be|AssertionError|KeyError"),
    (give_numbers_twice, "bounded", "should be|AssertionError|KeyError"),
    (fold_whatever_comes, "bounded", r"times applied\) .*, 0\)|applied twice"),
    (fold_whatever_comes, "async", r"times applied\) .*, 0\)|applied twice"),
    (tell_no_server, "sync", "does not end"),
    (tell_no_server, "bounded", "does not end"),
    (end_epochs_with_their_last_lease_handed_out, "sync", "mixes epochs|times applied"),
    (end_epochs_with_their_last_lease_handed_out, "async", r"times applied\) .*, 0\)"),
    (take_repeated_comings_for_new, "async", "does not end"),
    (tell_workers_of_no_view, "sync", "round .* is of workers"),
    (wait_for_the_dead, "sync", "does not end"),
    (wait_for_the_dead, "bounded", "does not end"),
]


# Seeds below these do not find it.
FIRST_SEEDS = {close_rounds_while_halted: 360}


def find_out(mode: str, found: str, *, churn: bool, first: int = 0) -> None:
    with pytest.raises(SimulationError, match=found) as caught:
        simulate_all(mode, churn=churn, first=first)
    seed = re.search(r"--seed (\d+) ", str(caught.value))
    assert seed is not None
    with pytest.raises(SimulationError, match=found):
        simulate(mode, int(seed[1]), churn=churn)


@pytest.mark.parametrize(("breakage", "mode", "found"), BROKEN)
def test_a_broken_core_is_found_out(
    breakage: Callable[[Patch], None], mode: str, found: str, monkeypatch: Patch
) -> None:
    breakage(monkeypatch)
    find_out(mode, found, churn=False, first=FIRST_SEEDS.get(breakage, 0))


@pytest.mark.parametrize(("breakage", "mode", "found"), BROKEN_AT_DEATHS)
def test_a_core_that_is_broken_at_deaths_is_found_out(
    breakage: Callable[[Patch], None], mode: str, found: str, monkeypatch: Patch
) -> None:
    breakage(monkeypatch)
    find_out(mode, found, churn=True)


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


def test_the_command_that_replays_a_job_with_churn_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: Patch
) -> None:
    lose_what_is_given_back(monkeypatch)
    assert main(["--mode", "sync", "--seeds", "400", "--churn"]) == 1
    assert re.search(r"--seed \d+ --epochs 2 --churn --trace", capsys.readouterr().out)
