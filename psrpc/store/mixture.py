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
        if self.single:
            return self._parts[0][low:high]
        first = self._parts[0][low:high]
        total = (first.float() if first.dtype in _NARROW else first) * self._weights[0]
        for part, weight in zip(self._parts[1:], self._weights[1:], strict=True):
            total.add_(part[low:high], alpha=weight)
        return total.to(first.dtype)

    def whole(self) -> torch.Tensor:
        """All of it, to be read."""
        return self._parts[0] if self.single else self.stretch(0, self._parts[0].numel())
