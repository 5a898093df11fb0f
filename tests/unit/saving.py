"""Checkpoints of shards, as the servers and the coordinator of a job make them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from psrpc.checkpoints.folder import Checkpoints, partial_folder
from psrpc.checkpoints.outline import names_of, rest_of
from psrpc.checkpoints.parts import Part
from psrpc.checkpoints.reading import open_checkpoint
from psrpc.checkpoints.writing import JobRecord, write_part
from tests.unit.shards import Shards


def save(
    shards: Shards,
    directory: Path,
    *,
    keep: int = 3,
    buffers: Sequence[torch.Tensor] | None = None,
    **facts: Any,
) -> Path:
    """A checkpoint of all shards, each part as a message of its own."""
    checkpoints = Checkpoints(directory, keep)
    checkpoints.start()
    number = checkpoints.begin()
    folder = partial_folder(directory, number)
    parts = []
    options: Any = ()
    for index, store in enumerate(shards.stores):
        image = store.image()
        options = options or image.options
        own = {"random": torch.arange(index, index + 3, dtype=torch.uint8)}
        part = write_part(
            folder, index, shards.blueprint, store.layout, image, {"clock": index, **facts}, own
        )
        image.release()
        parts.append(Part.from_json(json.loads(json.dumps(part.to_json()))))
    job = JobRecord(
        shards.blueprint,
        names_of(shards.model, shards.blueprint),
        rest_of(shards.model, shards.blueprint, buffers),
        {"mode": "sync"},
        options,
        {"epoch": 7},
    )
    return checkpoints.finish(number, parts, job)


def load(shards: Shards, folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    for store in shards.stores:
        store.restore(checkpoint.shard(shards.blueprint, store.layout))
