"""A server process of a shard that has a backup: it follows or reigns, as the authority says."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import nn

from psrpc.core.replication import Reign
from psrpc.errors import DeposedError, PeerLostError, PsrpcError, StartTimeoutError, encode
from psrpc.job import Job
from psrpc.nodes import SERVER_THREADS, ServerNode
from psrpc.planes.agent import Agent
from psrpc.planes.groups import Fabric
from psrpc.planes.rpc import Patience, answers, serve
from psrpc.pulse import Pulse
from psrpc.rendezvous import FAREWELL_S, Rendezvous, gone, reason, worker_name
from psrpc.replication import places
from psrpc.replication.authority import REPLICAS, Authority
from psrpc.replication.failover import FailoverLink
from psrpc.replication.follower import HARBOUR, Ending, Follower
from psrpc.replication.lines import Harbour
from psrpc.replication.places import Reached, Served
from psrpc.replication.primary import PrimaryService
from psrpc.store.blueprint import Blueprint
from psrpc.watcher import Watcher


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
    ) -> None:
        super().__init__(job, index, model, blueprint, fabric)
        self.reigning: Callable[[], AbstractContextManager[object]] = nullcontext
        self._first = first
        self._primary: PrimaryService | None = None
        self._harbour: Harbour | None = None
        self._name = f"server{index}"  # of the shard, whoever serves it
        self._others: list[Authority] = []
        if self.coordinator is not None:
            # Also while it follows: what is decided may not depend on who decides.
            self.coordinator.suspect = self._look_after_servers

    def serve(self, rendezvous: Rendezvous) -> None:
        """Follow the shard's primary, and be that when it dies. Blocks until the job ends.

        Raises JobFailedError if it failed, and DeposedError if this process can do nothing more
        for it: as a new one it may follow.
        """
        number = rendezvous.number()
        authority = Authority(rendezvous.branch(REPLICAS), self.index)
        if self.coordinator is not None:
            store = rendezvous.branch(REPLICAS)
            self._others = [Authority(store, shard) for shard in range(1, self.job.servers)]
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
        if self._first and authority.look() is None:
            reign = authority.change(None, Reign(1, number))
            if reign.primary == number:
                return reign, 0
        elastic = self.job.elastic
        service = self.coordinator or self.server
        follower = Follower(service, number, authority, elastic.dead_after_s)
        patience_s = (
            self.job.start_timeout_s if not self._begun(authority) else (elastic.rejoin_timeout_s)
        )
        ending = follower.follow(patience_s, lambda: self._is_over(rendezvous))
        if ending is Ending.DROPPED:
            raise DeposedError(f"the primary of shard {self.index} goes on without this server")
        return (follower.reign, follower.core.last) if follower.reign is not None else None

    @staticmethod
    def _begun(authority: Authority) -> bool:
        return authority.look() is not None

    def _is_over(self, rendezvous: Rendezvous) -> bool:
        """Whether the shard's server has ended with the job."""
        said = (rendezvous.heard(key(self._name)) for key in (gone, reason))
        return any(text is not None for text in said)

    def _reign(self, reign: Reign, last: int, authority: Authority, rendezvous: Rendezvous) -> None:
        number, dead_after_s = reign.primary, self.job.elastic.dead_after_s
        self.agent = Agent(
            f"{self._name}_{number}",
            self.job.servers + number,
            threads=SERVER_THREADS,
            one_host=self.fabric.one_host,
        )
        self.agent.start()
        service = self.coordinator or self.server
        primary = PrimaryService(service, number, reign, last, authority, dead_after_s)
        self.service = self._primary = primary
        try:
            self._open_harbour(authority, number)
            self._open(primary, authority, number, rendezvous)
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
            raise DeposedError(f"another server has shard {self.index} now")
        rendezvous.say(gone(self._name))

    def _open_harbour(self, authority: Authority, number: int) -> None:
        assert self._primary is not None
        self._primary.start()
        self._harbour = Harbour(self.agent.host, self._primary.admit)
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
        serve(self.agent, primary)
        door, berth = self._open_door(), self._open_berth()
        pulse = self._listen_to_hearts(primary, rendezvous)
        agent = self.agent
        served = Served(agent.name, agent.number, agent.url, door, berth, pulse)
        places.post(authority, number, served)

    def _listen_to_hearts(self, primary: PrimaryService, rendezvous: Rendezvous) -> str:
        if self.coordinator is None:
            return ""
        self.coordinator.lost = lambda process: rendezvous.say(gone(worker_name(process)))
        self.pulse = Pulse(self.agent.host, self.job.elastic.dead_after_s, primary.lose)
        self.coordinator.expected = self.pulse.expect
        for process in self.coordinator.core.processes:
            self.pulse.expect(process)
        self.pulse.start()
        return self.pulse.address

    def _look_after_servers(self, error: PsrpcError) -> None:
        if self._primary is not None:
            super()._look_after_servers(error)

    def _all_answer(self) -> bool:
        try:
            served = [places.served(authority) for authority in self._others]
        except PeerLostError:
            return False
        return all(each and answers(each.name, Patience().ping_s) for each in served)

    def _wait_for_end(self, rendezvous: Rendezvous) -> None:
        assert self._primary is not None
        if self.coordinator is not None:
            self._supervise(self.coordinator)
            return
        authority = Authority(rendezvous.branch(REPLICAS), 0)
        is_over = lambda: rendezvous.heard(gone("server0")) is not None  # noqa: E731
        place = Reached(self.agent, authority, self.job.plane, is_over, words_only=True)
        link = FailoverLink(place, self.job.elastic.rejoin_timeout_s)
        Watcher(link, self.server, self._primary).start()
        self.server.ended.wait()

    def _fail(self, error: PsrpcError) -> None:
        assert self._primary is not None
        self._primary.fail(error)

    def _bid_farewell(self, rendezvous: Rendezvous) -> None:
        # The last answers must have arrived before the agent cuts them off.
        if self.server.failure is not None:
            rendezvous.say(reason(self._name), json.dumps(encode(self.server.failure)))
        rendezvous.await_or_give_up(self._last_to_leave(), FAREWELL_S)
