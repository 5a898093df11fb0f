"""Page-locked memory, from which a GPU copies by itself.

The driver copies memory that may be swapped out through a buffer of its own, at half the
speed or less.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch


def _driver() -> Any:
    return torch.cuda.cudart()


class PageLocks:
    """Locks mappings of this process for the GPU, and unlocks them. Callers take turns."""

    def __init__(self) -> None:
        self._locked: dict[int, mmap.mmap] = {}  # by address
        self._process = os.getpid()
        self._warned = False

    def lock(self, mapped: mmap.mmap) -> None:
        """Lock a mapping until `unlock`. Warns if the driver does not: copies are slower then."""
        address = _address(mapped)
        if address in self._locked:
            return
        # 1: portable, so it counts for every device that this process uses.
        result = int(_driver().cudaHostRegister(address, len(mapped), 1))
        if result == 0:
            self._locked[address] = mapped
        elif not self._warned:
            self._warned = True
            warnings.warn(
                f"{len(mapped)} bytes of shared memory could not be page-locked (CUDA error "
                f"{result}): copies to and from the GPU take longer; raise `ulimit -l`",
                stacklevel=2,
            )

    def unlock(self) -> list[mmap.mmap]:
        """Unlock all that is locked; returns what that was.

        A fork only forgets it: nothing is locked there, and it cannot use the driver.
        """
        held, self._locked = self._locked, {}
        if os.getpid() == self._process:
            for address in held:
                _driver().cudaHostUnregister(address)
        return list(held.values())


def locked_like(flats: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of this process's own in page-locked memory, with what these hold."""
    return [flat.pin_memory() for flat in flats]


def _address(mapped: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapped))
