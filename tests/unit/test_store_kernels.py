"""An optimizer's kernels do, bit by bit, what its class does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn, optim

from psrpc.store import kernels
from psrpc.store import optim as shard_optim
from psrpc.store.blueprint import draw
from psrpc.store.mixture import Mixture
from psrpc.store.optim import ShardOptimizer

STEPS = 4
Factory = Callable[[Any], optim.Optimizer]

FACTORIES: dict[str, Factory] = {
    "sgd": partial(optim.SGD, lr=0.1),
    "sgd-decay": partial(optim.SGD, lr=0.1, weight_decay=0.01),
    "sgd-momentum": partial(optim.SGD, lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.01),
    "sgd-nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "sgd-maximize": partial(optim.SGD, lr=0.1, maximize=True),
    "adam": partial(optim.Adam, lr=0.01, weight_decay=0.1),
    "adam-amsgrad": partial(optim.Adam, lr=0.01, amsgrad=True, betas=(0.5, 0.9)),
    "adam-tensor": lambda params: optim.Adam(params, lr=torch.tensor(0.01)),
    "adamw": partial(optim.AdamW, lr=0.01),
    "adagrad": partial(optim.Adagrad, lr=0.1, lr_decay=0.01, weight_decay=0.01),
    "adagrad-start": partial(optim.Adagrad, lr=0.1, initial_accumulator_value=0.5),
}


def step_both(
    factory: Factory, numel: int, dtype: torch.dtype, workers: int
) -> tuple[ShardOptimizer, torch.Tensor, torch.Tensor]:
    """The same steps by a shard and by the plain class; returns both weights."""
    torch.manual_seed(0)
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(numel, dtype=dtype))
    blueprint = draw(model, factory)
    flat = model.weight.detach().clone()
    ours = ShardOptimizer(blueprint, blueprint.layouts(1)[0], [flat])
    theirs = factory(model.parameters())
    shares = [(worker + 1) / sum(range(1, workers + 1)) for worker in range(workers)]
    for _ in range(STEPS):
        parts = [torch.randn(numel, dtype=dtype) for _ in range(workers)]
        before = [part.clone() for part in parts]
        ours.step([Mixture(parts, shares)])
        assert all(map(torch.equal, parts, before)), "gradients are only read"
        model.weight.grad = Mixture(parts, shares).whole().clone()
        theirs.step()
    return ours, flat, model.weight.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", FACTORIES)
def test_kernels_do_what_the_class_does(
    name: str, workers: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment of several stretches, the last one shorter."""
    monkeypatch.setattr(shard_optim, "STRETCH", 64)
    ours, flat, weights = step_both(FACTORIES[name], 200, dtype, workers)
    assert ours._kernel is not None
    assert torch.equal(flat, weights)


@pytest.mark.parametrize("name", FACTORIES)
def test_the_class_itself_is_not_asked_after_its_first_step(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    shard, _, _ = step_both(FACTORIES[name], 10, torch.float32, 1)
    assert shard._optimizer is not None
    monkeypatch.setattr(shard_optim, "plain_step", lambda kind: calls.append)
    shard.step([Mixture([torch.ones(10)], [1.0])])
    assert calls == []


@pytest.mark.parametrize("name", ["sgd-momentum", "adam"])
def test_state_counts_each_step_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_optim, "STRETCH", 64)
    ours, _, _ = step_both(FACTORIES[name], 200, torch.float32, 2)
    (state,) = ours.state()
    assert float(state.get("step", STEPS)) == STEPS


class Own(optim.SGD):
    """A class of the user's own."""


UNUSUAL: dict[str, Factory] = {
    "own class": partial(Own, lr=0.1),
    "foreach": partial(optim.SGD, lr=0.1, foreach=True),
    "fused": partial(optim.Adam, lr=0.1, fused=True),
    "no kernel here": partial(optim.RMSprop, lr=0.1),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_not_usual_is_left_to_the_class(name: str) -> None:
    ours, flat, weights = step_both(UNUSUAL[name], 10, torch.float32, 2)
    assert ours._kernel is None
    assert torch.equal(flat, weights)


def test_an_optimizer_with_hooks_is_left_to_its_class() -> None:
    optimizer = optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    assert kernels.kernel_of(optimizer) is not None
    optimizer.register_step_post_hook(lambda *_: None)
    assert kernels.kernel_of(optimizer) is None


def test_a_kernel_that_differs_from_this_torch_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weights: torch.Tensor, *_: object) -> None:
        weights.add_(1.0)

    def broken(*_: object) -> None:
        raise TypeError("unexpected keyword argument")

    optimizer = optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    for kernel in (wrong, broken):
        monkeypatch.setitem(kernels._KERNELS, optim.SGD, kernel)
        assert kernels.kernel_of(optimizer) is None


def test_half_precision_is_added_up_in_float32_and_rounded_once() -> None:
    parts = [torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([0.0078125 / 2]).bfloat16()]
    mixture = Mixture([*parts, parts[1]], [1.0, 1.0, 1.0])
    assert mixture.whole().item() == 1.0078125
    assert mixture.whole().dtype is torch.bfloat16
