"""Rounds whose gradients were added up elsewhere: taken in at once, by a server and its backup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from psrpc.core.replication import Reign
from psrpc.errors import PeerLostError, decode
from psrpc.messages import Failure, Push, Stepped, View
from psrpc.modes import Reduction, Synchronous
from psrpc.planes.base import Payload
from psrpc.replication.follower import Ending
from psrpc.replication.state import digest
from psrpc.store.shard import Contribution, Joint, reduce
from tests.unit.test_replication import PATIENCE_S, Pair, Stage, begin, key_of, push


def pushes_of(clock: int) -> list[Push]:
    """Both workers' pushes at a clock, one of which is of twice as many samples."""
    return [Push(w, clock, key_of(w, clock), samples=1 + w) for w in (0, 1)]


def total_of(stage: Stage, clock: int) -> list[torch.Tensor]:
    """The mean of what `push` sends for both workers."""
    sums = [torch.zeros_like(flat) for flat in stage.store.flats]
    for worker in (0, 1):
        torch.manual_seed(100 * worker + clock)
        for total, flat in zip(sums, stage.store.flats, strict=True):
            total += torch.randn_like(flat) * (1 + worker) / 3
    return sums


class Answers(list[Payload]):
    """The answers to some pushes, in the order in which they came."""

    def to(self, pushes: Sequence[Push]) -> list[Any]:
        return [self.append] * len(pushes)

    @property
    def replies(self) -> list[Any]:
        return [reply for reply, _ in self]


def join(rounds: Any, stage: Stage, clock: int, answers: Answers | None = None) -> bool:
    pushes = pushes_of(clock)
    answers = Answers() if answers is None else answers
    return bool(rounds.join(pushes, total_of(stage, clock), answers.to(pushes)))


@pytest.mark.parametrize("reduction", Reduction)
def test_a_sum_is_reduced_as_its_parts_would_be(reduction: Reduction) -> None:
    parts = [torch.randn(5, dtype=torch.float64) for _ in range(4)]
    samples = [3, 1, 2, 4]
    whole = reduce([Contribution([p], s) for p, s in zip(parts, samples, strict=True)], reduction)
    joint = Joint([sum(p * s / 4 for p, s in zip(parts[:2], samples[:2], strict=True))])  # type: ignore[list-item]
    if reduction is Reduction.SUM:
        joint = Joint([parts[0] + parts[1]])
    mixed = [Contribution(joint, 3), Contribution([parts[2]], 2), Contribution(joint, 1)]
    found = reduce([*mixed, Contribution([parts[3]], 4)], reduction)
    torch.testing.assert_close(found[0].whole(), whole[0].whole())
    (alone,) = reduce([Contribution(joint, 3), Contribution(joint, 1)], reduction)
    assert alone.whole() is joint[0], "it is taken as it is"


def test_a_round_that_is_joined_is_the_round_that_is_pushed() -> None:
    joined, pushed = (Stage(Synchronous(), partial(torch.optim.SGD, lr=0.1)) for _ in range(2))
    for stage in (joined, pushed):
        begin(stage.coordinator, stage)
    answers = Answers()
    for clock in range(3):
        assert join(joined.server, joined, clock, answers)
        for worker in (0, 1):
            push(pushed.coordinator, pushed, worker, clock)
    assert answers.replies == [Stepped(1)] * 2 + [Stepped(2)] * 2 + [Stepped(3)] * 2
    for mine, theirs in zip(joined.store.flats, pushed.store.flats, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert joined.server.core.record() == pushed.server.core.record()


def test_what_is_no_round_any_more_changes_nothing() -> None:
    stage = Stage(Synchronous())
    begin(stage.coordinator, stage)
    before = digest(stage.coordinator)
    answers = Answers()
    one = pushes_of(0)[:1]
    assert not stage.server.join(one, total_of(stage, 0), answers.to(one))
    assert not join(stage.server, stage, 1, answers)
    alone = View(99, ((0, 0),))
    stage.server.adopt(alone)  # the other one has died
    assert not join(stage.server, stage, 0, answers)
    assert (digest(stage.coordinator), answers) == (before, [])
    assert stage.server.join(one, total_of(stage, 0), answers.to(one))
    assert answers.replies == [Stepped(1, view=alone)]


def test_a_push_that_is_new_needs_its_gradients_and_a_repeated_one_does_not() -> None:
    stage = Stage(Synchronous())
    begin(stage.coordinator, stage)
    answers = Answers()
    first, _ = pushes_of(0)
    assert not stage.server.repeat(first, answers.append)
    join(stage.server, stage, 0)
    assert stage.server.repeat(first, answers.append)
    assert stage.server.repeat(replace(first, worker=7), answers.append)
    (again, weights), (refused, _) = answers
    assert again == Stepped(1)
    assert all(map(torch.equal, weights, stage.store.flats))
    assert isinstance(refused, Failure)
    assert refused.error[0] == "FencedError"


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr("psrpc.replication.primary.CHECK_EVERY", 1)
    pair = Pair(mode=Synchronous())
    yield pair
    pair.close()


def test_a_backup_has_a_round_that_was_answered(pair: Pair) -> None:
    pair.follow()
    begin(pair.primary, pair.stage)
    answers = Answers()
    for clock in range(40):  # more than the backup makes at once
        assert join(pair.primary, pair.stage, clock, answers)
    push(pair.primary, pair.stage, 0, 40)
    push(pair.primary, pair.stage, 1, 40).wait(PATIENCE_S)
    assert answers.replies == [Stepped(1 + n // 2) for n in range(80)]
    before = digest(pair.stage.coordinator)
    pair.primary.stop()  # without a word to those that follow
    pair.thread.join(PATIENCE_S)
    assert (pair.ending, pair.error) == (Ending.REIGNS, None)
    assert digest(pair.other.coordinator) == before
    again, other = pushes_of(39)[0], pushes_of(41)[0]
    assert pair.other.server.repeat(again, answers.append)
    assert not pair.other.server.repeat(other, answers.append)
    assert answers[-1][0] == Stepped(41, duplicate=True)


def test_a_repeated_push_is_an_entry_too(pair: Pair) -> None:
    pair.follow()
    begin(pair.primary, pair.stage)
    answers = Answers()
    join(pair.primary, pair.stage, 0)
    assert not pair.primary.repeat(pushes_of(1)[0], answers.append)
    assert pair.primary.repeat(pushes_of(0)[0], answers.append)
    push(pair.primary, pair.stage, 0, 1)
    push(pair.primary, pair.stage, 1, 1).wait(PATIENCE_S)
    assert answers.replies == [Stepped(1)]
    pair.primary.stop()
    pair.thread.join(PATIENCE_S)
    assert pair.stage.server.core.stats().duplicates_dropped == 1
    assert pair.other.server.core.stats().duplicates_dropped == 1
    assert pair.error is None, "both have the same digest"


def test_a_deposed_primary_takes_no_round_in(pair: Pair) -> None:
    begin(pair.primary, pair.stage)
    held = pair.authority.look()
    assert held is not None
    reign = pair.authority.change(held, Reign(9, 5))
    pair.primary._core.ruled(reign)
    answers = Answers()
    assert not pair.primary.wants(pushes_of(0)[0])
    assert join(pair.primary, pair.stage, 0, answers)
    assert pair.primary.repeat(pushes_of(0)[0], answers.append)
    assert [type(decode(*reply.error)) for reply in answers.replies] == [PeerLostError] * 3
    assert pair.stage.server.core.version == 0
