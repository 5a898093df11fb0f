"""The plane of process groups: gradients are reduced to the servers, weights broadcast back.

For synchronous training. A push's header goes over RPC, its gradients when the
server gives the cue (see `conductor`). Every link has a thread that follows its
server's cues: servers complete their rounds in any order, and one that waited for
another in some worker would wait for ever. What is rare (the first weights,
skipped steps, `push`, `pull` and `push_pull`) goes over RPC.

A round that breaks, for one of its members has died, has changed nothing on its server.
Its workers come again, and those that are there make it in another group.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence

import torch

from psrpc.errors import PeerLostError
from psrpc.messages import Push, Reply, Request
from psrpc.planes.base import Payload, Pending, land
from psrpc.planes.conductor import Cue, Enter
from psrpc.planes.errand import Errand
from psrpc.planes.groups import Groups
from psrpc.planes.rpc import RpcLink
from psrpc.planes.staging import Staging
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout

_LOOK_S = 1.0  # how often a link that waits for its cue sees whether it was left


class CollectiveLink:
    """A worker's way to a server with which it shares process groups.

    With `moves` its buffers may go to another link, while this one still waits for its server.
    """

    def __init__(
        self, control: RpcLink, groups: Groups, device: torch.device, *, moves: bool = False
    ) -> None:
        self.control = control
        self._groups = groups
        self._device = device
        self._moves = moves
        self._closed = False
        self._landing = threading.Lock()
        self._orders: queue.SimpleQueue[Errand | None] = queue.SimpleQueue()
        self._latest: Errand | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"psrpc-{control.peer.name}", daemon=True
        )

    def open(self, layout: ShardLayout) -> Buffers:
        """See `Link`. On the CPU, weights may land where the group writes them."""
        in_place = self._device.type == "cpu" and not self._moves
        self._staging = Staging(layout, self._device, apart=in_place)
        weights = self._staging.weights if in_place else layout.empty()
        return self._begin(Buffers(weights, lambda side: layout.empty()))

    def adopt(self, buffers: Buffers, layout: ShardLayout) -> Buffers:
        """Use buffers that are there already, of another link that `moves`."""
        self._staging = Staging(layout, self._device)
        return self._begin(buffers)

    def call(self, request: Request, tensors: Sequence[torch.Tensor] = ()) -> Pending:
        """See `Link`."""
        return self.control.call(request, tensors)

    def exchange(
        self, request: Request, *, send: bool, land: bool, at_once: bool = True
    ) -> Pending:
        """See `Link`."""
        if not (isinstance(request, Push) and send and land and at_once):
            return self.control.exchange(request, send=send, land=land)
        push, gradients = request, self._buffers.gradients
        answer = self._enter(push)
        pending = Errand(lambda: self._play(push, gradients, answer))
        self._latest = pending
        self._orders.put(pending)
        return pending

    def close(self) -> None:
        """See `Link`. Farewells may still be called; nothing lands in the buffers any more."""
        with self._landing:
            self._closed = True
        self._orders.put(None)
        if self._thread.is_alive() and (self._latest is None or self._latest.done()):
            self._thread.join()
        self.control.close()

    def _begin(self, buffers: Buffers) -> Buffers:
        self._buffers = buffers
        self._thread.start()
        return self.control.adopt(buffers)

    def _run(self) -> None:
        while (pending := self._orders.get()) is not None:
            pending.carry_out()
        self._groups.close()

    def _enter(self, push: Push) -> Pending:
        return self.control.call(Enter(push.worker, push, time.monotonic_ns()))

    def _play(self, push: Push, gradients: Sequence[torch.Tensor], answer: Pending) -> Payload:
        """Come to the push's round until it is made, or was made without a group."""
        while True:
            reply, weights = self._awaited(answer)
            if isinstance(reply, Cue):
                made = self._take_part(reply, push.worker, gradients)
                if made is None:
                    answer = self._enter(push)
                    continue
                reply, weights = made, self._staging.weights
            self._land(weights)
            return reply, []

    def _awaited(self, answer: Pending) -> Payload:
        while True:
            try:
                return answer.wait(_LOOK_S)
            except TimeoutError:
                self._heed()

    def _take_part(self, cue: Cue, worker: int, gradients: Sequence[torch.Tensor]) -> Reply | None:
        """Follow a cue; None if the round broke, or was another one in the end."""
        self._groups.keep(cue.kept)
        rank = 1 + cue.workers.index(worker)
        try:
            group = self._groups.join(cue.group, cue.workers, rank, lambda: self._closed)
            self._staging.load(gradients, cue.weight)
            for addends in self._staging.sums:
                group.reduce(addends)
            group.broadcast(self._staging.spread)
        except PeerLostError:
            # What others of the group still do in it ends with this.
            self._groups.drop(cue.group)
            return None
        return self._staging.reply()

    def _land(self, weights: Sequence[torch.Tensor]) -> None:
        with self._landing:
            self._heed()
            if weights is not self._buffers.weights:
                land(weights, self._buffers.weights)

    def _heed(self) -> None:
        if self._closed:
            raise PeerLostError(f"the way to {self.control.peer.name} was given up")
