"""Servers for the plane suite: in this process, or in processes of their own that can be killed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from psrpc.coordinator import Coordinator
from psrpc.job import Backend, Job
from psrpc.planes.agent import Agent
from psrpc.planes.base import Link
from psrpc.planes.collective import CollectiveLink
from psrpc.planes.conductor import Conductor
from psrpc.planes.doorman import Doorman
from psrpc.planes.groups import Fabric, Groups
from psrpc.planes.loopback import LoopbackLink
from psrpc.planes.porter import Porter
from psrpc.planes.rpc import Address, Patience, RpcLink, serve, withdraw
from psrpc.planes.shm import ShmLink
from psrpc.planes.staging import Staging
from psrpc.planes.stream import StreamLink
from psrpc.secret import Secret
from psrpc.server import ParameterServer
from psrpc.store.blueprint import Blueprint, draw
from psrpc.store.layout import ShardLayout
from psrpc.store.shard import ShardStore
from tests.stores import keep_store

Service = Coordinator | ParameterServer

SECRET = Secret(b"a secret of the tests")


def until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds, which is asked again and again."""
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.001)  # others in this process may be on their way to it


@dataclass(frozen=True)
class Plan:
    """A job of the suite: plain SGD with a learning rate of 1 on one linear layer."""

    job: Job
    rows: int = 3
    columns: int = 4

    def model(self) -> nn.Module:
        torch.manual_seed(self.job.seed)
        return nn.Linear(self.columns, self.rows)

    def blueprint(self) -> Blueprint:
        return draw(self.model(), partial(torch.optim.SGD, lr=1.0))

    def layouts(self) -> tuple[ShardLayout, ...]:
        return self.blueprint().layouts(self.job.servers)

    def service(self, index: int) -> Service:
        model, blueprint = self.model(), self.blueprint()
        store = ShardStore(blueprint, self.layouts()[index], model, self.job.reduction)
        server = ParameterServer(self.job, index, blueprint, store)
        return Coordinator(self.job, server, blueprint, model) if index == 0 else server


def way_to_store(port: int, prefix: str) -> Store:
    """A connection of its own to the dock's store."""
    return PrefixStore(prefix, TCPStore("127.0.0.1", port, None, False, wait_for_workers=False))


def fabric(timeout_s: float) -> Fabric:
    return Fabric(Backend.GLOO, timeout_s, torch.device("cpu"), one_host=True)


@dataclass(frozen=True)
class Order:
    """What a server process shall serve, to whom the process groups are told apart by `prefix`."""

    plan: Plan
    index: int
    store_port: int
    prefix: str

    def conductor(self, service: Service) -> Conductor:
        job, server = self.plan.job, getattr(service, "server", service)
        staging = Staging(self.plan.layouts()[self.index], torch.device("cpu"))
        store = way_to_store(self.store_port, f"{self.prefix}/{self.index}")
        groups = Groups(f"server{self.index}", store, fabric(job.collective_timeout_s))
        conductor = Conductor(service, server, service.fail, staging, groups, job.reduction)
        server.stirred = conductor.stir
        return conductor


def serve_plans(pipe: Connection, name: str, number: int) -> None:
    """A server process: serves one plan after another, as it is told, until the pipe closes."""
    agent = Agent(name, number, threads=4, one_host=True, secret=SECRET, serves=True)
    agent.start()
    pipe.send(agent.url)
    doorman: Doorman | None = None
    porter: Porter | None = None
    conductor: Conductor | None = None
    while True:
        try:
            order: Order | None = pipe.recv()
        except EOFError:
            os._exit(0)
        if doorman is not None:
            doorman.close()
            doorman = None
        if porter is not None:
            porter.close()
            porter = None
        if conductor is not None:
            conductor.close()
            conductor = None
        withdraw(agent)
        if order is not None:
            service = order.plan.service(order.index)
            quick = getattr(service, "server", service)
            doorman = Doorman(service, order.plan.layouts()[order.index], quick)
            doorman.start()
            porter = Porter(service, order.plan.layouts()[order.index], agent.host, SECRET, quick)
            porter.start()
            conductor = order.conductor(service)
            conductor.start()
            serve(agent, conductor)
        pipe.send((doorman.address, porter.address) if doorman and porter else ("", ""))


