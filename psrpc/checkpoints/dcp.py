"""`.metadata`: the table by which `torch.distributed.checkpoint` finds tensors in the files.

Keys are `model.<name>` for each name of the model's state_dict, `optimizer.state.<name>.<key>`
and `optimizer.param_groups`, as `torch.distributed.checkpoint.state_dict` has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

# `_StorageInfo` is private, but its name is in every checkpoint of torch's, so it will stay.
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult

from psrpc.checkpoints.outline import Names
from psrpc.checkpoints.parts import Entry, Kind, Part
from psrpc.errors import CheckpointError
from psrpc.importing import cause
from psrpc.store.layout import torch_dtype

_Way = tuple[str, ...]


def write_metadata(
    folder: Path, parts: Sequence[Part], names: Names, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Write `.metadata` for all parts. `shapes` are those of the trained parameters.

    Raises CheckpointError where the parts are not the whole model.
    """
    once = _lowest_rows(parts)
    plans, results = [], []
    for part in parts:
        items, written, ways = [], [], {}
        for entry in part.entries:
            for way in _ways(entry, names, once):
                item = _item(".".join(way), entry, shapes)
                ways[item.index.fqn] = way
                info = _StorageInfo(part.file.name, entry.offset, entry.length)
                items.append(item)
                written.append(WriteResult(item.index, entry.length, info))
        plans.append(SavePlan(items, planner_data=ways))
        results.append(written)
    try:
        _, metadata = DefaultSavePlanner().create_global_plan(plans)
    except (ValueError, AssertionError) as error:
        raise CheckpointError(f"the parts do not make a whole: {cause(error)}") from error
    FileSystemWriter(folder).finish(metadata, results)


def _lowest_rows(parts: Sequence[Part]) -> dict[tuple[str, str], int]:
    """For state that is kept once for many rows: the first row that has it."""
    lowest: dict[tuple[str, str], int] = {}
    for entry in (entry for part in parts for entry in part.entries):
        if entry.kind is Kind.STATE and not entry.spread:
            at = entry.name, entry.key
            lowest[at] = min(lowest.get(at, entry.first_row), entry.first_row)
    return lowest


def _ways(entry: Entry, names: Names, once: Mapping[tuple[str, str], int]) -> Iterator[_Way]:
    """The keys under which plain PyTorch sees an entry: none, one, or one for each tied name."""
    if entry.kind is Kind.MODEL:
        yield from (("model", name) for name, kept in names if kept == entry.name)
    elif entry.kind in (Kind.STATE, Kind.FILL):
        if entry.spread or once[entry.name, entry.key] == entry.first_row:
            yield "optimizer", "state", entry.name, entry.key
    elif entry.kind is Kind.GROUPS:
        yield "optimizer", "param_groups"


def _item(key: str, entry: Entry, shapes: Mapping[str, tuple[int, ...]]) -> WriteItem:
    if entry.dtype is None:
        return WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO)
    whole = shapes.get(entry.name, entry.shape) if entry.spread else entry.shape
    offset: list[Any] = [0] * len(entry.shape)
    if entry.spread and offset:
        offset[0] = entry.first_row
    chunk = ChunkStorageMetadata(torch.Size(offset), torch.Size(entry.shape))
    data = TensorWriteData(
        chunk, TensorProperties(dtype=torch_dtype(entry.dtype)), torch.Size(whole)
    )
    return WriteItem(MetadataIndex(key, offset), WriteItemType.SHARD, tensor_data=data)
