"""The two roles of a process: each starts, does its work, and closes, as its phases say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from psrpc.coordinator import Coordinator
from psrpc.crew import stats_of
from psrpc.errors import StartTimeoutError, encode
from psrpc.job import Job
from psrpc.messages import GetStats
from psrpc.meter import Meter
from psrpc.planes.agent import Agent
from psrpc.planes.rpc import Address, RpcLink, serve, withdraw
from psrpc.rendezvous import Rendezvous
from psrpc.report import Report, summarize
from psrpc.server import ParameterServer
from psrpc.store.blueprint import Blueprint
from psrpc.store.shard import ShardStore
from psrpc.worker import Worker

_SERVER_THREADS = 4
_WORKER_THREADS = 1
_FAREWELL_S = 2.0

Watch = Callable[[Meter, Job], Callable[[], None]]


class ServerNode:
    """A process that serves one shard; server 0 coordinates as well."""

    def __init__(
        self, job: Job, index: int, model: nn.Module, blueprint: Blueprint, *, one_host: bool
    ) -> None:
        self.job = job
        self.index = index
        store = ShardStore(blueprint, blueprint.layouts(job.servers)[index], model, job.reduction)
        self.server = ParameterServer(job, index, blueprint, store)
        self.coordinator = Coordinator(job, self.server, blueprint, model) if index == 0 else None
        self.agent = Agent(f"server{index}", index, threads=_SERVER_THREADS, one_host=one_host)

    def serve(self, rendezvous: Rendezvous) -> None:
        """Serve until all workers are gone. Blocks; raises JobFailedError if the job failed."""
        self.agent.start()
        try:
            serve(self.agent, self.coordinator or self.server)
            rendezvous.publish(self.agent.name, self.agent.url)
            self._wait_for_workers()
            self.server.ended.wait()
            # The last answers must have arrived before the agent cuts them off.
            workers = [gone(f"worker{rank}") for rank in range(self.job.workers)]
            rendezvous.await_or_give_up(workers, _FAREWELL_S)
        finally:
            withdraw(self.agent)
            self.agent.close()
            rendezvous.publish(gone(self.agent.name), "")
        if self.server.failure is not None:
            raise self.server.failure

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
        self, job: Job, rank: int, model: nn.Module, blueprint: Blueprint, *, one_host: bool
    ) -> None:
        self.job = job
        self.rank = rank
        self.model = model
        self.blueprint = blueprint
        number = job.servers + rank
        self.agent = Agent(f"worker{rank}", number, threads=_WORKER_THREADS, one_host=one_host)

    def train(self, function: Callable[[Worker], Any], rendezvous: Rendezvous) -> Report:
        """Run the user's function as this worker. Blocks until all workers are done.

        What `function` raises ends the job everywhere and is raised here again.
        """
        names = [f"server{index}" for index in range(self.job.servers)]
        urls = rendezvous.read(names)
        self.agent.start()
        try:
            links = [
                RpcLink(self.agent, Address(name, index, url))
                for index, (name, url) in enumerate(zip(names, urls, strict=True))
            ]
            for link in links:
                link.connect()
            worker = Worker(self.job, self.rank, self.model, self.blueprint, links)
            return self._work(worker, function, links)
        finally:
            rendezvous.publish(gone(self.agent.name), "")
            # A server that still listens would log the end of a worker as a fault.
            rendezvous.await_or_give_up([gone(name) for name in names], _FAREWELL_S)
            self.agent.close()

    def _work(
        self, worker: Worker, function: Callable[[Worker], Any], links: list[RpcLink]
    ) -> Report:
        try:
            worker.start()
            function(worker)
            worker.leave()
            report = summarize(stats_of(links, self.rank, GetStats))
        except BaseException as error:
            # JobFailedError too: one server may not know what another one answered.
            worker.fail(encode(error))
            raise
        for link in links:
            link.close()
        worker.bye()
        return report


def gone(name: str) -> str:
    """The key under which a node says that it calls and answers no more."""
    return f"{name}/gone"
