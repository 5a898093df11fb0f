"""A shard as it is at one moment: a copy that others may read while training goes on.

The copy is made while a server answers nobody, so it is made into memory that is there
already: writing to fresh memory takes up to ten times as long, for the kernel hands it out
page by page, each filled with zeros first. Large pages are asked for, of which there are fewer.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from psrpc.store.state import Option, own

_ALIGNMENT = 64
_LARGE = 1 << 21


class Frame:
    """Memory for one image. `free` is set by whoever is done with the image in it."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.free = True
        self._bytes = _memory(size_bytes)
        self._end = 0

    def begin(self) -> None:
        """Start a new image in this memory."""
        self.free = False
        self._end = 0

    def touch(self) -> None:
        """Have the kernel hand out the memory now."""
        self._bytes.zero_()

    def keep(self, value: Any) -> Any:
        """A copy of `value`; a tensor's copy lies in this memory, in the tensor's shape."""
        if not isinstance(value, torch.Tensor):
            return own(value)
        low, high = self._end, self._end + value.nbytes
        self._end = _padded(high)
        kept = self._bytes[low:high].view(value.dtype).view(value.shape)
        return kept.copy_(value.detach())


@dataclass(frozen=True)
class PieceImage:
    """A piece's weights and its optimizer's state, both in the piece's shape."""

    weights: torch.Tensor
    state: dict[str, Any]


@dataclass(frozen=True)
class ShardImage:
    """What one shard held at one moment: its layout's pieces, in order, and changed options.

    Its tensors are valid until `release`, which may be called from any thread.
    """

    pieces: tuple[PieceImage, ...]
    options: tuple[Option, ...] = ()
    frame: Frame | None = field(default=None, repr=False, compare=False)

    def release(self) -> None:
        """Let the next image have this one's memory."""
        if self.frame is not None:
            self.frame.free = True


def room_for(tensors: Sequence[torch.Tensor]) -> int:
    """The bytes that a frame needs to keep `tensors`."""
    return sum(_padded(tensor.nbytes) for tensor in tensors)


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


def _memory(size_bytes: int) -> torch.Tensor:
    if size_bytes < _LARGE:
        return torch.empty(size_bytes, dtype=torch.uint8)
    anonymous = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages
        anonymous.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(anonymous, dtype=torch.uint8)
