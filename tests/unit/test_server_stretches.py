"""A large round's weights go to the workers' slots a stretch at a time, while it is stepped."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn, optim

from psrpc.job import Job
from psrpc.messages import Adopt, Failure, Push, Stream, StreamKind, UpdateKey, View
from psrpc.modes import Mode, Synchronous
from psrpc.planes.base import Payload
from psrpc.planes.doorman import _SlotLanding
from psrpc.planes.memory import Part, Region
from psrpc.server import ParameterServer
from psrpc.store.blueprint import draw
from psrpc.store.shard import ShardStore

WORKERS = 3


class Shard:
    """A server of 1.4 MB with workers' regions."""

    def __init__(self, made: Any, mode: Mode) -> None:
        model = nn.Linear(700, 500)
        blueprint = draw(model, made)
        (layout,) = blueprint.layouts(1)
        job = Job(WORKERS, mode=mode)
        self.store = ShardStore(blueprint, layout, model, job.reduction)
        self.server = ParameterServer(job, 0, blueprint, self.store)
        view = View(1, tuple((worker, 0) for worker in range(WORKERS)))
        self.server.handle(Adopt(0, view), (), lambda payload: None)
        self.regions = [Region.create(layout) for _ in range(WORKERS)]
        self.answers: list[Payload] = []

    def push(self, worker: int, clock: int, **options: Any) -> None:
        gradients = self.regions[worker].part(Part.GRADIENTS)
        for flat in gradients:
            flat.copy_(torch.linspace(-1.0, 1.0 + worker, flat.numel()))
        key = UpdateKey(Stream(StreamKind.WORKER, worker, 0), clock)
        landing = _SlotLanding(self.regions[worker], Part.WEIGHTS)
        push = Push(worker, clock, key, 1, **options)
        self.server.handle(push, gradients, self.answers.append, landing)

    def sees(self, worker: int) -> bool:
        weights = self.regions[worker].part(Part.WEIGHTS)
        return all(map(torch.equal, weights, self.store.flats))


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """The parts that were written as a whole."""
    written: list[Part] = []
    write = Region.write

    def noted(region: Region, part: Part, flats: Any) -> None:
        written.append(part)
        write(region, part, flats)

    monkeypatch.setattr(Region, "write", noted)
    return written


@pytest.mark.parametrize("absent", [(), (0,)], ids=["all", "one piece has no gradient"])
@pytest.mark.parametrize(
    "made",
    [partial(optim.SGD, lr=0.1), optim.Adam, optim.RMSprop],
    ids=["kernel", "kernel with state", "class"],
)
def test_all_of_a_round_get_all_of_its_weights(
    whole: list[Part], made: Any, absent: tuple[int, ...]
) -> None:
    shard = Shard(made, Synchronous())
    for clock in range(2):
        for worker in range(WORKERS):
            shard.push(worker, clock, absent=absent)
        assert len(shard.answers) == WORKERS * (clock + 1)
        assert all(shard.sees(worker) for worker in range(WORKERS))
    assert whole == []


def test_who_asked_for_no_weights_gets_none(whole: list[Part]) -> None:
    shard = Shard(partial(optim.SGD, lr=0.1), Synchronous())
    before = [flat.clone() for flat in shard.regions[0].part(Part.WEIGHTS)]
    for worker in range(WORKERS):
        shard.push(worker, 0, pull=worker > 0)
    assert all(map(torch.equal, shard.regions[0].part(Part.WEIGHTS), before))
    assert shard.sees(1)
    assert shard.sees(2)


def test_a_repeated_push_s_own_slot_gets_the_weights_as_well(whole: list[Part]) -> None:
    shard = Shard(partial(optim.SGD, lr=0.1), Synchronous())
    for worker in (0, 0, 1, 2):
        shard.push(worker, 0)
    assert len(shard.answers) == 4
    shard.push(1, 0)  # after its answer: the weights of now, in one piece
    assert not isinstance(shard.answers[-1][0], Failure)
    assert whole == [Part.WEIGHTS]
    assert shard.sees(1)
