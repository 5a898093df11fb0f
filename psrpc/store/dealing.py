"""Rows on their way from the shards of one layout to those of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from psrpc.store.layout import Piece, ShardLayout
from psrpc.store.shard import ShardStore
from psrpc.store.state import Option, of_elements, own

Flats = Sequence[Sequence[torch.Tensor]]  # by shard, then by segment


def common(ours: Piece, theirs: Piece) -> tuple[int, int] | None:
    """The rows of a parameter, [low, high), that two pieces share, if there are any."""
    if ours.parameter != theirs.parameter:
        return None
    if not ours.shape:
        return 0, 1
    low = max(ours.first_row, theirs.first_row)
    high = min(ours.first_row + ours.shape[0], theirs.first_row + theirs.shape[0])
    empty = ours.shape[0] == theirs.shape[0] == 0
    return (low, high) if low < high or empty else None


def rows_of(piece: Piece, held: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Rows `low` to `high` of the parameter, of what a piece holds of it."""
    return held[low - piece.first_row : high - piece.first_row] if piece.shape else held


def deal(
    old: Sequence[ShardLayout], held: Flats, new: Sequence[ShardLayout], targets: Flats
) -> None:
    """Copy all rows from the flat tensors of one layout into those of another."""
    for theirs, view in _views(old, held):
        for ours, target in _views(new, targets):
            if (rows := common(ours, theirs)) is not None:
                rows_of(ours, target, *rows).copy_(rows_of(theirs, view, *rows))


def _views(layouts: Sequence[ShardLayout], flats: Flats) -> list[tuple[Piece, torch.Tensor]]:
    return [
        pair
        for layout, shard in zip(layouts, flats, strict=True)
        for pair in zip(layout.pieces, layout.views(shard), strict=True)
    ]


@dataclass(frozen=True)
class Chunk:
    """Rows of one parameter: their weights, and the optimizer's state of them.

    `spread` has a number for each element; `rest` is kept once for all.
    """

    parameter: int
    low: int
    high: int
    weights: torch.Tensor
    spread: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What `Dealt.place` gives room for, flat."""
        held = (self.weights, *self.spread.values())
        return [tensor.detach().contiguous().reshape(-1) for tensor in held]

    def header(self) -> tuple[Any, ...]:
        """What `Dealt.place` must know of it, without the tensors."""
        dtypes = {key: value.dtype for key, value in self.spread.items()}
        return self.parameter, self.low, self.high, dtypes, dict(self.rest)


def chunks(store: ShardStore, wanted: ShardLayout) -> Iterator[Chunk]:
    """What a shard has for the one that is to keep `wanted`; as it lies in memory."""
    views, states = store.layout.views(store.flats), store.optimizer_state()
    for theirs, view, state in zip(store.layout.pieces, views, states, strict=True):
        spread = {
            key: value
            for key, value in state.items()
            if isinstance(value, torch.Tensor) and of_elements(key, value, theirs.shape)
        }
        rest = {key: value for key, value in state.items() if key not in spread}
        for ours in wanted.pieces:
            if (rows := common(ours, theirs)) is not None:
                yield Chunk(
                    theirs.parameter,
                    *rows,
                    rows_of(theirs, view, *rows),
                    {key: rows_of(theirs, value, *rows) for key, value in spread.items()},
                    rest,
                )


class Dealt:
    """A new shard that is being filled with rows from others. Not thread-safe."""

    def __init__(self, store: ShardStore) -> None:
        self.store = store
        pieces = store.layout.pieces
        self._views = store.layout.views(store.flats)
        self._states: list[dict[str, Any]] = [{} for _ in pieces]
        self._most: dict[tuple[int, str], int] = {}  # the rows that a value of `rest` is of
        self._missing = [max(piece.shape[0], 1) if piece.shape else 1 for piece in pieces]

    def place(self, header: Sequence[Any]) -> list[torch.Tensor]:
        """Where the tensors of the chunk with this header belong, flat, in their order."""
        parameter, low, high, dtypes, rest = header
        index = self._index(parameter, low)
        piece, state = self.store.layout.pieces[index], self._states[index]
        self._missing[index] -= max(high - low, 1)
        for key, value in rest.items():
            # Where servers differ, what most of the rows had.
            if high - low > self._most.get((index, key), -1):
                self._most[index, key], state[key] = high - low, own(value)
        targets = [rows_of(piece, self._views[index], low, high)]
        for key, dtype in dtypes.items():
            if key not in state:
                state[key] = torch.zeros(piece.shape, dtype=dtype)
            targets.append(rows_of(piece, state[key], low, high))
        return [target.reshape(-1) for target in targets]

    def take(self, chunk: Chunk) -> None:
        """Copy a chunk that is in this process."""
        for target, tensor in zip(self.place(chunk.header()), chunk.tensors, strict=True):
            target.copy_(tensor)

    def finish(self, options: Sequence[Option]) -> None:
        """All chunks are there: let the optimizer go on from them. Raises ValueError if not."""
        if any(self._missing):
            raise ValueError("some rows have not come")
        self.store.load(self._states, options)

    def _index(self, parameter: int, low: int) -> int:
        for index, piece in enumerate(self.store.layout.pieces):
            rows = piece.shape[0] if piece.shape else 1
            if piece.parameter == parameter and 0 <= low - piece.first_row < max(rows, 1):
                return index
        raise ValueError(f"rows from {low} on of parameter {parameter} are not this shard's")
