"""Shards of a small model, stepped with gradients that are the same for any number of servers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn, optim

from psrpc.modes import Reduction
from psrpc.store.blueprint import Blueprint, draw
from psrpc.store.shard import Contribution, ShardStore

Factory = Callable[[Any], optim.Optimizer]

OPTIMIZERS: dict[str, Factory] = {
    "sgd": partial(optim.SGD, lr=0.1),
    "sgd-momentum": partial(optim.SGD, lr=0.1, momentum=0.9, dampening=0.1),
    "adam": partial(optim.Adam, lr=0.01),
    "adam-amsgrad": partial(optim.Adam, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adamw": partial(optim.AdamW, lr=0.01),
    "adagrad": partial(optim.Adagrad, lr=0.1, initial_accumulator_value=0.5),
    "adadelta": optim.Adadelta,
    "adamax": optim.Adamax,
    "asgd": optim.ASGD,
    "nadam": optim.NAdam,
    "radam": optim.RAdam,
    "rmsprop": partial(optim.RMSprop, momentum=0.5, centered=True),
    "rprop": optim.Rprop,
}


class Own(optim.Optimizer):
    """Not elementwise: normalises each tensor; keeps plain values, also in its groups."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "seen": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Move by the mean of the normalised gradients, and count in three places."""
        for group in self.param_groups:
            group["seen"] += 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                mean = state.setdefault("mean", torch.zeros_like(parameter))
                state["count"] = state.get("count", 0) + 1
                state["note"] = {"best": None, "last": float(parameter.grad.norm())}
                mean.lerp_(parameter.grad / (parameter.grad.norm() + 1), 1 / state["count"])
                parameter.sub_(mean, alpha=group["lr"] / group["seen"])


OPTIMIZERS["own"] = Own


class Net(nn.Module):
    """A large matrix, which several servers cut, with small ones, a number and half precision."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.large = nn.Parameter(torch.randn(40, 5, generator=generator))
        self.bias = nn.Parameter(torch.randn(7, generator=generator))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.narrow = nn.Parameter(torch.randn(3, 2, generator=generator).bfloat16())
        self.frozen = nn.Parameter(torch.full((2,), 3.0), requires_grad=False)
        self.register_buffer("mean", torch.linspace(0, 1, 4))
        self.register_buffer("count", torch.tensor(5))
        self.register_buffer("scratch", torch.zeros(9), persistent=False)
        self.tied = self.bias


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Net's parameters in two groups."""
    named = dict(model.named_parameters())
    first = [named[name] for name in ("large", "narrow")]
    return [{"params": first, "lr": 0.05}, {"params": [named["scale"], named["bias"]]}]


class Shards:
    """All servers' stores of one model."""

    def __init__(self, factory: Factory, servers: int = 1, groups: Any = None) -> None:
        self.model = Net()
        self.blueprint: Blueprint = draw(self.model, factory, groups)
        self.layouts = self.blueprint.layouts(servers)
        self.stores = [
            ShardStore(self.blueprint, layout, self.model, Reduction.MEAN)
            for layout in self.layouts
        ]

    def train(self, steps: Sequence[int], absent: Collection[str] = (), **overrides: Any) -> None:
        """One step for each number; parameters named in `absent` have no gradient."""
        for step in steps:
            whole = gradients(self.blueprint, step)
            for store in self.stores:
                self._step(store, whole, absent, overrides)

    def _step(
        self,
        store: ShardStore,
        whole: Sequence[torch.Tensor],
        absent: Collection[str],
        overrides: dict[str, Any],
    ) -> None:
        pieces = store.layout.pieces
        names = [self.blueprint.specs[piece.parameter].name for piece in pieces]
        missing = tuple(i for i, name in enumerate(names) if name in absent)
        if len(missing) == len(pieces):
            return
        flats = store.layout.empty()
        for piece, view in zip(pieces, store.layout.views(flats), strict=True):
            view.copy_(piece.rows(whole[piece.parameter]))
        asked = tuple((0, key, value) for key, value in overrides.items())
        store.step([Contribution(flats, 1, missing, asked)])

    def weights(self) -> dict[str, torch.Tensor]:
        """All parameters, whole."""
        found = {s.name: torch.zeros_like(self.model.get_parameter(s.name)) for s in self.specs}
        for store in self.stores:
            for piece, view in zip(
                store.layout.pieces, store.layout.views(store.flats), strict=True
            ):
                piece.rows(found[self.specs[piece.parameter].name].data).copy_(view)
        return {name: tensor.detach() for name, tensor in found.items()}

    @property
    def specs(self) -> Any:
        """The trained parameters."""
        return self.blueprint.specs


def gradients(blueprint: Blueprint, step: int) -> list[torch.Tensor]:
    """The gradients of all parameters in this step."""
    generator = torch.Generator().manual_seed(100 + step)
    return [
        torch.randn(spec.shape, generator=generator).to(getattr(torch, spec.dtype))
        for spec in blueprint.specs
    ]


def assert_equal(one: Shards, other: Shards) -> None:
    """Weights are the same, bit by bit."""
    ours, theirs = one.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
