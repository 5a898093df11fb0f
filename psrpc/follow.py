"""How a worker follows its servers when some are added or removed.

A server of an earlier layout says that it is one. Then the coordinator tells where the servers are
now; links to them are opened, the model moves into their buffers with all that it holds, and what
was under way is sent again. The names of updates make that exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from psrpc.core.progress import Progress
from psrpc.errors import MovedError, PeerLostError, ProtocolError, PsrpcError
from psrpc.moves import Arrived, FindServers, Servers
from psrpc.planes.base import Link
from psrpc.store.binding import Binding
from psrpc.store.blueprint import Blueprint
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout

Result = TypeVar("Result")


def _nowhere(found: Servers) -> list[Link]:
    raise ProtocolError(f"layout {found.layout} cannot be reached: these servers stay as they are")


class Found(NamedTuple):
    """The layout that a worker's links are of, and what connects to the servers of another."""

    layout: int = 0
    reach: Callable[[Servers], list[Link]] = _nowhere


class Follower:
    """Keeps a worker's links those of the present layout. Used from its training thread.

    `links` is changed in place. `binding` ties the model to their buffers, once there is one.
    """

    binding: Binding

    def __init__(
        self,
        links: list[Link],
        blueprint: Blueprint,
        progress: Progress,
        found: Found,
    ) -> None:
        self.layout = found.layout
        self.links = links
        self._blueprint = blueprint
        self._progress = progress
        self._reach = found.reach

    def bind(self, model: nn.Module) -> None:
        """Let the model live in the buffers of the links, which are opened."""
        self.binding = Binding(model, self._blueprint, *self._open(self.links))

    def _open(self, links: list[Link]) -> tuple[Sequence[ShardLayout], list[Buffers]]:
        layouts = self._blueprint.layouts(len(links))
        return layouts, [link.open(layout) for link, layout in zip(links, layouts, strict=True)]

    def through(self, act: Callable[[], Result]) -> Result:
        """Do something, again if servers were added or removed meanwhile. Blocks."""
        while True:
            try:
                return act()
            except MovedError:
                self.follow()
            except PeerLostError:
                if not self.outdated():
                    raise
                self.follow()

    def outdated(self) -> bool:
        """Whether there is another layout, as a server is lost. Blocks."""
        try:
            return self._find(lost=True).layout > self.layout
        except PsrpcError:
            return False

    def follow(self, sent: list[list[torch.Tensor]] | None = None) -> None:
        """Go to the present layout; `sent` are the gradients under way, see `Binding.move`.

        Blocks. Raises PeerLostError.
        """
        found = self._find()
        if found.layout <= self.layout:
            raise ProtocolError(f"the coordinator knows of no layout after {self.layout}")
        links = self._reach(found)
        self.binding.move(*self._open(links), sent)
        left, self.links[:] = list(self.links), links
        self.layout = found.layout
        self._progress.tell_anew()
        for link in left:
            link.close()
        self.links[0].call(Arrived(self._progress.worker, self.layout)).wait()

    def _find(self, *, lost: bool = False) -> Servers:
        found, _ = self.links[0].call(FindServers(self._progress.worker, lost)).wait()
        if not isinstance(found, Servers):
            raise ProtocolError(f"the coordinator answered {found!r} when asked for the servers")
        return found
