"""What a worker has of the job beside trained parameters: buffers, frozen ones, optimizer state.

All of it is asked of the servers, or given to the first, outside of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from psrpc.core.progress import Progress
from psrpc.follow import Follower
from psrpc.messages import GetBuffers, GetFrozen, GetState, PutBuffers, StateReply
from psrpc.planes.base import Link, Pending
from psrpc.store.blueprint import Blueprint
from psrpc.store.buffers import buffers_of
from psrpc.store.state import PieceState, join, unpack


class Untrained:
    """A worker's dealings with all that the optimizer does not train. Methods block."""

    def __init__(
        self,
        model: nn.Module,
        blueprint: Blueprint,
        links: Sequence[Link],
        progress: Progress,
        follower: Follower,
    ) -> None:
        self._follower = follower
        self._model = model
        self._blueprint = blueprint
        self._links = links
        self._progress = progress
        self._offered: Pending | None = None

    def take_frozen(self) -> None:
        """Take the frozen parameters that the first server has."""
        request = GetFrozen(self._progress.worker)
        self._copy_in(request, self._blueprint.untrained(self._model))

    def take_buffers(self) -> None:
        """Take the mean of all workers' buffers."""
        self._copy_in(GetBuffers(self._progress.worker), buffers_of(self._model))

    def put_buffers(self, steps: int) -> None:
        """Give the buffers as they are; `steps` is their weight in the mean."""
        self.offer_buffers(steps)
        self._settle()

    def offer_buffers(self, steps: int) -> None:
        """As `put_buffers`, but waits only for the answer to the offer before."""
        self._settle()
        tensors = [buffer.detach().cpu().clone() for buffer in buffers_of(self._model)]
        if tensors:
            self._offered = self._links[0].call(PutBuffers(self._progress.worker, steps), tensors)

    def _settle(self) -> None:
        offered, self._offered = self._offered, None
        if offered is not None:
            offered.wait()

    def optimizer_state(self) -> dict[int, dict[str, Any]]:
        """The optimizer's state of all servers, in the form of `state_dict()["state"]`."""
        state = join(self._blueprint, self._follower.through(self._pieces))
        names = [name for members in self._blueprint.members for name in members]
        return {i: state[name] for i, name in enumerate(names) if state.get(name)}

    def _pieces(self) -> list[PieceState]:
        pieces: list[PieceState] = []
        for link in self._links:
            request = GetState(self._progress.worker, self._follower.layout)
            reply, tensors = link.call(request).wait()
            assert isinstance(reply, StateReply)
            pieces += unpack(reply, tensors)
        return pieces

    def _copy_in(self, request: GetBuffers | GetFrozen, targets: Sequence[torch.Tensor]) -> None:
        if targets:
            _, tensors = self._links[0].call(request).wait()
            with torch.no_grad():
                for target, tensor in zip(targets, tensors, strict=True):
                    target.copy_(tensor)
