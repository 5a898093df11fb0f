"""Reading a checkpoint: what is wrong with it, and the rows that a shard needs of it.

Nothing in a checkpoint is run: tensors and values are read with `weights_only`, and torch's
own table, which is a pickle, is not read at all.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from psrpc.checkpoints import manifest
from psrpc.checkpoints.files import mark_of
from psrpc.checkpoints.manifest import Manifest
from psrpc.checkpoints.parts import Entry, FileMark, Kind, Part
from psrpc.checkpoints.writing import optimizer_name
from psrpc.errors import CheckpointError
from psrpc.importing import cause
from psrpc.store.blueprint import Blueprint
from psrpc.store.image import PieceImage, ShardImage
from psrpc.store.layout import Piece, ShardLayout, dtype_name, torch_dtype
from psrpc.store.state import Option

_Place = tuple[str, Entry]  # the file that an entry is in


class Checkpoint:
    """A checkpoint that was found good. All methods block on the disk and raise CheckpointError."""

    def __init__(self, folder: Path, contents: Manifest) -> None:
        self.folder = folder
        self.manifest = contents
        self._places: dict[tuple[Kind, str], list[_Place]] = {}
        for part in (contents.job, *contents.parts):
            for entry in part.entries:
                at = entry.kind, entry.name
                self._places.setdefault(at, []).append((part.file.name, entry))

    def check(self, blueprint: Blueprint) -> None:
        """Raise CheckpointError if another model or optimizer was trained."""
        theirs, ours = self.manifest.model, blueprint.signature
        for index in range(max(len(theirs), len(ours))):
            their, our = (each[index : index + 1] for each in (theirs, ours))
            if their != our:
                raise CheckpointError(
                    f"{self.folder} is of another model: it has {_say(their)} where this job's "
                    f"model has {_say(our)}"
                )
        if self.manifest.optimizer != optimizer_name(blueprint):
            raise CheckpointError(
                f"{self.folder} was trained with {self.manifest.optimizer}, this job's optimizer "
                f"is {optimizer_name(blueprint)}"
            )

    def shard(self, blueprint: Blueprint, layout: ShardLayout) -> ShardImage:
        """What a shard of this layout goes on from, however many servers wrote it."""
        self.check(blueprint)
        pieces = tuple(
            self._piece(blueprint.specs[piece.parameter].name, piece) for piece in layout.pieces
        )
        options = [
            Option(*option)
            for place in self._places.get((Kind.OPTIONS, "options"), [])[:1]
            for option in self._read(place)
        ]
        return ShardImage(pieces, tuple(options))

    def rest(self) -> dict[str, Any]:
        """Frozen parameters, buffers and extra state, by their names in the model's state_dict."""
        return {
            entry.name: self._read((self.manifest.job.file.name, entry))
            for entry in self.manifest.job.entries
            if entry.kind is Kind.MODEL
        }

    def state_dict(self) -> dict[str, Any]:
        """The model's whole state_dict, in its order; tied names have one tensor."""
        values = self.rest()
        for name, shape, dtype in self.manifest.model:
            values[name] = torch.empty(shape, dtype=torch_dtype(dtype))
            self._assemble(self._places.get((Kind.MODEL, name), []), values[name], 0)
        return {name: values[kept] for name, kept in self.manifest.names}

    def tensors(self, part: Part) -> dict[str, torch.Tensor]:
        """The writer's own tensors in `part`: one of the manifest's `parts`, or its `job`."""
        return {
            entry.name: self._read((part.file.name, entry))
            for entry in part.entries
            if entry.kind is Kind.OWN
        }

    def _piece(self, name: str, piece: Piece) -> PieceImage:
        chunks = self._places.get((Kind.MODEL, name), [])
        weights = torch.empty(piece.shape, dtype=torch_dtype(str(chunks[0][1].dtype)))
        self._assemble(chunks, weights, piece.first_row)
        shared = {
            chunk.first_row: _overlap(chunk, piece.first_row, piece.shape) for _, chunk in chunks
        }
        by_key: dict[str, list[_Place]] = {}
        for place in self._places.get((Kind.STATE, name), []):
            if shared[place[1].first_row]:
                by_key.setdefault(place[1].key, []).append(place)
        state: dict[str, Any] = {}
        for key, places in by_key.items():
            entry = places[0][1]
            if entry.spread:
                state[key] = torch.zeros(piece.shape, dtype=torch_dtype(str(entry.dtype)))
                self._assemble(places, state[key], piece.first_row)
            else:
                # Where servers differed, what most of the rows had.
                most = max(places, key=lambda p: (shared[p[1].first_row], -p[1].first_row))
                state[key] = self._read(most)
        return PieceImage(weights, state)

    def _assemble(self, places: list[_Place], target: torch.Tensor, first_row: int) -> None:
        """Copy the rows from `first_row` on into `target`."""
        for file, entry in places:
            rows = _overlap(entry, first_row, tuple(target.shape))
            if not rows:
                continue
            value = self._read((file, entry))
            if not target.dim():
                target.copy_(value)
                continue
            low = max(entry.first_row, first_row)
            source = value[low - entry.first_row : low - entry.first_row + rows]
            target[low - first_row : low - first_row + rows].copy_(source)

    def _read(self, place: _Place) -> Any:
        file, entry = place
        path = self.folder / file
        try:
            with path.open("rb") as stream:
                stream.seek(entry.offset)
                data = io.BytesIO(stream.read(entry.length))
            value = torch.load(data, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {cause(error)}") from error
        if entry.dtype is not None and not _fits(value, entry):
            raise CheckpointError(f"{path} does not hold what it should for {entry.name!r}")
        return value


def open_checkpoint(folder: Path, *, thorough: bool = True) -> Checkpoint:
    """Open the checkpoint in `folder`.

    `thorough` reads all of it to compare checksums; otherwise only the files' sizes are
    looked at, which is enough after another process has been thorough. Blocks on the disk.
    Raises CheckpointError, in one line, for a checkpoint that is truncated, tampered with,
    not psrpc's or of a newer format.
    """
    contents = manifest.read(folder)
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(partial(_check_file, folder, thorough=thorough), contents.files))
    return Checkpoint(folder, contents)


