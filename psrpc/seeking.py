"""How a worker finds the job's servers: one a shard, or whoever of a pair reigns."""

from __future__ import annotations

import time
from typing import Protocol

from psrpc.errors import StartTimeoutError
from psrpc.job import Job, PlaneChoice
from psrpc.planes.agent import Agent
from psrpc.planes.base import Link
from psrpc.planes.collective import Alarm, CollectiveLink
from psrpc.planes.groups import Fabric, Groups
from psrpc.planes.rpc import Address, RpcLink
from psrpc.planes.select import link_to
from psrpc.pulse import Heart
from psrpc.rendezvous import PULSE, Rendezvous, gone, groups_key, reason, shm_key, stream_key
from psrpc.replication.authority import REPLICAS, Authority
from psrpc.replication.failover import FailoverLink
from psrpc.replication.places import Reached, pulse_of, served

_LOOK_AGAIN_S = 0.02


class Servers(Protocol):
    """The job's servers, as a worker finds them. To be made when it is about to come: blocks."""

    def heart(self, process: int) -> Heart:
        """What tells the coordinator that this process lives."""
        ...

    def links(self, agent: Agent) -> list[Link]:
        """A link to each shard. Raises PeerLostError, AddressError."""
        ...


class SingleServers:
    """Servers that stay where they are."""

    def __init__(self, job: Job, rendezvous: Rendezvous, fabric: Fabric) -> None:
        self._job, self._fabric, self._rendezvous = job, fabric, rendezvous
        self._alarm = Alarm()
        self._names = [f"server{index}" for index in range(job.servers)]
        self._urls = rendezvous.read(self._names)
        self._doors = rendezvous.read([shm_key(name) for name in self._names])
        self._berths = rendezvous.read([stream_key(name) for name in self._names])
        (self._pulse,) = rendezvous.read([PULSE])

    def heart(self, process: int) -> Heart:
        """See `Servers`."""
        return Heart(self._pulse, process, self._job.elastic.dead_after_s)

    def links(self, agent: Agent) -> list[Link]:
        """See `Servers`."""
        places = zip(self._names, self._urls, self._doors, self._berths, strict=True)
        return [
            self._link(RpcLink(agent, Address(name, index, url)), door, berth)
            for index, (name, url, door, berth) in enumerate(places)
        ]

    def _link(self, control: RpcLink, door: str, berth: str) -> Link:
        if self._job.plane is not PlaneChoice.COLLECTIVE:
            return link_to(control, door, berth, self._job.plane)
        control.connect()
        name = control.peer.name
        groups = Groups(name, self._rendezvous.branch(groups_key(name)), self._fabric)
        device, workers = self._fabric.device, self._job.workers
        return CollectiveLink(control, groups, device, workers, self._alarm)


class PairedServers:
    """Servers in pairs, of which the worker follows the one that reigns."""

    def __init__(self, job: Job, rendezvous: Rendezvous) -> None:
        self._job, self._rendezvous = job, rendezvous
        self._authorities = [
            Authority(rendezvous.branch(REPLICAS), shard) for shard in range(job.servers)
        ]
        deadline = time.monotonic() + job.start_timeout_s
        while missing := [a.shard for a in self._authorities if served(a) is None]:
            if time.monotonic() > deadline:
                raise StartTimeoutError(
                    f"for {job.start_timeout_s:g} s nobody has served the shards {missing}"
                )
            time.sleep(_LOOK_AGAIN_S)

    def heart(self, process: int) -> Heart:
        """See `Servers`."""
        first = self._authorities[0]
        dead_after_s = self._job.elastic.dead_after_s
        return Heart(pulse_of(first) or "", process, dead_after_s, lambda: pulse_of(first))

    def links(self, agent: Agent) -> list[Link]:
        """See `Servers`."""
        patience_s = self._job.elastic.rejoin_timeout_s
        return [
            FailoverLink(Reached(agent, authority, self._job.plane, self._is_over), patience_s)
            for authority in self._authorities
        ]

    def _is_over(self) -> bool:
        keys = [key(f"server{s}") for s in range(self._job.servers) for key in (gone, reason)]
        return any(self._rendezvous.heard(key) is not None for key in keys)
