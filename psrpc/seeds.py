"""Random numbers of a batch: they depend on the job's seed and on the batch's place alone.

So there is no random state to keep: a batch that is done again, by another worker or after the
job was resumed from a checkpoint, draws what it drew the first time.
"""

from __future__ import annotations

import random
import sys
from enum import IntEnum

import torch


class Purpose(IntEnum):
    """What a batch's random numbers are drawn for."""

    LOAD = 0  # its samples: they may be read and collated ahead, in another process
    STEP = 1  # all else until the next batch


def seed_of(seed: int, epoch: int, position: int, purpose: Purpose) -> int:
    """The seed for the batch that begins at `position` in the epoch's order: 0 to 2**63 - 1."""
    return hash((seed, epoch, position, int(purpose))) & 0x7FFFFFFFFFFFFFFF


def sow(seed: int) -> None:
    """Begin this process's global generators anew: torch's, Python's and numpy's."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed & 0xFFFFFFFF)  # is loaded by this if it is not yet
