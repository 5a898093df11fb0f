"""Shared memory that cannot be left behind: it goes with the last process that maps it.

A worker's region of one shard is a memory file of four equal parts, each with the
shard's segments at multiples of 64 bytes: two sets of gradients, the weights, and
weights that were fetched ahead. A part that nobody touches takes no memory, and the
server writes weights without mapping them.
"""

from __future__ import annotations

import mmap
import operator
import os
import threading
from collections.abc import Sequence
from enum import IntEnum

import torch

from psrpc.planes.freight import as_bytes
from psrpc.store.hands import spans, spread
from psrpc.store.layout import ShardLayout, torch_dtype

_ALIGN = 64
_PART_BYTES = 1 << 22  # what one thread writes at a time


class Part(IntEnum):
    """The parts of a region, in order; the first two are a link's two sets of gradients."""

    GRADIENTS = 0
    OTHER_GRADIENTS = 1
    WEIGHTS = 2
    AHEAD = 3


class Region:
    """A worker's memory file of one shard, as either side sees it. Owns its descriptor."""

    def __init__(self, layout: ShardLayout, fd: int) -> None:
        self._layout = layout
        self._fd = fd
        self._lock = threading.Lock()
        self._offsets, end = _offsets(layout)
        self._part_bytes = -(-max(end, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._parts: dict[Part, list[torch.Tensor]] = {}
        self._sources: list[torch.Tensor] = []
        self._views: list[memoryview] = []

    @classmethod
    def create(cls, layout: ShardLayout) -> Region:
        """Make a memory file for `layout`."""
        region = cls(layout, os.memfd_create("psrpc", os.MFD_CLOEXEC))
        os.ftruncate(region.fd, region._part_bytes * len(Part))
        return region

    @property
    def fd(self) -> int:
        """The descriptor, to be given to the other side."""
        return self._fd

    def part(self, part: Part) -> list[torch.Tensor]:
        """The flat tensors of a part, one a segment; mapped when first asked for."""
        if part not in self._parts:
            self._parts[part] = self._map(part)
        return self._parts[part]

    def write(self, part: Part, flats: Sequence[torch.Tensor]) -> None:
        """Write flat CPU tensors, one a segment, into a part, mapped or not.

        Nothing happens after `close`: whoever wanted to read it is gone.
        """
        start = self._part_bytes * part
        with self._lock:
            if self._fd < 0:
                return
            for view, offset in zip(self._bytes_of(flats), self._offsets, strict=True):
                _write(self._fd, view, start + offset)

    def close(self) -> None:
        """Give the descriptor up. What is mapped stays until its tensors are gone."""
        with self._lock:
            fd, self._fd = self._fd, -1
        self._parts.clear()
        if fd >= 0:
            os.close(fd)

    def _bytes_of(self, flats: Sequence[torch.Tensor]) -> list[memoryview]:
        """The memory of some tensors; a server writes the same ones step by step."""
        if len(flats) != len(self._sources) or not all(map(operator.is_, flats, self._sources)):
            self._sources, self._views = list(flats), [as_bytes(flat) for flat in flats]
        return self._views

    def _map(self, part: Part) -> list[torch.Tensor]:
        mapped = mmap.mmap(self._fd, self._part_bytes, offset=self._part_bytes * part)
        return [
            torch.frombuffer(mapped, dtype=torch_dtype(s.dtype), count=s.numel, offset=offset)
            if s.numel
            else s.empty()
            for s, offset in zip(self._layout.segments, self._offsets, strict=True)
        ]


def _offsets(layout: ShardLayout) -> tuple[list[int], int]:
    """Where each segment begins in a part, and where the last one ends."""
    offsets, end = [], 0
    for segment in layout.segments:
        offsets.append(end)
        size_bytes = segment.numel * torch_dtype(segment.dtype).itemsize
        end += -(-size_bytes // _ALIGN) * _ALIGN
    return offsets, end


def _write(fd: int, view: memoryview, offset: int) -> None:
    if view.nbytes > _PART_BYTES:
        parts = spans(view.nbytes, _PART_BYTES)
        spread(lambda low, high: _write(fd, view[low:high], offset + low), parts)
        return
    done = os.pwrite(fd, view, offset)
    while done < view.nbytes:
        done += os.pwrite(fd, view[done:], offset + done)
