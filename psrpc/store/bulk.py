"""Copying and clearing flat CPU tensors as libc does: large ones past the processor's caches.

`copy_` and `zero_` first read what they write over, which takes up to half as long again.
Both functions release the GIL.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

_CACHED_BYTES = 1 << 20


def copy(target: torch.Tensor, source: torch.Tensor, low: int, high: int) -> None:
    """Copy elements `low` to `high` to the same place of another flat tensor of that dtype."""
    item = source.itemsize
    start, size_bytes = low * item, (high - low) * item
    ctypes.memmove(target.data_ptr() + start, source.data_ptr() + start, size_bytes)


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each flat tensor to the one of its place, as far as there are `targets`."""
    for target, source in zip(targets, sources, strict=False):
        ctypes.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)


def clear(flat: torch.Tensor) -> None:
    """Fill with zeros. Tensors of other devices can be given."""
    if flat.is_cpu and flat.nbytes > _CACHED_BYTES:
        ctypes.memset(flat.data_ptr(), 0, flat.nbytes)
    else:
        flat.zero_()
