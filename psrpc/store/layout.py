"""Which server keeps which part of the model: whole tensors, balanced by bytes.

A shard keeps its pieces in a few contiguous segments, one for each parameter
group and dtype, so that a push or a pull is one tensor a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch


@dataclass(frozen=True)
class ParameterSpec:
    """A trained parameter, as all nodes must agree on it. `dtype` is a name such as float32."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """The number of bytes."""
        return self.numel * torch_dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Piece:
    """A parameter, or rows of one, at `offset` in a segment. `parameter` indexes the specs."""

    parameter: int
    shape: tuple[int, ...]
    first_row: int
    segment: int
    offset: int

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        """This piece's part of its segment's flat tensor, in the piece's own shape."""
        return flat[self.offset : self.offset + self.numel].view(self.shape)

    def rows(self, parameter: torch.Tensor) -> torch.Tensor:
        """This piece's rows of the whole parameter, or of a tensor of its shape."""
        if parameter.shape == self.shape:
            return parameter
        return parameter[self.first_row : self.first_row + self.shape[0]]


@dataclass(frozen=True)
class Segment:
    """A contiguous run of one shard: the pieces of one parameter group and dtype."""

    group: int
    dtype: str
    numel: int

    def empty(self) -> torch.Tensor:
        """A new flat CPU tensor of this segment's size and dtype, filled with zeros."""
        return torch.zeros(self.numel, dtype=torch_dtype(self.dtype))


@dataclass(frozen=True)
class ShardLayout:
    """What one server keeps."""

    segments: tuple[Segment, ...]
    pieces: tuple[Piece, ...]

    @property
    def size_bytes(self) -> int:
        """The number of bytes of all segments."""
        return sum(s.numel * torch_dtype(s.dtype).itemsize for s in self.segments)

    def whole(self, piece: Piece, specs: Sequence[ParameterSpec]) -> bool:
        """Whether `piece` is a parameter uncut."""
        return piece.shape == specs[piece.parameter].shape

    def views(self, flats: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Each piece's part of the segments' flat tensors."""
        return [piece.view(flats[piece.segment]) for piece in self.pieces]

    def empty(self) -> list[torch.Tensor]:
        """New flat tensors, one a segment, filled with zeros."""
        return [segment.empty() for segment in self.segments]


@dataclass(frozen=True)
class _Cut:
    parameter: int
    shape: tuple[int, ...]
    first_row: int


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that `dtype_name` named."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without its module: float32, bfloat16."""
    return str(dtype).removeprefix("torch.")


def partition(
    specs: Sequence[ParameterSpec], servers: int, *, divisible: bool
) -> tuple[ShardLayout, ...]:
    """Lay out `specs` over `servers` shards, balanced by bytes, the same on every node.

    Whole tensors go, largest first, to the emptiest shard (longest processing time
    first, Graham 1969). With `divisible` (the optimizer treats every element by
    itself) a tensor larger than a fair share is cut by rows, to fill up one shard
    after another (wrap-around, McNaughton 1959).
    """
    fair = sum(spec.size_bytes for spec in specs) / servers
    shards: list[list[_Cut]] = [[] for _ in range(servers)]
    loads = [0.0] * servers
    for index, spec in sorted(enumerate(specs), key=lambda item: -item[1].size_bytes):
        if divisible and spec.size_bytes > fair and spec.shape:
            _wrap_around(index, spec, fair, shards, loads)
        else:
            emptiest = loads.index(min(loads))
            shards[emptiest].append(_Cut(index, spec.shape, 0))
            loads[emptiest] += spec.size_bytes
    return tuple(_lay_out(shard, specs) for shard in shards)


def _wrap_around(
    index: int, spec: ParameterSpec, fair: float, shards: list[list[_Cut]], loads: list[float]
) -> None:
    """Cut a tensor into the room of the fullest shards that have any."""
    row, rows = 0, spec.shape[0]
    while row < rows:
        with_room = [shard for shard, load in enumerate(loads) if load < fair]
        shard = max(with_room, key=loads.__getitem__, default=loads.index(min(loads)))
        room = ceil((fair - loads[shard]) * rows / spec.size_bytes)
        take = min(max(room, 1), rows - row)
        shards[shard].append(_Cut(index, (take, *spec.shape[1:]), row))
        loads[shard] += spec.size_bytes * take / rows
        row += take


def _lay_out(cuts: list[_Cut], specs: Sequence[ParameterSpec]) -> ShardLayout:
    kinds = sorted({(specs[cut.parameter].group, specs[cut.parameter].dtype) for cut in cuts})
    ends = dict.fromkeys(kinds, 0)
    pieces = []
    for cut in sorted(cuts, key=lambda cut: (cut.parameter, cut.first_row)):
        spec = specs[cut.parameter]
        kind = (spec.group, spec.dtype)
        pieces.append(Piece(cut.parameter, cut.shape, cut.first_row, kinds.index(kind), ends[kind]))
        ends[kind] += prod(cut.shape)
    segments = tuple(Segment(group, dtype, ends[group, dtype]) for group, dtype in kinds)
    return ShardLayout(segments, tuple(pieces))
