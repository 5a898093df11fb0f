"""Copies of large tensors in memory that is used again.

Fresh memory costs more than copying: the kernel clears each of its pages first.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch

# Below, malloc itself uses memory again.
_LEAST_BYTES = 1 << 20
_KEPT = 2


class Copies:
    """Makes copies of one flat CPU tensor. Callers take turns; copies may end in any thread."""

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """A copy, whose memory comes back when the last tensor that shares it is gone."""
        if flat.nbytes < _LEAST_BYTES:
            return flat.clone()
        memory = self.free.pop() if self.free else np.empty(flat.nbytes, np.uint8)
        loan = memory[:]
        weakref.finalize(loan, self._back, memory).atexit = False
        # The tensor keeps the loan, not the memory, alive: in other languages' hands as well.
        return torch.frombuffer(loan, dtype=flat.dtype).copy_(flat)

    def _back(self, memory: np.ndarray) -> None:
        if len(self.free) < _KEPT:
            self.free.append(memory)
