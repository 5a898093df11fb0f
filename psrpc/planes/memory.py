"""Shared memory that cannot be left behind: it goes with the last process that maps it.

A worker's region of one shard is a memory file of four equal parts, each with the
shard's segments at multiples of 64 bytes: two sets of gradients, the weights, and
weights that were fetched ahead. A part that nobody touches takes no memory, and the
server writes weights without mapping them.
"""

from __future__ import annotations

import ctypes
import mmap
import operator
import os
import threading
from collections.abc import Sequence
from enum import IntEnum

import torch

from psrpc.planes.freight import as_bytes
from psrpc.store.layout import ShardLayout, torch_dtype

_ALIGN = 64
_MAP_FIXED = 0x10  # of Linux, on every processor that torch runs on


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
        self._maps: dict[Part, mmap.mmap] = {}
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

    def write_stretch(
        self, part: Part, flats: Sequence[torch.Tensor], segment: int, low: int, high: int
    ) -> None:
        """Write elements `low` to `high` of one flat tensor, as `write` does all of them."""
        item = flats[segment].itemsize
        start = self._part_bytes * part + self._offsets[segment] + low * item
        with self._lock:
            if self._fd >= 0:
                _write(self._fd, self._bytes_of(flats)[segment][low * item : high * item], start)

    def move(self, fd: int) -> None:
        """Let what is mapped lie in another memory file of this size, or (-1) in no file.

        Tensors keep their addresses and what they hold, and whoever has the old file cannot
        change them any more. The file is this region's from now on, and the old one is closed.
        Nobody may write to the tensors meanwhile.
        """
        for part, mapped in self._maps.items():
            start = self._part_bytes * part
            if fd >= 0:
                _write(fd, memoryview(mapped), start)
            _map_again(mapped, fd, start)
        with self._lock:
            old, self._fd = self._fd, fd
        if old >= 0:
            os.close(old)

    def close(self) -> None:
        """Give the descriptor up. What is mapped stays until its tensors are gone."""
        with self._lock:
            fd, self._fd = self._fd, -1
        self._parts.clear()
        self._maps.clear()
        if fd >= 0:
            os.close(fd)

    def _bytes_of(self, flats: Sequence[torch.Tensor]) -> list[memoryview]:
        """The memory of some tensors; a server writes the same ones step by step."""
        if len(flats) != len(self._sources) or not all(map(operator.is_, flats, self._sources)):
            self._sources, self._views = list(flats), [as_bytes(flat) for flat in flats]
        return self._views

    def _map(self, part: Part) -> list[torch.Tensor]:
        offset = self._part_bytes * part if self._fd >= 0 else 0
        mapped = self._maps[part] = mmap.mmap(self._fd, self._part_bytes, offset=offset)
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
    done = os.pwrite(fd, view, offset)
    while done < view.nbytes:
        done += os.pwrite(fd, view[done:], offset + done)


def _map_again(mapped: mmap.mmap, fd: int, offset: int) -> None:
    """Let a mapping be of another file, or of none with what it holds; at the same address."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    held = bytes(mapped) if fd < 0 else b""
    kind = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    access = mmap.PROT_READ | mmap.PROT_WRITE
    got = libc.mmap(address, len(mapped), access, kind | _MAP_FIXED, fd, max(offset, 0))
    if got != address:
        number = ctypes.get_errno()
        raise OSError(number, f"memory could not be mapped again: {os.strerror(number)}")
    if held:
        ctypes.memmove(address, held, len(held))
