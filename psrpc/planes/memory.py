"""Shared memory that cannot be left behind: it goes with the last process that maps it."""

from __future__ import annotations

import mmap
import os

import torch

from psrpc.store.binding import Buffers
from psrpc.store.layout import ShardLayout, torch_dtype

_ALIGN = 64


class Region:
    """One worker's gradients and weights of one shard, mapped from a memory file.

    Gradients come first, then weights, each segment at a multiple of 64 bytes. Both
    sides lay it out from the same `layout`.
    """

    def __init__(self, layout: ShardLayout, fd: int) -> None:
        self._map = mmap.mmap(fd, size_bytes(layout))
        self.buffers = Buffers([], [])
        offset = 0
        for flats in (self.buffers.gradients, self.buffers.weights):
            for segment in layout.segments:
                dtype = torch_dtype(segment.dtype)
                flats.append(
                    torch.frombuffer(self._map, dtype=dtype, count=segment.numel, offset=offset)
                )
                offset += _padded(segment.numel * dtype.itemsize)


def create(layout: ShardLayout) -> int:
    """Make a memory file that holds a region of `layout`; returns its descriptor."""
    fd = os.memfd_create("psrpc", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_bytes(layout))
    return fd


def size_bytes(layout: ShardLayout) -> int:
    """The size of a region of `layout`: at least a page, for an empty shard too."""
    once = sum(_padded(s.numel * torch_dtype(s.dtype).itemsize) for s in layout.segments)
    return max(2 * once, mmap.PAGESIZE)


def _padded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
