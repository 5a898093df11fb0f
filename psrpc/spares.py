"""A server process that comes to a job while it runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

from torch import nn

from psrpc.errors import (
    JobOverError,
    ModelError,
    PeerLostError,
    PsrpcError,
    ScaleError,
    UsageError,
    encode,
)
from psrpc.job import Job
from psrpc.messages import Reply
from psrpc.mover import CUT_WITHIN_S, gather
from psrpc.moves import Again, Offer, Ready, Settled
from psrpc.nodes import ServerNode
from psrpc.orders import Cut
from psrpc.planes.base import Link
from psrpc.planes.giving import Wanted
from psrpc.planes.groups import Fabric
from psrpc.planes.rpc import Address, RpcLink, serve
from psrpc.pulse import Heart
from psrpc.rendezvous import FAREWELL_S, PULSE, Rendezvous, gone, reason
from psrpc.replicas import ReplicaNode
from psrpc.replication.authority import Authority
from psrpc.replication.places import heart_to, seat_of
from psrpc.replication.primary import PrimaryService
from psrpc.replication.state import decisions, rows_of
from psrpc.store.blueprint import Blueprint
from psrpc.store.shard import ShardStore

_COORDINATOR = "server0"


class SpareNode(ServerNode):
    """A process that is to be server `index` of `servers`, as soon as that many are."""

    def __init__(
        self,
        job: Job,
        index: int,
        servers: int,
        model: nn.Module,
        blueprint: Blueprint,
        fabric: Fabric,
    ) -> None:
        super().__init__(job, index, model, blueprint, fabric, servers)
        self._servers = servers
        self._unused: ShardStore | None = self.server.store  # made while others still train

    def serve(self, rendezvous: Rendezvous) -> None:
        """Take a share of the rows, and serve until the job or this server's part in it ends.

        Blocks. Raises ScaleError if it comes to nothing, JobFailedError if the job failed.
        """
        self.secret = rendezvous.secret
        number = rendezvous.number()
        url, pulse = rendezvous.read([_COORDINATOR, PULSE])
        self.start_agent(f"server{self.index}_{number}", self.job.servers + number)
        heart = Heart(pulse, number, self.job.elastic.dead_after_s, self.secret)
        heart.start()
        try:
            link = RpcLink(self.agent, Address(_COORDINATOR, 0, url))
            link.connect()
            settled = self._come(link, number)
            self.server.heard(settled.heard)
            self._watch(link)
            self._wait_or_stop(rendezvous)
            if self.server.failure is not None:
                rendezvous.say(reason(self.agent.name), json.dumps(encode(self.server.failure)))
            rendezvous.await_or_give_up(self._last_to_leave(), FAREWELL_S)
        finally:
            heart.stop()
            self._close()
            rendezvous.say(gone(self.agent.name))
        if self.server.failure is not None:
            raise self.server.failure

    def _come(self, coordinator: Link, number: int) -> Settled:
        """Offer this process, take its rows, and wait until it is a server."""
        attempt = 0
        while True:
            offer = _offer(self, number, self._servers, attempt)
            reply = _ask(coordinator, offer)
            if isinstance(reply, Cut):
                reply = _ask(coordinator, self._take(reply))
            if isinstance(reply, Settled):
                return reply
            if not isinstance(reply, Again):
                raise ScaleError(f"the coordinator answered {reply!r} to a new server")
            attempt += 1

    def _new_store(self) -> ShardStore:
        layout = self.server.store.layout
        return ShardStore(self.blueprint, layout, self.model, self.job.reduction)

    def _take(self, cut: Cut) -> Ready:
        """Fill the shard with its rows, and let workers in: they come when it is one."""
        try:
            wanted = Wanted(cut.layout, self.index, cut.servers, fresh=True)
            store, self._unused = self._unused or self._new_store(), None
            marks, core = gather(cut, wanted, store, self.blueprint, self.secret, None)
            self.server.begin_in(cut.layout, cut.servers, decisions(core), store)
            serve(self.agent, self.service)
            if self.entrance is not None:
                self.entrance.close()
            seat = self._open_doors().seat
        except Exception as error:
            return Ready(self.index, cut.layout, error=f"{type(error).__name__}: {error}")
        return Ready(self.index, cut.layout, seat, marks)


class SparePairNode(ReplicaNode):
    """One of two processes that are to be server `index` of `servers`, as soon as that many are.

    `since` is of the command that started both (see `Authority`); the `first` offers them.
    """

    def __init__(
        self,
        job: Job,
        becomes: Sequence[int],
        model: nn.Module,
        blueprint: Blueprint,
        fabric: Fabric,
    ) -> None:
        index, servers, command, first = becomes
        super().__init__(
            job,
            index,
            model,
            blueprint,
            fabric,
            first=bool(first),
            servers=servers,
            since=f"_by{command}",
        )
        self.server.fresh = True
        self._heart: Heart | None = None

    def _go_on_from_checkpoint(self, rendezvous: Rendezvous) -> None:
        """It begins as shard 0 stands at a cut."""

    def _begin_to_serve(self, primary: PrimaryService, rendezvous: Rendezvous) -> bool:
        if not self.server.fresh:
            return super()._begin_to_serve(primary, rendezvous)
        number = primary.me
        self._heart = heart_to(
            Authority(self._register, 0), number, self.job.elastic.dead_after_s, self.secret
        )
        self._heart.start()
        self._link = self._link_to_coordinator(rendezvous)
        if self._heir:
            primary.obey(self._follow_up(self._link))
        else:
            primary.obey(self._come(self._link, primary, number))
        self._be_movable(self._deliver_ready)  # its doors are of this layout
        return True

    def _close(self) -> None:
        super()._close()
        if self._heart is not None:
            self._heart.stop()

    def _come(self, coordinator: Link, primary: PrimaryService, number: int) -> Settled:
        """Offer this pair, take its rows, and wait until it is a server."""
        attempt = 0
        while True:
            offer = _offer(self, number, self.server.servers, attempt)
            reply = _ask(coordinator, offer)
            if isinstance(reply, Cut):
                reply = _ask(coordinator, self._take(reply, primary))
            if isinstance(reply, Settled):
                return reply
            if not isinstance(reply, Again):
                raise ScaleError(f"the coordinator answered {reply!r} to a new server")
            attempt += 1

    def _take(self, cut: Cut, primary: PrimaryService) -> Ready:
        """Fill the shard with its rows, and wait until the backup has them."""
        try:
            wanted = Wanted(cut.layout, self.index, cut.servers, fresh=True)
            store = self._store_of(cut.servers)
            marks, core = gather(cut, wanted, store, self.blueprint, self.secret, None)
            there = threading.Event()
            primary.take_rows(*rows_of(cut.layout, cut.servers, store, core), there.set)
            if not there.wait(CUT_WITHIN_S):
                raise PeerLostError("its backup does not take them")
        except Exception as error:
            return Ready(self.index, cut.layout, error=f"{type(error).__name__}: {error}")
        return Ready(self.index, cut.layout, seat_of(self._authority), marks)

    def _follow_up(self, coordinator: Link) -> Settled:
        """Be a server in the place of one that died, if that was one."""
        if self.server.layout:
            word = Ready(self.index, self.server.layout, error="it has died")
            reply = _ask(coordinator, word)
            if isinstance(reply, Settled):
                return reply
        raise ScaleError("a new server died before it served")


def _offer(node: ServerNode, number: int, servers: int, attempt: int) -> Offer:
    drawn = node.blueprint
    settings = (*node.job.settings, *drawn.options)
    return Offer(node.index, number, servers, attempt, drawn.signature, settings)


def _ask(coordinator: Link, request: Offer | Ready) -> Reply:
    try:
        return coordinator.call(request).wait()[0]
    except (ScaleError, JobOverError, UsageError, ModelError):
        raise
    except PsrpcError as error:
        raise ScaleError(f"the job has ended: {error}") from None


def spare_node(
    job: Job, becomes: Sequence[int], model: nn.Module, blueprint: Blueprint, fabric: Fabric
) -> ServerNode:
    """A server, or one of a pair, that comes while a job runs; see `Place.becomes`."""
    if job.replicas:
        return SparePairNode(job, becomes, model, blueprint, fabric)
    index, servers = becomes
    return SpareNode(job, index, servers, model, blueprint, fabric)
