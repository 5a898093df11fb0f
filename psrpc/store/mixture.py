"""The gradients of one round as one: their sum, or their mean weighted by samples.

It is made where it is needed, a stretch at a time, so that large gradients are read
once and their sum never leaves the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_NARROW = (torch.bfloat16, torch.float16)


class Mixture:
    """The weighted sum of flat tensors of one segment, added up in the order given."""

    def __init__(self, parts: Sequence[torch.Tensor], weights: Sequence[float]) -> None:
        self._parts = parts
        self._weights = weights

    @property
    def single(self) -> bool:
        """Whether it is one tensor as it is, so that nothing needs to be computed."""
        return len(self._parts) == 1

    def stretch(self, low: int, high: int) -> torch.Tensor:
        """Elements `low` to `high`, to be read; in half precision, rounded once."""
        return self._sum([part[low:high] for part in self._parts])

    def whole(self) -> torch.Tensor:
        """All of it, to be read."""
        return self._sum(self._parts)

    def _sum(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        first = parts[0]
        if self.single:
            return first
        narrow = is_narrow(first)
        room = torch.empty_like(first, dtype=torch.float32 if narrow else None)
        mix(parts, self._weights, room)
        return room.to(first.dtype) if narrow else room


def mix(parts: Sequence[torch.Tensor], weights: Sequence[float], room: torch.Tensor) -> None:
    """Let `room` be the weighted sum of flat tensors, added up in the order given."""
    torch.mul(parts[0].to(room.dtype), weights[0], out=room)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        room.add_(part, alpha=weight)


def is_narrow(flat: torch.Tensor) -> bool:
    """Whether a sum is made in single precision, and rounded once."""
    return flat.dtype in _NARROW
