"""Large work in parts on several threads: all of it is done, once, and errors are heard."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch import nn, optim

from psrpc.modes import Reduction
from psrpc.store import hands
from psrpc.store.blueprint import draw
from psrpc.store.hands import spans, spread
from psrpc.store.shard import Contribution, ShardStore


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "_count", lambda: 3)
    monkeypatch.setattr(hands, "_pool", None)


def test_spans_cover_everything_once() -> None:
    assert spans(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert spans(8, 4) == [(0, 4), (4, 8)]
    assert spans(0, 4) == []


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 100])
def test_results_are_in_order(three: None, size: int) -> None:
    parts = spans(size, 1)
    assert spread(lambda low, high: (low, high), parts) == parts


def test_parts_are_done_at_the_same_time(three: None) -> None:
    together = threading.Barrier(3, timeout=10.0)
    assert len(spread(lambda low, high: together.wait(), spans(3, 1))) == 3


@pytest.mark.parametrize("bad", [0, 5])
def test_an_error_is_raised_when_all_others_have_ended(three: None, bad: int) -> None:
    done = []

    def work(low: int, high: int) -> None:
        if low == bad:
            raise ValueError(f"part {low}")
        done.append(low)

    with pytest.raises(ValueError, match=f"part {bad}"):
        spread(work, spans(6, 1))
    assert {2, 3} <= set(done)


@pytest.mark.parametrize(
    "made",
    [partial(optim.SGD, lr=0.1), partial(optim.SGD, lr=0.1, momentum=0.9), optim.Adam],
    ids=["sgd", "momentum", "adam"],
)
def test_a_step_by_many_hands_is_the_class_s_step(three: None, made: partial[optim.SGD]) -> None:
    model, size = nn.Linear(700, 500, bias=False), 350_000
    store = ShardStore(draw(model, made), draw(model, made).layouts(1)[0], model, Reduction.MEAN)
    alone = nn.Parameter(model.weight.detach().clone().view(-1))
    optimizer = made([alone])
    for number in range(3):
        one, two = (torch.linspace(-1.0, 1.0 + number + part, size) for part in range(2))
        store.step([Contribution([one], 1), Contribution([two], 3)])
        alone.grad = (one * 0.25).add_(two, alpha=0.75)
        optimizer.step()
    assert torch.equal(store.flats[0], alone.detach())
