"""A server process of a shard that has a backup: it follows or reigns, as the authority says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

from torch import nn

from psrpc.attendance import watched
from psrpc.coordinator import Coordinator
from psrpc.core.replication import Reign
from psrpc.errors import (
    DeposedError,
    JobFailedError,
    PeerLostError,
    PsrpcError,
    StartTimeoutError,
    encode,
)
from psrpc.job import Job
from psrpc.messages import Bye
from psrpc.mover import Mover
from psrpc.moves import Ready
from psrpc.nodes import ServerNode
from psrpc.orders import Cut
from psrpc.planes.entrance import Entrance
from psrpc.planes.groups import Fabric
from psrpc.planes.rpc import Patience, answers, serve
from psrpc.pulse import Pulse
from psrpc.rendezvous import (
    FAILED,
    FAREWELL,
    FAREWELL_S,
    STOP,
    Rendezvous,
    gone,
    reason,
    worker_name,
)
from psrpc.replication import places
from psrpc.replication.authority import REPLICAS, Authority
from psrpc.replication.failover import FailoverLink
from psrpc.replication.follower import HARBOUR, Ending, Follower
from psrpc.replication.lines import Harbour
from psrpc.replication.places import Reached, since_of
from psrpc.replication.primary import PrimaryService
from psrpc.replication.state import rows_of
from psrpc.saying import say
from psrpc.store.blueprint import Blueprint
from psrpc.store.shard import ShardStore
from psrpc.watcher import Watcher

_COORDINATOR = "server0"
_DIED = "a server has died, and its backup has its place"


class PairMover(Mover):
    """Moves a shard that has a backup: its rows are an entry, so the backup has them as well."""

    primary: PrimaryService

    def _keep(self, cut: Cut, store: ShardStore, ready: Ready) -> None:
        rows, tensors = rows_of(cut.layout, cut.servers, store, b"")
        self.primary.take_rows(rows, tensors, lambda: tell_later(self.tell, ready))


def tell_later(tell: Callable[[Ready], object], ready: Ready) -> None:
    """Tell the coordinator on a thread: it may wait for whoever calls this."""
    threading.Thread(target=tell, args=(ready,), name="psrpc-ready", daemon=True).start()


class ReplicaNode(ServerNode):
    """One of the processes of a shard.

    One that is `first` begins the first reign, the others follow. `reigning` is entered while it
    is primary.
    """

    def __init__(
        self,
        job: Job,
        index: int,
        model: nn.Module,
        blueprint: Blueprint,
        fabric: Fabric,
        *,
        first: bool,
        servers: int | None = None,
        since: str = "",
    ) -> None:
        """`servers` and `since` are given for one that comes while the job runs."""
        super().__init__(job, index, model, blueprint, fabric, servers)
        self.reigning: Callable[[], AbstractContextManager[object]] = nullcontext
        self._first = first
        self._since = since
        self._primary: PrimaryService | None = None
        self._harbour: Harbour | None = None
        self._heir = False  # of one that has reigned before
        self._departed: set[int] = set()  # processes whose farewell only the store has heard
        self._link: FailoverLink | None = None  # to the coordinator, if that is not here
        self._name = f"server{index}{since}"  # of the shard, whoever serves it
        self.server.new_store = self._store_of
        if self.coordinator is not None:
            # Also while it follows: what is decided may not depend on who decides.
            self.coordinator.suspect = self._look_after_servers

    def ask_to_stop(self) -> bool:
        """See `ServerNode`. One that follows may just end: the primary goes on without it."""
        return self._primary is not None and super().ask_to_stop()

    def serve(self, rendezvous: Rendezvous) -> None:
        """Follow the shard's primary, and be that when it dies. Blocks until the job ends.

        Raises JobFailedError if it failed, and DeposedError if this process can do nothing more
        for it: as a new one it may follow.
        """
        self.secret = rendezvous.secret
        number = rendezvous.number()
        self._register = rendezvous.sealed_branch(REPLICAS)
        self._authority = authority = Authority(self._register, self.index, self._since)
        place = self._await_reign(number, authority, rendezvous)
        if place is not None:
            with self.reigning():
                self._reign(*place, authority, rendezvous)
        if self.server.failure is not None:
            raise self.server.failure

    def _await_reign(
        self, number: int, authority: Authority, rendezvous: Rendezvous
    ) -> tuple[Reign, int] | None:
        """Follow until this process reigns: since when, and after how many entries; None: never."""
        if self._first and self._may_begin(seen := authority.look()):
            reign = authority.change(seen, Reign(1, number))
            if reign.primary == number:
                return reign, 0
        elastic = self.job.elastic
        service = self.coordinator or self.server
        follower = Follower(service, number, authority, elastic.dead_after_s, self.secret)
        patience_s = self.job.start_timeout_s, elastic.rejoin_timeout_s
        try:
            ending = follower.follow(*patience_s, lambda: self._is_over(rendezvous))
        except JobFailedError:
            if follower.differs is not None:  # if its primary is gone, nobody else says it
                rendezvous.say(reason(self._name), json.dumps(encode(follower.differs)))
            raise
        if ending is Ending.DROPPED:
            why = f"the primary of shard {self.index} goes on without this server"
            self._make_way(rendezvous, why)
            return None
        if follower.reign is None:
            if not follower.orphan:
                # Its primary says that itself, unless it dies before.
                rendezvous.await_or_give_up([gone(self._name)], 2 * FAREWELL_S)
            if follower.orphan or rendezvous.heard(gone(self._name)) is None:
                self._end_in_its_place(rendezvous)
            return None
        say(f"shard {self.index} has lost its server, and its backup has taken over")
        return follower.reign, follower.core.last

    def _make_way(self, rendezvous: Rendezvous, why: str) -> None:
        """This process can do nothing more; raises DeposedError if a new one can."""
        if not _ended_well(rendezvous, self._name):
            raise DeposedError(why)

    def _end_in_its_place(self, rendezvous: Rendezvous) -> None:
        """Say for a primary that died when the job had ended that it has: others wait for that."""
        if self.server.failure is not None:
            rendezvous.say(reason(self._name), json.dumps(encode(self.server.failure)))
        rendezvous.say(gone(self._name))

    def _store_of(self, servers: int) -> ShardStore:
        layout = self.blueprint.layouts(servers)[self.index]
        return ShardStore(self.blueprint, layout, self.model, self.job.reduction)

    def _may_begin(self, seen: Reign | None) -> bool:
        """Whether nobody has served yet, nor will: one that had no backup died before it served."""
        return seen is None or (seen.epoch == 1 and not self._since)

    def _is_over(self, rendezvous: Rendezvous) -> bool:
        """Whether the shard's server has ended with the job."""
        said = (rendezvous.heard(key(self._name)) for key in (gone, reason))
        return any(text is not None for text in said)

    def _reign(self, reign: Reign, last: int, authority: Authority, rendezvous: Rendezvous) -> None:
        number, dead_after_s = reign.primary, self.job.elastic.dead_after_s
        self.start_agent(f"{self._name}_{number}", self.job.servers + number)
        service = self.coordinator or self.server
        primary = PrimaryService(service, number, reign, last, authority, dead_after_s)
        self.service = self._primary = primary
        self._heir = reign.epoch > 1
        try:
            self._prepare_checkpoints(primary)
            if reign.epoch == 1:
                self._go_on_from_checkpoint(rendezvous)
            self._open_harbour(authority, number)
            self._open(primary, authority, number, rendezvous)
            if self._begin_to_serve(primary, rendezvous):
                self._wait_for_end(rendezvous)
            primary.close(FAREWELL_S)
            if not primary.deposed:
                self._bid_farewell(rendezvous)
        finally:
            primary.stop()
            if self._harbour is not None:
                self._harbour.close()
            self._close()
        if primary.deposed:
            self._make_way(rendezvous, f"another server has shard {self.index} now")
            return
        rendezvous.say(gone(self._name))

    def _go_on_from_checkpoint(self, rendezvous: Rendezvous) -> None:
        """What the first primary has then, its backup gets as a copy."""
        try:
            self._resume(rendezvous)
        except Exception as error:
            rendezvous.say(FAILED, json.dumps(encode(error)))
            raise

    def _open_harbour(self, authority: Authority, number: int) -> None:
        assert self._primary is not None
        self._primary.start()
        self._harbour = Harbour(self.agent.host, self._primary.admit, self.secret)
        self._harbour.start()
        authority.post(number, HARBOUR, self._harbour.address)

    def _open(
        self,
        primary: PrimaryService,
        authority: Authority,
        number: int,
        rendezvous: Rendezvous,
    ) -> None:
        """Serve workers; the first primary when there is a backup."""
        timeout_s = self.job.start_timeout_s
        alone = primary.epoch == 1 and not primary.wait_for_backup(timeout_s)
        if alone and not primary.ended.is_set():
            raise StartTimeoutError(f"{self._name}'s backup has not come within {timeout_s:g} s")
        serve(self.agent, self._before(primary, primary, rendezvous))
        seat = self._open_doors().seat
        pulse = self._listen_to_hearts(primary, rendezvous)
        if not self.server.fresh and (mover := self._be_movable(self._deliver_ready)) is not None:
            mover.reopen()
        places.post(authority, number, seat, pulse)

    def _listen_to_hearts(self, primary: PrimaryService, rendezvous: Rendezvous) -> str:
        if self.coordinator is None:
            return ""
        # Not by one that is cut off, and takes for dead who has another coordinator.
        self.coordinator.lost = lambda process: primary.when_safe(
            partial(rendezvous.say, gone(worker_name(process)))
        )
        lose = watched(self.coordinator, primary.lose)
        self.pulse = Pulse(self.agent.host, self.job.elastic.dead_after_s, lose, self.secret)
        self.coordinator.expected = self.pulse.expect
        core = self.coordinator.core
        for process in (*core.processes, *core.resharding.processes):
            self.pulse.expect(process)
        self.pulse.start()
        return self.pulse.address

    def _look_after_servers(self, error: PsrpcError) -> None:
        if self._primary is not None:
            super()._look_after_servers(error)

    def _all_answer(self) -> bool:
        assert self.coordinator is not None
        seats = self.coordinator.core.resharding.seats
        shards = range(1, len(seats) or self.job.servers)
        others = [
            Authority(self._register, shard, since_of(seats[shard]) if seats else "")
            for shard in shards
        ]
        try:
            served = [places.served(authority) for authority in others]
        except PeerLostError:
            return False
        return all(each and answers(self.agent, each.name, Patience().ping_s) for each in served)

    # Other layouts.

    def _entrance(self, servers: int) -> Entrance:
        entrance = super()._entrance(servers)
        assert self._primary is not None
        places.post_doors(self._authority, self._primary.me, servers, entrance.seat)
        return entrance

    def _be_movable(self, deliver: Callable[[Ready], object]) -> Mover | None:
        if self.job.unscalable or self.mover is not None:
            return self.mover
        assert self.entrance is not None
        assert self._primary is not None
        at, parts = (self.agent.host, self.secret), (self.server, self.blueprint, self.model)
        self.mover = PairMover(*parts, at, self._entrance, deliver, self.entrance)
        self.mover.primary = self._primary
        return self.mover

    def _deliver_ready(self, ready: Ready) -> None:
        """Tell the coordinator that this pair is ready, wherever the two of them are."""
        if ready.seat is not None:
            ready = replace(ready, seat=places.seat_of(self._authority))
        if self._primary is not None and self.coordinator is not None:
            self._primary.handle(ready, (), lambda payload: None)
        elif self._link is not None:
            self._link.call(ready).wait()

    def _begin_to_serve(self, primary: PrimaryService, rendezvous: Rendezvous) -> bool:
        """Hear what the coordinator says. What the one before was about comes to nothing.

        Returns False if the job has ended just now.
        """
        if self.coordinator is None:
            try:
                self._link = self._link_to_coordinator(rendezvous)
            except PeerLostError:
                if not _ended_well(rendezvous, _COORDINATOR):
                    raise
                self.server.ended.set()
                return False
        if self.server.core.moving and self.coordinator is not None:
            primary.give_up_layout(_DIED)
        elif self.server.core.moving:
            word = Ready(self.index, self.server.core.moving, error=_DIED)
            tell_later(self._deliver_ready, word)
        return True

    def _link_to_coordinator(self, rendezvous: Rendezvous) -> FailoverLink:
        authority = Authority(self._register, 0)
        is_over = lambda: rendezvous.heard(gone(_COORDINATOR)) is not None  # noqa: E731
        place = Reached(self.agent, authority, self.job.plane, is_over)
        return FailoverLink(place, self.job.elastic.rejoin_timeout_s)

    def _wait_for_end(self, rendezvous: Rendezvous) -> None:
        assert self._primary is not None
        if self.coordinator is not None:
            self._begin_checkpoints(None)
            self._be_scalable(self.coordinator, self._primary)
            self._supervise(
                self.coordinator,
                lambda: rendezvous.heard(STOP, hush=False) is not None,
                partial(self._hear_farewells, self.coordinator, rendezvous),
            )
            return
        assert self._link is not None
        self._begin_checkpoints(self._link)
        over = partial(_ended_well, rendezvous, _COORDINATOR)
        Watcher(self._link, self.server, self._primary, self.mover, over).start()
        self._wait_or_stop(rendezvous)

    def _hear_farewells(self, coordinator: Coordinator, rendezvous: Rendezvous) -> None:
        """Hear of workers that were done, and could not say so to a coordinator that had died.

        They look for no successor of it.
        """
        assert self._primary is not None
        if not self._heir or not coordinator.look(lambda core: core.members.finished):
            return
        for process in coordinator.look(lambda core: set(core.processes)) - self._departed:
            if rendezvous.heard(gone(worker_name(process)), hush=False) == FAREWELL:
                self._departed.add(process)
                if (worker := coordinator.core.worker_of(process)) is not None:
                    self._primary.handle(Bye(worker, gone=True), (), lambda payload: None)

    def _fail(self, error: PsrpcError) -> None:
        assert self._primary is not None
        self._primary.fail(error)

    _fail_job = _fail

    def _bid_farewell(self, rendezvous: Rendezvous) -> None:
        # The last answers must have arrived before the agent cuts them off.
        if self.server.failure is not None:
            rendezvous.say(reason(self._name), json.dumps(encode(self.server.failure)))
        rendezvous.await_or_give_up(self._last_to_leave(), FAREWELL_S)


def _ended_well(rendezvous: Rendezvous, name: str) -> bool:
    """Whether a shard's server has closed, and has not said why the job failed."""
    heard = [rendezvous.heard(key(name)) is not None for key in (gone, reason)]
    return heard == [True, False]
