"""Shared memory that cannot be left behind: it goes with the last process that maps it.

A worker's region of one shard is a memory file of four equal parts, each with the
shard's segments at multiples of 64 bytes: two sets of gradients, the weights, and
weights that were fetched ahead. A part that nobody touches takes no memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Sequence
from enum import IntEnum

import torch

from psrpc.store.bulk import copy, copy_all
from psrpc.store.layout import ShardLayout, torch_dtype
from psrpc.store.locked import PageLocks

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
        self._locks: PageLocks | None = None

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

    def lock_pages(self) -> None:
        """Let a GPU copy from and to gradients and weights by itself, until `close`."""
        self._locks = PageLocks()
        for part, mapped in self._maps.items():
            self._lock_part(part, mapped)

    def write(self, part: Part, flats: Sequence[torch.Tensor]) -> None:
        """Write flat CPU tensors, one a segment, into a part. Releases the GIL.

        Nothing happens after `close`: whoever wanted to read it is gone.
        """
        copy_all(self._open_part(part), flats)

    def write_stretch(
        self, part: Part, flats: Sequence[torch.Tensor], segment: int, low: int, high: int
    ) -> None:
        """Write elements `low` to `high` of one flat tensor, as `write` does all of them."""
        targets = self._open_part(part)
        if targets:
            copy(targets[segment], flats[segment], low, high)

    def move(self, fd: int) -> None:
        """Let what is mapped lie in another memory file of this size, or (-1) in no file.

        Tensors keep their addresses and what they hold, and whoever has the old file cannot
        change them any more. The file is this region's from now on, and the old one is closed.
        Nobody may write to the tensors meanwhile.
        """
        # The driver would go on copying from the pages of the old file.
        locked = [] if self._locks is None else self._locks.unlock()
        for part, mapped in self._maps.items():
            start = self._part_bytes * part
            if fd >= 0:
                _write(fd, memoryview(mapped), start)
            _map_again(mapped, fd, start)
        for mapped in locked:
            assert self._locks is not None
            self._locks.lock(mapped)
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
        if self._locks is not None:
            self._locks.unlock()
            self._locks = None
        if fd >= 0:
            os.close(fd)

    def _open_part(self, part: Part) -> list[torch.Tensor]:
        """As `part`, for threads other than the one that closes; nothing after `close`."""
        with self._lock:
            if self._fd < 0:
                return []
            return self._parts.get(part) or self.part(part)

    def _map(self, part: Part) -> list[torch.Tensor]:
        offset = self._part_bytes * part if self._fd >= 0 else 0
        mapped = self._maps[part] = mmap.mmap(self._fd, self._part_bytes, offset=offset)
        self._lock_part(part, mapped)
        return [
            torch.frombuffer(mapped, dtype=torch_dtype(s.dtype), count=s.numel, offset=offset)
            if s.numel
            else s.empty()
            for s, offset in zip(self._layout.segments, self._offsets, strict=True)
        ]

    def _lock_part(self, part: Part, mapped: mmap.mmap) -> None:
        if self._locks is not None and part is not Part.AHEAD:  # which no GPU sees
            self._locks.lock(mapped)


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
