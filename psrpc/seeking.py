"""How a worker finds the job's servers: one a shard, or whoever of a pair reigns."""

from __future__ import annotations

import time
from typing import Protocol

from psrpc.errors import AddressError, PeerLostError, StartTimeoutError
from psrpc.follow import Found
from psrpc.job import Job, PlaneChoice
from psrpc.moves import FindServers, Seat, Servers
from psrpc.planes.agent import Agent
from psrpc.planes.base import Link
from psrpc.planes.collective import CollectiveLink
from psrpc.planes.groups import Fabric, Groups
from psrpc.planes.rpc import Address, Patience, RpcLink
from psrpc.planes.select import link_to
from psrpc.pulse import Heart
from psrpc.rendezvous import PULSE, Rendezvous, gone, groups_key, reason, shm_key, stream_key
from psrpc.replication.authority import REPLICAS, Authority
from psrpc.replication.failover import FailoverLink
from psrpc.replication.places import Reached, heart_to, served, since_of

_LOOK_AGAIN_S = 0.02


class Way(Protocol):
    """The way to the job's servers. To be made when a worker is about to come: blocks."""

    def heart(self, process: int) -> Heart:
        """What tells the coordinator that this process lives."""
        ...

    def links(self, agent: Agent) -> list[Link]:
        """A link to each shard. Raises PeerLostError, AddressError."""
        ...

    def found(self, agent: Agent) -> Found:
        """Of which layout these links are, and how those of another are had."""
        ...

    @property
    def names(self) -> list[str]:
        """What the servers are called in the launcher's store, coordinator first."""
        ...


class SingleServers:
    """Servers that stay where they are."""

    def __init__(self, job: Job, rendezvous: Rendezvous, fabric: Fabric) -> None:
        self._job, self._fabric, self._rendezvous = job, fabric, rendezvous
        names = [f"server{index}" for index in range(job.servers)]
        urls = rendezvous.read(names)
        doors = rendezvous.read([shm_key(name) for name in names])
        berths = rendezvous.read([stream_key(name) for name in names])
        self._first = tuple(map(Seat, names, range(len(names)), urls, doors, berths))
        self._found = Servers(0, self._first)
        (self._pulse,) = rendezvous.read([PULSE])

    def heart(self, process: int) -> Heart:
        """See `Way`."""
        return Heart(self._pulse, process, self._job.elastic.dead_after_s, self._rendezvous.secret)

    def links(self, agent: Agent) -> list[Link]:
        """See `Way`."""
        if self._job.unscalable:
            return self._reach(agent, self._found)
        coordinator = self._control(agent, self._first[0])
        coordinator.connect()
        while True:
            found, _ = coordinator.call(FindServers(-1)).wait()
            assert isinstance(found, Servers)
            found = found if found.layout else self._found
            try:
                return self._reach(agent, found)
            except (PeerLostError, AddressError):
                # One of them may have been removed meanwhile, or just now.
                again, _ = coordinator.call(FindServers(-1, lost=True)).wait()
                assert isinstance(again, Servers)
                if again.layout == found.layout:
                    raise

    def found(self, agent: Agent) -> Found:
        """See `Way`."""
        return Found(self._found.layout, lambda found: self._reach(agent, found))

    @property
    def names(self) -> list[str]:
        """See `Way`."""
        return [seat.name for seat in self._found.seats]

    def _reach(self, agent: Agent, found: Servers) -> list[Link]:
        self._found = found
        return [self._link(self._control(agent, seat), seat) for seat in found.seats]

    def _control(self, agent: Agent, seat: Seat) -> RpcLink:
        patience = Patience(silent_s=self._job.elastic.rejoin_timeout_s)
        return RpcLink(agent, Address(seat.name, seat.number, seat.url), patience)

    def _link(self, control: RpcLink, seat: Seat) -> Link:
        if self._job.plane is not PlaneChoice.COLLECTIVE:
            return link_to(control, seat.door, seat.berth, self._job.plane)
        control.connect()
        return _shared(control, self._rendezvous, self._fabric, moves=False)


def _shared(
    control: RpcLink, rendezvous: Rendezvous, fabric: Fabric, *, moves: bool
) -> CollectiveLink:
    """A link to a server with which this worker is to share process groups."""
    name = control.peer.name
    groups = Groups(name, rendezvous.branch(groups_key(name)), fabric)
    return CollectiveLink(control, groups, fabric.device, moves=moves)


class PairedServers:
    """Servers that may move: the worker follows whoever reigns."""

    def __init__(self, job: Job, rendezvous: Rendezvous, fabric: Fabric) -> None:
        self._job, self._rendezvous, self._fabric = job, rendezvous, fabric
        self._store = rendezvous.sealed_branch(REPLICAS)
        self._layout = 0
        self._authorities = [Authority(self._store, shard) for shard in range(job.servers)]
        deadline = time.monotonic() + job.start_timeout_s
        while missing := [a.shard for a in self._authorities if served(a) is None]:
            rendezvous.heed_failure()
            if time.monotonic() > deadline:
                raise StartTimeoutError(
                    f"for {job.start_timeout_s:g} s nobody has served the shards {missing}"
                )
            time.sleep(_LOOK_AGAIN_S)

    def heart(self, process: int) -> Heart:
        """See `Way`."""
        return heart_to(
            self._authorities[0],
            process,
            self._job.elastic.dead_after_s,
            self._rendezvous.secret,
        )

    def links(self, agent: Agent) -> list[Link]:
        """See `Way`."""
        if self._job.unscalable:
            return self._reach_all(agent)
        coordinator = self._link(agent, self._authorities[0], None)
        lost = False
        while True:
            found, _ = coordinator.call(FindServers(-1, lost)).wait()
            assert isinstance(found, Servers)
            if lost and found.layout == self._layout:
                return self._reach_all(agent)
            try:
                return self._reach(agent, found) if found.layout else self._reach_all(agent)
            except PeerLostError:
                lost = True  # one of them may have been removed meanwhile

    def found(self, agent: Agent) -> Found:
        """See `Way`."""
        return Found(self._layout, lambda found: self._reach(agent, found))

    @property
    def names(self) -> list[str]:
        """See `Way`."""
        return [f"server{authority.name}" for authority in self._authorities]

    def _reach(self, agent: Agent, found: Servers) -> list[Link]:
        self._layout = found.layout
        self._authorities = [
            Authority(self._store, shard, since_of(seat)) for shard, seat in enumerate(found.seats)
        ]
        return self._reach_all(agent)

    def _reach_all(self, agent: Agent) -> list[Link]:
        servers = len(self._authorities)
        return [self._link(agent, authority, servers) for authority in self._authorities]

    def _link(self, agent: Agent, authority: Authority, servers: int | None) -> FailoverLink:
        over = [gone("server0"), gone(f"server{authority.name}"), *map(reason, self.names)]

        def is_over() -> bool:
            return any(self._rendezvous.heard(key) is not None for key in over)

        plane = self._job.plane
        shared = self._shared if plane is PlaneChoice.COLLECTIVE and servers else None
        place = Reached(agent, authority, plane, is_over, servers, shared)
        return FailoverLink(place, self._job.elastic.rejoin_timeout_s)

    def _shared(self, control: RpcLink) -> CollectiveLink:
        return _shared(control, self._rendezvous, self._fabric, moves=True)