def _check_file(folder: Path, mark: FileMark, *, thorough: bool) -> None:
    path = folder / mark.name
    if path.parent != folder:
        raise CheckpointError(f"{folder} names a file outside of it: {mark.name!r}")
    try:
        size_bytes = path.stat().st_size
        sound = size_bytes != mark.size_bytes or not thorough or mark_of(path) == mark
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; use another checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {cause(error)}") from error
    if size_bytes != mark.size_bytes:
        what = "truncated" if size_bytes < mark.size_bytes else "too long"
        raise CheckpointError(
            f"{path} is {what}: it has {size_bytes} bytes and was written with {mark.size_bytes}; "
            "use another checkpoint"
        )
    if not sound:
        raise CheckpointError(
            f"{path} was changed after it was written (its checksum differs); use another "
            "checkpoint"
        )


def _overlap(chunk: Entry, first_row: int, shape: tuple[int, ...]) -> int:
    """How many of the `shape[0]` rows from `first_row` on are in a chunk; 1 for a number."""
    if not shape:
        return 1
    low, high = chunk.first_row, chunk.first_row + chunk.shape[0]
    return max(min(high, first_row + shape[0]) - max(low, first_row), 0)


def _fits(value: object, entry: Entry) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    return tuple(value.shape) == entry.shape and dtype_name(value.dtype) == entry.dtype


def _say(parameter: manifest.Signature) -> str:
    if not parameter:
        return "no more parameters"
    name, shape, dtype = parameter[0]
    return f"the parameter {name!r} {list(shape)} {dtype}"
