"""A checkpoint's model as a plain file of PyTorch's."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from psrpc.checkpoints.files import writing
from psrpc.checkpoints.folder import PassedOver, checkpoints_in, newest
from psrpc.checkpoints.manifest import MANIFEST
from psrpc.checkpoints.reading import Checkpoint, open_checkpoint
from psrpc.errors import CheckpointError


def find(source: Path) -> tuple[Checkpoint, PassedOver]:
    """The checkpoint that `source` is, or the newest good one in it, and those passed over.

    Raises CheckpointError where there is none.
    """
    if (source / MANIFEST).exists() or not checkpoints_in(source):
        return open_checkpoint(source), ()
    checkpoint, passed = newest(source)
    if checkpoint is None:
        _, why = passed[0]
        raise CheckpointError(f"{source} has no good checkpoint; of the newest: {why}")
    return checkpoint, passed


def write_model(checkpoint: Checkpoint, target: Path) -> None:
    """Write the model's state_dict; `torch.load(target, weights_only=True)` reads it.

    The file is written beside and renamed. Raises CheckpointError.
    """
    state = checkpoint.state_dict()
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with writing(target):
        try:
            torch.save(state, beside)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
