"""The optimizer's state, put together from all shards as one process would have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from psrpc.messages import StateReply
from psrpc.store.blueprint import Blueprint

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
