"""The optimizer's state by piece: told apart, compared, put together."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from psrpc.messages import StateReply
from psrpc.store.blueprint import Blueprint
from psrpc.store.layout import Piece, ShardLayout

# What classes that treat every element by itself keep once for all elements. Where the
# parameter is a single number without a dimension, shapes do not tell.
_FOR_ALL = frozenset({"step", "mu_product", "eta", "mu"})


@dataclass(frozen=True)
class Option:
    """A parameter group's option that differs from the job's start.

    It is `overridden` if a worker asked for it with its last push; otherwise the
    optimizer's class itself has changed it.
    """

    group: int
    key: str
    value: Any
    overridden: bool


def of_elements(key: str, value: object, shape: tuple[int, ...]) -> bool:
    """Whether this entry of the state of a piece of `shape` has a number for each element."""
    if not isinstance(value, torch.Tensor) or value.shape != shape:
        return False
    return bool(shape) or key not in _FOR_ALL


def own(value: Any) -> Any:
    """A copy that nobody else writes into."""
    return value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)


def same(one: object, other: object) -> bool:
    """Whether two values of a state or an option are equal, bit by bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return False
    return type(one) is type(other) and bool(one == other)


def join_state(
    pieces: Sequence[tuple[Piece, Mapping[str, Any]]], numel: int
) -> dict[str, Any] | None:
    """The state of a whole segment of `numel` elements, made of all its pieces' states.

    None where that cannot be: some have a state and others none, or they differ in what
    they keep once for all elements.
    """
    (_, first), *others = pieces
    if any(state.keys() != first.keys() for _, state in others):
        return None
    joined: dict[str, Any] = {}
    for key, value in first.items():
        parts = [(piece, state[key]) for piece, state in pieces]
        spread = [of_elements(key, part, piece.shape) for piece, part in parts]
        if all(spread) and all(part.dtype == value.dtype for _, part in parts):
            joined[key] = flat = torch.empty(numel, dtype=value.dtype)
            for piece, part in parts:
                piece.view(flat).copy_(part)
        elif not any(spread) and all(same(part, value) for _, part in parts):
            joined[key] = own(value)
        else:
            return None
    return joined


# A piece's state: the parameter's name, the piece's first row, its entries by key.
PieceState = tuple[str, int, dict[str, Any]]


def unpack(reply: StateReply, tensors: Sequence[torch.Tensor]) -> list[PieceState]:
    """Join a shard's answer with the tensors that came beside it."""
    return [
        (
            name,
            first_row,
            {key: value if at is None else tensors[at] for key, at, value in entries},
        )
        for name, first_row, entries in reply.pieces
    ]


def join(blueprint: Blueprint, pieces: Sequence[PieceState]) -> dict[str, dict[str, Any]]:
    """State by parameter name; tensors of a parameter that was cut are joined by rows."""
    shapes = {spec.name: spec.shape for spec in blueprint.specs}
    by_name: dict[str, list[PieceState]] = {}
    for piece in sorted(pieces, key=lambda piece: piece[1]):
        by_name.setdefault(piece[0], []).append(piece)
    return {name: _join(parts, shapes[name]) for name, parts in by_name.items()}


def _join(parts: Sequence[PieceState], shape: tuple[int, ...]) -> dict[str, Any]:
    joined = {}
    for key, value in parts[0][2].items():
        values = [part[2][key] for part in parts]
        cut = len(values) > 1 and isinstance(value, torch.Tensor) and value.dim() == len(shape) > 0
        joined[key] = torch.cat(values) if cut else value
    return joined


def described(
    layout: ShardLayout, states: Sequence[Mapping[str, object]], blueprint: Blueprint
) -> tuple[StateReply, list[torch.Tensor]]:
    """A shard's optimizer state by piece, as it is told; with copies of its tensors."""
    pieces: list[tuple[str, int, tuple[tuple[str, int | None, object], ...]]] = []
    tensors: list[torch.Tensor] = []
    for piece, state in zip(layout.pieces, states, strict=True):
        entries: list[tuple[str, int | None, object]] = []
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                entries.append((key, len(tensors), None))
                tensors.append(value.clone())
            else:
                entries.append((key, None, value))
        name = blueprint.specs[piece.parameter].name
        pieces.append((name, piece.first_row, tuple(entries)))
    return StateReply(tuple(pieces)), tensors
