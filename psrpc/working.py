"""A process that trains: it comes, runs the user's function, and leaves, as its phases say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from torch import nn

from psrpc.crew import stats_of
from psrpc.errors import (
    JobOverError,
    PeerLostError,
    PsrpcError,
    StoppedError,
    decode,
    encode,
)
from psrpc.interrupts import Terminated
from psrpc.job import Job
from psrpc.planes.agent import Agent
from psrpc.planes.base import Link
from psrpc.planes.groups import Fabric
from psrpc.planes.select import planes_of
from psrpc.rendezvous import FAREWELL, FAREWELL_S, REPORTED, Rendezvous, gone, reason, worker_name
from psrpc.report import Report, summarize
from psrpc.saying import hushed, say
from psrpc.seeking import PairedServers, SingleServers, Way
from psrpc.slices import in_long_slices
from psrpc.store.blueprint import Blueprint
from psrpc.worker import Worker

_THREADS = 1


class WorkerNode:
    """A process that trains."""

    def __init__(
        self,
        job: Job,
        rank: int | None,
        model: nn.Module,
        blueprint: Blueprint,
        fabric: Fabric,
    ) -> None:
        self.job = job
        self.rank = rank
        self.fabric = fabric
        self.model = model
        self.blueprint = blueprint
        self.plane = ""
        self.worker: Worker | None = None
        self._lost = False  # taken for dead

    def ask_to_leave(self) -> bool:
        """Let the worker finish its step and leave; False if it does not train yet."""
        if self.worker is None:
            return False
        self.worker.ask_to_leave()
        return True

    @property
    def _belongs(self) -> bool:
        """Whether the coordinator has let this worker in."""
        return self.worker is not None and self.worker.number >= 0

    def train(self, function: Callable[[Worker], Any], rendezvous: Rendezvous) -> Report | None:
        """Run the user's function as this worker. Blocks until all workers are done.

        What `function` raises ends the job everywhere and is raised here again; that a server
        is lost to this worker does not, if it still answers others. Raises JobOverError if the
        job had ended when this worker came.
        """
        names = [f"server{index}" for index in range(self.job.servers)]
        try:
            servers = self._servers(rendezvous)
            names = servers.names
            return self._come(function, rendezvous, servers)
        except PeerLostError as error:
            words = _last_words(rendezvous, names)
            if words is None and not self._belongs and self._over(rendezvous, names[0]):
                raise JobOverError("the servers had closed when this worker came") from None
            if words is None and self._lost and rendezvous.heard(REPORTED) is not None:
                raise JobOverError("this worker was taken for dead, and others ended it") from None
            raise words or error from None

    def _over(self, rendezvous: Rendezvous, coordinator: str) -> bool:
        """Whether the job has ended in order: the coordinator has closed, or its store has."""
        rendezvous.await_or_give_up([gone(coordinator)], FAREWELL_S)
        if rendezvous.heard(gone(coordinator)) is not None:
            return True
        return self.rank is None and not rendezvous.answers()

    def _come(
        self, function: Callable[[Worker], Any], rendezvous: Rendezvous, servers: Way
    ) -> Report | None:
        process = rendezvous.number()
        number = self.job.servers + process
        agent = Agent(
            worker_name(process),
            number,
            threads=_THREADS,
            one_host=self.fabric.one_host,
            secret=rendezvous.secret,
        )
        heart = servers.heart(process)
        agent.start()
        try:
            heart.start()
            links = servers.links(agent)
            self.plane = planes_of(links)
            self.worker = Worker(
                self.job,
                self.rank,
                self.model,
                self.blueprint,
                links,
                process=process,
                found=servers.found(agent),
            )
            return self._work(self.worker, function, links, rendezvous)
        finally:
            heart.stop()
            self._lost = rendezvous.heard(gone(agent.name)) is not None  # the coordinator's word
            rendezvous.say(gone(agent.name), FAREWELL)
            # A server that still listens would log the end of a worker as a fault.
            # It may itself wait that long, for a worker that never came.
            if self.worker is None or not self.worker.leaving:
                rendezvous.await_or_give_up([gone(name) for name in servers.names], 2 * FAREWELL_S)
            agent.close()

    def _servers(self, rendezvous: Rendezvous) -> Way:
        if self.job.replicas or self.job.goes_back:
            return PairedServers(self.job, rendezvous, self.fabric)
        return SingleServers(self.job, rendezvous, self.fabric)

    def _work(
        self,
        worker: Worker,
        function: Callable[[Worker], Any],
        links: list[Link],
        rendezvous: Rendezvous,
    ) -> Report | None:
        report = None
        try:
            with worker.crew.unless_leaving():
                worker.start()
            with worker.crew.unless_leaving():
                if self._belongs:
                    if self.rank is None:
                        say(f"joined as worker {worker.rank}")
                    with in_long_slices() if _on_cpu(self.model) else nullcontext():
                        function(worker)
            if not self._belongs:
                return None  # it was asked to leave before the job began
            worker.leave(early=worker.leaving)
            if worker.stayed:
                worker.crew.await_last_checkpoint()
                follower = worker.follower
                stats = follower.through(lambda: stats_of(links, worker.number, follower.layout))
                report = summarize(stats)
        except (JobOverError, KeyboardInterrupt, Terminated):
            raise  # the others see it by the connection, and go on
        except BaseException as error:
            if worker.leaving and isinstance(error, (PeerLostError, StoppedError)):
                return None  # the servers were told to end as well
            # JobFailedError too: one server may not know what another one answered.
            with hushed():  # torch logs it if a server has closed meanwhile
                worker.crew.fail(encode(error))
            raise
        for link in links:
            link.close()
        worker.main = self._reports(worker, rendezvous)
        return report

    def _reports(self, worker: Worker, rendezvous: Rendezvous) -> bool:
        """Say farewell, and return whether this worker is the one that reports the results."""
        me = str(worker.number)
        if worker.main:
            rendezvous.say(REPORTED, me)
        reports = worker.crew.bye()
        if reports and not worker.main:  # the one that should have is dead, or taken for dead
            rendezvous.say(REPORTED, me)
        if reports is None:  # all have gone, and another may have reported while this stood still
            return worker.main and rendezvous.heard(REPORTED) in (me, None)
        return reports


def _on_cpu(model: nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in model.parameters())


def _last_words(rendezvous: Rendezvous, servers: Sequence[str]) -> PsrpcError | None:
    """Why the job failed, if a server still said so to a worker that came too late to be told."""
    said = [rendezvous.heard(reason(name)) for name in servers]
    words = next((text for text in said if text is not None), None)
    return None if words is None else decode(*json.loads(words))
