"""The two roles of a process: each starts, does its work, and closes, as its phases say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from psrpc.coordinator import Coordinator
from psrpc.crew import stats_of
from psrpc.errors import PeerLostError, PsrpcError, StartTimeoutError, decode, encode
from psrpc.job import Job, PlaneChoice
from psrpc.messages import GetStats
from psrpc.planes.agent import Agent, hushed
from psrpc.planes.base import Link
from psrpc.planes.collective import Alarm, CollectiveLink
from psrpc.planes.conductor import Conductor
from psrpc.planes.doorman import Doorman
from psrpc.planes.groups import Fabric, Groups
from psrpc.planes.porter import LEAST_BYTES, Porter
from psrpc.planes.rpc import Address, RpcLink, serve, withdraw
from psrpc.planes.select import link_to, planes_of
from psrpc.planes.staging import Staging
from psrpc.rendezvous import Rendezvous
from psrpc.report import Report, summarize
from psrpc.server import ParameterServer
from psrpc.store.blueprint import Blueprint
from psrpc.store.shard import ShardStore
from psrpc.worker import Worker

_SERVER_THREADS = 4
_WORKER_THREADS = 1
_FAREWELL_S = 2.0


class ServerNode:
    """A process that serves one shard; server 0 coordinates as well."""

    def __init__(
        self, job: Job, index: int, model: nn.Module, blueprint: Blueprint, fabric: Fabric
    ) -> None:
        self.job = job
        self.index = index
        self.fabric = fabric
        self.layout = layout = blueprint.layouts(job.servers)[index]
        store = ShardStore(blueprint, layout, model, job.reduction)
        self.server = ParameterServer(job, index, blueprint, store)
        self.coordinator = Coordinator(job, self.server, blueprint, model) if index == 0 else None
        self.agent = Agent(
            f"server{index}", index, threads=_SERVER_THREADS, one_host=fabric.one_host
        )
        self.doorman = Doorman(self.coordinator or self.server, layout)
        self.porter: Porter | None = None
        self.conductor: Conductor | None = None

    def serve(self, rendezvous: Rendezvous) -> None:
        """Serve until all workers are gone. Blocks; raises JobFailedError if the job failed."""
        self.agent.start()
        try:
            self.conductor = self._raise_conductor(rendezvous)
            serve(self.agent, self.conductor or self.coordinator or self.server)
            rendezvous.publish(shm_key(self.agent.name), self._open_door())
            rendezvous.publish(stream_key(self.agent.name), self._open_berth())
            rendezvous.publish(self.agent.name, self.agent.url)
            self._wait_for_workers()
            self.server.ended.wait()
            # The last answers must have arrived before the agent cuts them off.
            if self.server.failure is not None:
                rendezvous.say(reason(self.agent.name), json.dumps(encode(self.server.failure)))
            workers = [gone(f"worker{rank}") for rank in range(self.job.workers)]
            rendezvous.await_or_give_up(workers, _FAREWELL_S)
        finally:
            self.doorman.close()
            if self.porter is not None:
                self.porter.close()
            if self.conductor is not None:
                self.conductor.close()
            withdraw(self.agent)
            self.agent.close()
            rendezvous.say(gone(self.agent.name))
        if self.server.failure is not None:
            raise self.server.failure

    def _open_door(self) -> str:
        if self.job.plane in (PlaneChoice.RPC, PlaneChoice.COLLECTIVE):
            return ""
        self.doorman.start()
        return self.doorman.address

    def _open_berth(self) -> str:
        small = self.layout.size_bytes < LEAST_BYTES
        if small or self.job.plane in (PlaneChoice.SHM, PlaneChoice.COLLECTIVE):
            return ""
        self.porter = Porter(self.coordinator or self.server, self.layout, self.agent.host)
        self.porter.start()
        return self.porter.address

    def _raise_conductor(self, rendezvous: Rendezvous) -> Conductor | None:
        if self.job.plane is not PlaneChoice.COLLECTIVE:
            return None
        staging = Staging(self.layout, self.job.workers, self.fabric.device)
        groups = Groups(
            self.agent.name, rendezvous.branch(groups_key(self.agent.name)), self.fabric
        )
        conductor = Conductor(self.coordinator or self.server, staging, groups)
        conductor.start()
        return conductor

    def _wait_for_workers(self) -> None:
        """End the job if not all workers come in time; only the coordinator watches that."""
        if self.coordinator is None:
            return
        complete = self.coordinator.complete
        if complete.wait(self.job.start_timeout_s) or self.server.ended.is_set():
            return
        missing = ", ".join(f"worker {w}" for w in self.coordinator.core.members.missing)
        self.coordinator.fail(
            StartTimeoutError(
                f"these have not come within {self.job.start_timeout_s:g} s: {missing}"
            )
        )


class WorkerNode:
    """A process that trains."""

    def __init__(
        self, job: Job, rank: int, model: nn.Module, blueprint: Blueprint, fabric: Fabric
    ) -> None:
        self.job = job
        self.rank = rank
        self.fabric = fabric
        self.alarm = Alarm()
        self.model = model
        self.blueprint = blueprint
        self.plane = ""
        number = job.servers + rank
        self.agent = Agent(
            f"worker{rank}", number, threads=_WORKER_THREADS, one_host=fabric.one_host
        )

    def train(self, function: Callable[[Worker], Any], rendezvous: Rendezvous) -> Report:
        """Run the user's function as this worker. Blocks until all workers are done.

        What `function` raises ends the job everywhere and is raised here again.
        """
        names = [f"server{index}" for index in range(self.job.servers)]
        urls = rendezvous.read(names)
        doors = rendezvous.read([shm_key(name) for name in names])
        berths = rendezvous.read([stream_key(name) for name in names])
        self.agent.start()
        try:
            links = [
                self._link(RpcLink(self.agent, Address(name, index, url)), door, berth, rendezvous)
                for index, (name, url, door, berth) in enumerate(
                    zip(names, urls, doors, berths, strict=True)
                )
            ]
            self.plane = planes_of(links)
            worker = Worker(self.job, self.rank, self.model, self.blueprint, links)
            return self._work(worker, function, links)
        except PeerLostError as error:
            raise _last_words(rendezvous, names) or error from None
        finally:
            rendezvous.say(gone(self.agent.name))
            # A server that still listens would log the end of a worker as a fault.
            # It may itself wait that long, for a worker that never came.
            rendezvous.await_or_give_up([gone(name) for name in names], 2 * _FAREWELL_S)
            self.agent.close()

    def _link(self, control: RpcLink, door: str, berth: str, rendezvous: Rendezvous) -> Link:
        if self.job.plane is not PlaneChoice.COLLECTIVE:
            return link_to(control, door, berth, self.job.plane)
        control.connect()
        name = control.peer.name
        groups = Groups(name, rendezvous.branch(groups_key(name)), self.fabric)
        device, workers = self.fabric.device, self.job.workers
        return CollectiveLink(control, groups, device, workers, self.alarm)

    def _work(self, worker: Worker, function: Callable[[Worker], Any], links: list[Link]) -> Report:
        try:
            worker.start()
            function(worker)
            worker.leave()
            report = summarize(stats_of(links, self.rank, GetStats))
        except BaseException as error:
            # JobFailedError too: one server may not know what another one answered.
            with hushed():  # torch logs it if a server has closed meanwhile
                worker.fail(encode(error))
            raise
        for link in links:
            link.close()
        worker.bye()
        return report


def shm_key(name: str) -> str:
    """The key under which a server says where it shares memory; empty if it does not."""
    return f"{name}/shm"


def stream_key(name: str) -> str:
    """The key under which a server says where it takes streams; empty if it does not."""
    return f"{name}/stream"


def groups_key(name: str) -> str:
    """Where the members of a server's process groups find each other."""
    return f"{name}/groups"


def reason(name: str) -> str:
    """The key under which a server says why it leaves before the job is done."""
    return f"{name}/reason"


def _last_words(rendezvous: Rendezvous, servers: Sequence[str]) -> PsrpcError | None:
    """Why the job failed, if a server still said so to a worker that came too late to be told."""
    said = [rendezvous.heard(reason(name)) for name in servers]
    words = next((text for text in said if text is not None), None)
    return None if words is None else decode(*json.loads(words))


def gone(name: str) -> str:
    """The key under which a node says that it calls and answers no more."""
    return f"{name}/gone"
