"""The plane of process groups: gradients are reduced to the servers, weights broadcast back.

For synchronous training. A push's header goes over RPC, its gradients when the
server gives the cue (see `conductor`). Every link has a thread that follows its
server's cues: servers complete their rounds in any order, and one that waited for
another in some worker would wait for ever. What is rare (the first weights,
skipped steps, `push`, `pull` and `push_pull`) goes over RPC.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress

import torch

from psrpc.errors import PeerLostError
from psrpc.messages import Push, Request
from psrpc.planes.base import Payload, Pending, land
from psrpc.planes.conductor import Cue, Enter, Outcome
from psrpc.planes.errand import Errand
from psrpc.planes.groups import Groups
from psrpc.planes.rpc import RpcLink
from psrpc.planes.staging import Staging
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout

_ACCOUNT_S = 2.0


class Alarm:
    """What all links of one worker share: where one breaks, nobody waits for the others.

    Another server may hold a push for ever: for that of the worker that broke this one's round.
    """

    def __init__(self) -> None:
        self._links: list[CollectiveLink] = []

    def watch(self, link: CollectiveLink) -> None:
        """Let this link's exchanges fail with those of the others."""
        self._links.append(link)

    def ring(self, error: Exception) -> None:
        """An exchange has failed, and with it the worker's step."""
        for link in self._links:
            link.give_up(error)


class CollectiveLink:
    """A worker's way to a server with which it shares process groups."""

    def __init__(
        self,
        control: RpcLink,
        groups: Groups,
        device: torch.device,
        workers: int,
        alarm: Alarm | None = None,
    ) -> None:
        self.control = control
        self._alarm = alarm or Alarm()
        self._groups = groups
        self._device = device
        self._workers = workers
        self._orders: queue.SimpleQueue[Errand | None] = queue.SimpleQueue()
        self._latest: Errand | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"psrpc-{control.peer.name}", daemon=True
        )

    def open(self, layout: ShardLayout) -> Buffers:
        """See `Link`. On the CPU, weights land where the group writes them."""
        self._staging = Staging(layout, self._workers, self._device)
        on_cpu = self._device.type == "cpu"
        weights = self._staging.weights if on_cpu else layout.empty()
        self._buffers = Buffers(weights, lambda side: layout.empty())
        self._thread.start()
        self._alarm.watch(self)
        return self.control.adopt(self._buffers)

    def call(self, request: Request, tensors: Sequence[torch.Tensor] = ()) -> Pending:
        """See `Link`."""
        return self.control.call(request, tensors)

    def exchange(
        self, request: Request, *, send: bool, land: bool, at_once: bool = True
    ) -> Pending:
        """See `Link`."""
        if not (isinstance(request, Push) and send and land and at_once):
            return self.control.exchange(request, send=send, land=land)
        push = request
        answer = self.control.call(Enter(push.worker, push))
        pending = Errand(lambda: self._play(push, answer))
        self._latest = pending
        self._orders.put(pending)
        return pending

    def close(self) -> None:
        """See `Link`. Farewells may still be called."""
        self._orders.put(None)
        if self._thread.is_alive() and (self._latest is None or self._latest.done()):
            self._thread.join()
        self.control.close()

    def give_up(self, error: Exception) -> None:
        """Let the exchange that is under way fail with another link's error."""
        if self._latest is not None:
            self._latest.give_up(error)

    def _run(self) -> None:
        while (pending := self._orders.get()) is not None:
            error = pending.carry_out()
            if error is not None:
                self._alarm.ring(error)
        self._groups.close()

    def _play(self, push: Push, answer: Pending) -> Payload:
        """Wait for the cue and follow it; without one the answer has come with it."""
        payload = answer.wait()
        cue = payload[0]
        if not isinstance(cue, Cue):
            return self._landed(payload)
        try:
            self._take_part(cue, push.worker)
        except PeerLostError as broken:
            # What others of the group still do in it ends with this.
            self._groups.close()
            raise self._account(push, broken) from None
        reply = self._staging.reply(push.worker)
        if reply is None:
            return self._landed(self._outcome(push).wait())
        if self._buffers.weights is not self._staging.weights:
            land(self._staging.weights, self._buffers.weights)
        return reply, []

    def _take_part(self, cue: Cue, worker: int) -> None:
        self._groups.keep(cue.kept)
        group = self._groups.join(cue.group, cue.workers, 1 + cue.workers.index(worker))
        self._staging.load(self._buffers.gradients, cue.weight)
        for addends in self._staging.sums:
            group.reduce(addends)
        group.broadcast(self._staging.spread)

    def _account(self, push: Push, broken: PeerLostError) -> Exception:
        """Why a round broke, by the server's word if it still has one."""
        try:
            self.control.ping()
            with suppress(TimeoutError):
                self._outcome(push).wait(_ACCOUNT_S)
        except Exception as told:
            return told
        return broken

    def _outcome(self, push: Push) -> Pending:
        return self.control.call(Outcome(push.worker, push.clock))

    def _landed(self, payload: Payload) -> Payload:
        land(payload[1], self._buffers.weights)
        return payload[0], []
