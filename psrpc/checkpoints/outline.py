"""A model's state_dict by name: what the servers keep of it, what is tied, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from psrpc.store.blueprint import Blueprint
from psrpc.store.buffers import buffers_of

# Each name of the state_dict, and the name under which its value is kept.
Names = tuple[tuple[str, str], ...]


def names_of(model: nn.Module, blueprint: Blueprint) -> Names:
    """The names of the model's state_dict, in order; tied ones are kept under one of them."""
    kept = {
        id(parameter): name
        for name, parameter in model.named_parameters()
        if any(spec.name == name for spec in blueprint.specs)
    }
    state = model.state_dict(keep_vars=True)
    return tuple(
        (name, kept.setdefault(id(value), name) if isinstance(value, torch.Tensor) else name)
        for name, value in state.items()
    )


def rest_of(
    model: nn.Module, blueprint: Blueprint, buffers: Sequence[torch.Tensor] | None = None
) -> dict[str, Any]:
    """What no server keeps: frozen parameters, buffers and extra state, by name.

    `buffers` are the job's in place of the model's own, in the order of `buffers_of`.
    """
    trained = {spec.name for spec in blueprint.specs}
    state = model.state_dict(keep_vars=True)
    mean = dict(zip(map(id, buffers_of(model)), buffers or (), strict=False))
    rest: dict[str, Any] = {}
    for name, kept in names_of(model, blueprint):
        if kept == name and kept not in trained:
            rest[name] = mean.get(id(state[name]), state[name])
    return rest
