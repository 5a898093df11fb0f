"""Writing a checkpoint: every server its own part, the coordinator's process the rest.

A checkpoint grows in a folder of its own name with `.partial` behind it and is renamed when
all of it is on the disk; so a crash leaves the old checkpoints, and at most a partial one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from psrpc._version import __version__
from psrpc.checkpoints import manifest
from psrpc.checkpoints.files import PartWriter, mark_of, sync_folder, write_whole, writing
from psrpc.checkpoints.manifest import MANIFEST, METADATA, Manifest
from psrpc.checkpoints.outline import Names
from psrpc.checkpoints.parts import Entry, Kind, Part
from psrpc.store.blueprint import Blueprint
from psrpc.store.image import ShardImage
from psrpc.store.layout import ShardLayout, torch_dtype
from psrpc.store.state import Option, of_elements


@dataclass(frozen=True)
class JobRecord:
    """What the coordinator's process adds to the servers' parts.

    `names` and `rest` are what `names_of` and `rest_of` say of its model, `options` those of
    its own shard's image, `facts` a value for JSON, `tensors` more of its own by any name.
    """

    blueprint: Blueprint
    names: Names
    rest: Mapping[str, Any]
    settings: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[Option] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


def write_part(
    folder: Path,
    server: int,
    blueprint: Blueprint,
    layout: ShardLayout,
    image: ShardImage,
    facts: Mapping[str, Any] | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> Part:
    """Write one server's part into the partial `folder`, and wait until the disk has it.

    Blocks for long: called from a thread of its own, which releases the image afterwards.
    `facts` are a value for JSON. Raises CheckpointError.
    """
    with PartWriter(folder, f"server-{server}.distcp") as writer:
        for piece, held in zip(layout.pieces, image.pieces, strict=True):
            name, row = blueprint.specs[piece.parameter].name, piece.first_row
            writer.add(Kind.MODEL, name, held.weights, first_row=row, spread=True)
            for key, value in held.state.items():
                spread = of_elements(key, value, piece.shape)
                writer.add(Kind.STATE, name, value, key=key, first_row=row, spread=spread)
        if image.options:
            options = [[o.group, o.key, o.value, o.overridden] for o in image.options]
            writer.add(Kind.OPTIONS, "options", options)
        for name, tensor in (tensors or {}).items():
            writer.add(Kind.OWN, name, tensor)
        return writer.finish(facts or {})


def complete(
    partial: Path, final: Path, number: int, parts: Sequence[Part], job: JobRecord
) -> None:
    """Add what concerns the whole job, and give the checkpoint its name.

    `parts` are those of all servers, in order. Blocks on the disk. Raises CheckpointError.
    """
    from psrpc.checkpoints.dcp import write_metadata  # takes a second to import

    own = _write_job(partial, parts, job)
    shapes = {spec.name: spec.shape for spec in job.blueprint.specs}
    with writing(partial / METADATA):
        write_metadata(partial, [*parts, own], job.names, shapes)
        whole = Manifest(
            number=number,
            psrpc=__version__,
            torch=torch.__version__,
            optimizer=optimizer_name(job.blueprint),
            settings=job.settings,
            model=job.blueprint.signature,
            names=job.names,
            parts=tuple(parts),
            job=own,
            metadata=mark_of(partial / METADATA),
        )
    with writing(partial / MANIFEST):
        write_whole(partial / MANIFEST, manifest.dump(whole))
        sync_folder(partial)
    with writing(final):
        partial.rename(final)
        sync_folder(final.parent)


def optimizer_name(blueprint: Blueprint) -> str:
    """The optimizer's class in full."""
    return f"{blueprint.kind.__module__}.{blueprint.kind.__qualname__}"


def _write_job(partial: Path, parts: Sequence[Part], job: JobRecord) -> Part:
    with PartWriter(partial, "job.distcp") as writer:
        for name, value in job.rest.items():
            writer.add(Kind.MODEL, name, value)
        writer.add(Kind.GROUPS, "param_groups", _groups(job))
        for entry, like in _missing(parts):
            zeros = torch.zeros(entry.shape, dtype=torch_dtype(str(like.dtype)))
            row = entry.first_row
            writer.add(Kind.FILL, entry.name, zeros, key=like.key, first_row=row, spread=True)
        for name, tensor in job.tensors.items():
            writer.add(Kind.OWN, name, tensor)
        return writer.finish(job.facts)


def _missing(parts: Sequence[Part]) -> Iterator[tuple[Entry, Entry]]:
    """Rows of a parameter without a state that others of its rows have, and one of those."""
    entries = [entry for part in parts for entry in part.entries]
    spread = [entry for entry in entries if entry.kind is Kind.STATE and entry.spread]
    have = {(entry.name, entry.key, entry.first_row) for entry in spread}
    states: dict[str, dict[str, Entry]] = {}
    for entry in spread:
        states.setdefault(entry.name, {})[entry.key] = entry
    for entry in entries:
        if entry.kind is Kind.MODEL:
            for key, like in states.get(entry.name, {}).items():
                if (entry.name, key, entry.first_row) not in have:
                    yield entry, like


def _groups(job: JobRecord) -> list[dict[str, Any]]:
    """The optimizer's param_groups with names in place of parameters."""
    changed: dict[int, dict[str, Any]] = {}
    for option in job.options:
        changed.setdefault(option.group, {})[option.key] = option.value
    return [
        {**group, **changed.get(index, {}), "params": list(members)}
        for index, (group, members) in enumerate(
            zip(job.blueprint.groups, job.blueprint.members, strict=True)
        )
    ]
