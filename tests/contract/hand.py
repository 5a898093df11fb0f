"""A worker's links without a worker: the tests say every word themselves."""

from __future__ import annotations

import torch

from psrpc.messages import (
    Adopt,
    GetStats,
    Pull,
    Push,
    StatsReply,
    Stepped,
    Stream,
    StreamKind,
    UpdateKey,
    View,
)
from psrpc.planes.base import Link, Pending
from psrpc.store.flats import Buffers
from tests.contract.fleet import Fleet

WAIT_S = 30.0


class Hand:
    """One worker of a fleet's job."""

    def __init__(self, fleet: Fleet, worker: int = 0, plane: str = "") -> None:
        self.worker = worker
        self.links = fleet.links(plane)
        layouts = fleet.plan.layouts()
        self.buffers = [link.open(layout) for link, layout in zip(self.links, layouts, strict=True)]

    @property
    def link(self) -> Link:
        return self.links[0]

    @property
    def flats(self) -> Buffers:
        return self.buffers[0]

    def begin(self, workers: int = 1) -> None:
        """Let `workers` workers step, and take the weights they start from."""
        view = View(1, tuple((worker, 0) for worker in range(workers)))
        for link in self.links:
            link.call(Adopt(self.worker, view)).wait(WAIT_S)
        for link in self.links:
            link.exchange(Pull(self.worker, 0), send=False, land=True).wait(WAIT_S)

    def push(self, clock: int = 0, **fields: object) -> Push:
        key = UpdateKey(Stream(StreamKind.WORKER, self.worker, 0), clock)
        return Push(self.worker, clock, key, 1, **fields)  # type: ignore[arg-type]

    def stats(self) -> StatsReply:
        reply, _ = self.link.call(GetStats(self.worker)).wait(WAIT_S)
        assert isinstance(reply, StatsReply)
        return reply


def stepped(pending: Pending) -> Stepped:
    reply, _ = pending.wait(WAIT_S)
    assert isinstance(reply, Stepped)
    return reply


def initial(fleet: Fleet) -> list[torch.Tensor]:
    """The weights that the fleet's servers start from, all shards one after another."""
    services = [fleet.plan.service(index) for index in range(fleet.plan.job.servers)]
    servers = [getattr(service, "server", service) for service in services]
    return [flat for server in servers for flat in server.store.snapshot()]