class ServerProcess:
    """A server in a process of its own, seen from the test."""

    def __init__(self, number: int) -> None:
        self.name = f"server{number}"
        self.number = number
        context = multiprocessing.get_context("forkserver")
        # Imported once for all servers.
        context.set_forkserver_preload([__name__])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=serve_plans, args=(theirs, self.name, number), daemon=True
        )
        self._process.start()
        theirs.close()
        self.url = str(self._receive())

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def address(self) -> Address:
        return Address(self.name, self.number, self.url)

    def order(self, order: Order | None) -> tuple[str, str]:
        """Serve a plan's shard, or (None) nothing; returns where it shares memory and streams."""
        self._pipe.send(order)
        door, berth = self._receive()
        return str(door), str(berth)

    def kill(self) -> None:
        """End it as a crash would, and wait until it is gone."""
        self._process.kill()
        self._process.join(10.0)

    def close(self) -> None:
        """Let it end by itself."""
        self._pipe.close()
        self._process.join(10.0)

    def _receive(self) -> Any:
        assert self._pipe.poll(60.0), f"{self.name} says nothing"
        return self._pipe.recv()


class Fleet:
    """The servers of one plan, reached over `plane` if nothing else is said."""

    def __init__(self, plan: Plan, plane: str, connect: Callable[[str, int], Link]) -> None:
        self.plan = plan
        self.plane = plane
        self._connect = connect
        self._links: list[Link] = []

    def links(self, plane: str = "") -> list[Link]:
        """New links to all servers, a worker's."""
        servers = range(self.plan.job.servers)
        links = [self._connect(plane or self.plane, index) for index in servers]
        self._links += links
        return links

    def close(self) -> None:
        """Close all links that it made."""
        for link in self._links:
            link.close()


class Dock:
    """Makes fleets. Server processes and this process's agent are started when needed.

    Torch has one agent a process, and it cannot be started twice.
    """

    def __init__(self) -> None:
        self._agent: Agent | None = None
        self._store: TCPStore | None = None
        self.processes: list[ServerProcess] = []
        self._numbers = iter(range(1000))
        self._fleets = itertools.count()

    @property
    def agent(self) -> Agent:
        if self._agent is None:
            self._agent = Agent("tester", 1000, threads=2, one_host=True, secret=SECRET)
            self._agent.start()
        return self._agent

    @property
    def store_port(self) -> int:
        """Where the members of process groups find each other."""
        if self._store is None:
            self._store = keep_store()
        return self._store.port

    def process(self) -> ServerProcess:
        """A server process that nobody else uses."""
        return ServerProcess(next(self._numbers))

    def fleet(self, plane: str, plan: Plan, patience: Patience | None = None) -> Fleet:
        """Start the plan's servers afresh."""
        if plane == "loopback":
            services = [plan.service(index) for index in range(plan.job.servers)]
            return Fleet(plan, plane, lambda _, index: LoopbackLink(services[index]))
        while len(self.processes) < plan.job.servers:
            self.processes.append(self.process())
        return self.fleet_of(self.processes[: plan.job.servers], plane, plan, patience)

    def fleet_of(
        self,
        processes: list[ServerProcess],
        plane: str,
        plan: Plan,
        patience: Patience | None = None,
    ) -> Fleet:
        """The same on these processes."""
        port, prefix = self.store_port, f"fleet{next(self._fleets)}"
        doors = [
            process.order(Order(plan, index, port, prefix))
            for index, process in enumerate(processes)
        ]

        def connect(plane: str, index: int) -> Link:
            control = RpcLink(self.agent, processes[index].address, patience)
            control.connect()
            if plane == "rpc":
                return control
            if plane == "collective":
                store = way_to_store(port, f"{prefix}/{index}")
                groups = Groups(f"server{index}", store, fabric(plan.job.collective_timeout_s))
                return CollectiveLink(control, groups, torch.device("cpu"))
            door, berth = doors[index]
            way = StreamLink(control, berth) if plane == "stream" else ShmLink(control, door)
            way.connect()
            return way

        return Fleet(plan, plane, connect)

    def close(self) -> None:
        for process in self.processes:
            process.close()
        if self._agent is not None:
            self._agent.close()
