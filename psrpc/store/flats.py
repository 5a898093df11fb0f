"""A worker's flat tensors of one shard: gradients leave from them, weights land in them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from psrpc.store.layout import ShardLayout
from psrpc.store.locked import locked_like


class Buffers:
    """Flat CPU tensors, one a segment, that belong to one link.

    There are two sets of gradients: one can be filled while the other is on its way.
    `gradients` is the set in use, `side` (0 or 1) which of the two that is; the second
    is made when it is first turned to.
    """

    def __init__(
        self,
        weights: list[torch.Tensor],
        make: Callable[[int], list[torch.Tensor]],
        lock_pages: Callable[[], None] | None = None,
    ) -> None:
        self.weights = weights
        self.side = 0
        self._make = make
        self._lock_pages = lock_pages
        self._sets: list[list[torch.Tensor] | None] = [make(0), None]

    @classmethod
    def private(cls, layout: ShardLayout) -> Buffers:
        """Buffers in this process's own memory."""
        return cls(layout.empty(), lambda side: layout.empty())

    @classmethod
    def none(cls) -> Buffers:
        """The buffers of a link that is not open."""
        return cls([], lambda side: [])

    @property
    def gradients(self) -> list[torch.Tensor]:
        """The set of gradients in use."""
        flats = self._sets[self.side]
        assert flats is not None
        return flats

    def turn(self) -> None:
        """Use the other set of gradients from now on."""
        self.side = 1 - self.side
        if self._sets[self.side] is None:
            self._sets[self.side] = self._make(self.side)

    def lock_pages(self) -> None:
        """Let a GPU copy from and to this memory by itself; before anybody has its tensors.

        Memory of this process's own is replaced by page-locked memory.
        """
        if self._lock_pages is not None:
            self._lock_pages()
            return
        make = self._make
        self._make = lambda side: locked_like(make(side))
        self.weights = locked_like(self.weights)
        self._sets = [None if flats is None else locked_like(flats) for flats in self._sets]
