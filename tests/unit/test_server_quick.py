"""A server that takes usual pushes by its short way is as one that takes all the ordinary way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn, optim

from psrpc.job import Job
from psrpc.messages import (
    Adopt,
    Failure,
    Lease,
    Pull,
    Push,
    Reply,
    Stepped,
    Stream,
    StreamKind,
    UpdateKey,
    View,
)
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.orders import Cut
from psrpc.planes.base import Payload
from psrpc.server import ParameterServer
from psrpc.store.blueprint import draw
from psrpc.store.shard import ShardStore
from psrpc.usual import Usual

WORKERS = 3
_RECENT = 6  # calls
MODES = {
    "sync": Synchronous(),
    "backup": Synchronous(1),
    "bounded": BoundedStaleness(1),
    "async": Asynchronous(),
}


class Caller:
    """Who pushed: what he was answered, and the weights that he was given."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.weights: list[list[torch.Tensor]] = []

    def land(self, flats: Sequence[torch.Tensor]) -> None:
        self.weights.append([flat.clone() for flat in flats])

    def grant(self, version: int, lead: int) -> None:
        self.replies.append(Stepped(version, lead))

    def answer(self, payload: Payload) -> None:
        self.replies.append(payload[0])


class Shard:
    """A server, and all that is seen of it."""

    def __init__(self, mode: Mode, made: Any, *, quick: bool) -> None:
        torch.manual_seed(0)
        model = nn.Linear(6, 4)
        blueprint = draw(model, made)
        (layout,) = blueprint.layouts(1)
        job = Job(WORKERS, mode=mode)
        self.server = ParameterServer(
            job, 0, blueprint, ShardStore(blueprint, layout, model, job.reduction)
        )
        self.server.observe = lambda push, staleness: self.observed.append((push, staleness))
        self.server.pictured = self._picture
        self.observed: list[tuple[Push, int]] = []
        self.images: list[Any] = []
        self.callers: list[Caller] = []
        self.taken = 0
        self._quick = quick

    def _picture(self, cut: Cut, image: Any, record: dict[str, Any]) -> None:
        self.images.append((cut.number, record, [piece.weights.clone() for piece in image.pieces]))
        image.release()

    def push(self, push: Push, gradients: list[torch.Tensor]) -> None:
        caller = Caller()
        self.callers.append(caller)
        usual = Usual.of(push) if self._quick else None
        if usual is not None and usual.pull and self.server.quick(usual, gradients, caller):
            self.taken += 1
            return
        self.server.handle(push, gradients, caller.answer, caller.land)

    def seen(self) -> tuple[Any, ...]:
        """What others see of it without a look into its books."""
        core = self.server.core
        return (
            [caller.replies for caller in self.callers[-_RECENT:]],
            [caller.weights for caller in self.callers[-_RECENT:]],
            self.server.store.flats,
            core.version,
            core.gate.floor,
            core.gate.active,
        )

    def books(self) -> tuple[Any, ...]:
        self.server.catch_up()
        core = self.server.core
        answers = [(caller.replies, caller.weights) for caller in self.callers]
        return core.record(), core.stats(), self.observed, self.images, answers


class Twins:
    """Two servers, of which one knows the short way, and workers that push to both."""

    def __init__(self, mode: Mode, made: Any, seed: int) -> None:
        self.chance = random.Random(seed)
        self.both = [Shard(mode, made, quick=quick) for quick in (True, False)]
        self.clocks = dict.fromkeys(range(WORKERS), 0)
        self.sent: dict[int, tuple[Push, list[torch.Tensor], int]] = {}  # the latest of each
        self.view = View(1, tuple(self.clocks.items()))
        self.cuts = 0
        for shard in self.both:
            shard.server.handle(Adopt(0, self.view), (), lambda payload: None)

    @property
    def waiting(self) -> set[int]:
        """The workers whose latest push has no answer yet."""
        return {w for w, (_, _, place) in self.sent.items() if not self._replies(place)}

    def _replies(self, place: int) -> list[Reply]:
        return self.both[1].callers[place].replies

    def push(self, key: UpdateKey | None = None) -> None:
        """Some worker goes on, mostly with a usual push."""
        free = [worker for worker, _ in self.view.active if worker not in self.waiting]
        if not free:
            return
        worker = self.chance.choice(free)
        if worker in self.sent:
            (reply, *_) = self._replies(self.sent[worker][2])
            clock = self.clocks[worker] + 1
            if isinstance(reply, Stepped):
                self.clocks[worker] = max(clock, reply.clock or 0)
        clock = self.clocks[worker]
        samples = self.chance.choice((8, 8, 8, 5))
        key = key or self._key(worker, clock)
        self._send(worker, Push(worker, clock, key, samples, **self._rare()))

    def take_over(self) -> None:
        """A worker pushes an update that another one pushes as well, as of a lease given twice."""
        owner = self.chance.randrange(1, WORKERS)
        self.push(UpdateKey(self._key(owner, self.clocks[owner]).stream, 0, 4))

    def pull(self) -> None:
        """A worker asks for the weights of its next step, before or after it may have them."""
        worker = self.chance.randrange(WORKERS)
        for shard in self.both:
            caller = Caller()
            shard.callers.append(caller)
            clock = self.clocks[worker] + (worker in self.waiting)
            shard.server.handle(Pull(worker, clock), (), caller.answer, caller.land)

    def repeat(self) -> None:
        """A push comes a second time."""
        if self.sent:
            push, gradients, _ = self.sent[self.chance.choice(list(self.sent))]
            self._deliver(push, gradients)

    def leave_or_come(self) -> None:
        """Another view: some worker is gone, or is back."""
        active = dict(self.view.active)
        worker = self.chance.randrange(WORKERS)
        if worker in active and len(active) > 1:
            del active[worker]
            self.sent.pop(worker, None)
        else:
            active[worker] = max(self.clocks[worker], self.both[1].server.core.gate.floor)
            if worker not in dict(self.view.active):
                self.clocks[worker] = active[worker]
                self.sent.pop(worker, None)
        self.view = View(self.view.epoch + 1, tuple(active.items()))
        for shard in self.both:
            shard.server.adopt(self.view)

    def cut(self) -> None:
        """A checkpoint, at a point that some have not come to."""
        self.cuts += 1
        clocks = [shard.server.halt(self.cuts) for shard in self.both]
        assert clocks[0] == clocks[1]
        self.push()
        cut = Cut(self.cuts, clocks[0], "folder") if self.chance.random() < 0.7 else Cut(self.cuts)
        for shard in self.both:
            shard.server.cut(cut)

    def look(self) -> None:
        same(self.both[0].books(), self.both[1].books())

    def _key(self, worker: int, clock: int) -> UpdateKey:
        if worker == 0:
            return UpdateKey(Stream(StreamKind.WORKER, worker, 0), clock)
        return Lease(0, WORKERS * (clock // 4) + worker, 0, 32, 8).key(clock % 4)

    def _rare(self) -> dict[str, Any]:
        kinds: list[dict[str, Any]] = [
            {"overrides": ((0, "lr", 0.5),)},
            {"absent": (0,)},
            {"void": True},
            {"view": self.view},
            {"loss": 1.5},
            {"read": 0},
            {"pull": False},
        ]
        return self.chance.choice(kinds) if self.chance.random() < 0.2 else {}

    def _send(self, worker: int, push: Push) -> None:
        generator = torch.Generator().manual_seed(self.chance.randrange(1 << 30))
        shapes = [flat.shape for flat in self.both[0].server.store.flats]
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        self.sent[worker] = push, gradients, len(self.both[0].callers)
        self._deliver(push, gradients)

    def _deliver(self, push: Push, gradients: list[torch.Tensor]) -> None:
        for shard in self.both:
            shard.push(push, [] if push.void else gradients)


def same(ours: object, theirs: object) -> None:
    """Assert that two values are equal, tensors bit by bit."""
    if isinstance(ours, torch.Tensor):
        assert isinstance(theirs, torch.Tensor)
        assert torch.equal(ours, theirs)
    elif isinstance(ours, list | tuple) and not hasattr(ours, "_fields"):
        assert isinstance(theirs, list | tuple)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert ours == theirs


def events(chance: random.Random, count: int) -> Iterator[str]:
    for _ in range(count):
        names = ("push", "take_over", "pull", "repeat", "leave_or_come", "cut", "look")
        yield chance.choices(names, weights=(86, 3, 2, 3, 2, 2, 2))[0]


@pytest.mark.parametrize("made", [partial(optim.SGD, lr=0.1), optim.Adam, optim.RMSprop])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(5))
def test_both_are_the_same_to_everybody(mode: str, made: Any, seed: int) -> None:
    twins = Twins(MODES[mode], made, seed)
    for event in events(twins.chance, 200):
        getattr(twins, event)()
        same(twins.both[0].seen(), twins.both[1].seen())
    twins.look()
    assert mode == "backup" or twins.both[0].taken > 50, "most pushes are usual"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_optimizer_that_raises_ends_the_job_for_all(mode: str) -> None:
    class Breaks(optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            Breaks.steps += 1
            if Breaks.steps == 8:
                raise ValueError("broken")
            return super().step(closure)

    twins = Twins(MODES[mode], partial(Breaks, lr=0.1), 0)
    (shard, _) = twins.both
    twins.both = [shard, shard]  # one of them will do
    ended: list[str] = []
    for _ in range(60):
        with suppress(AssertionError):
            twins.push()
        ended = [
            reply.error[1]
            for caller in shard.callers
            for reply in caller.replies
            if isinstance(reply, Failure)
        ]
        if ended:
            break
    assert ended
    assert set(ended) == {"server 0: ValueError: broken"}
    assert shard.server.ended.is_set()
    assert all(caller.replies for caller in shard.callers), "nobody waits any more"


def test_what_nobody_asks_for_is_not_kept_for_ever() -> None:
    shard = Shard(Asynchronous(), partial(optim.SGD, lr=0.1), quick=True)
    shard.server.handle(Adopt(0, View(1, ((0, 0),))), (), lambda payload: None)
    gradients = [torch.zeros_like(flat) for flat in shard.server.store.flats]
    for clock in range(3000):
        key = UpdateKey(Stream(StreamKind.WORKER, 0, 0), clock)
        shard.push(Push(0, clock, key, 8), gradients)
    assert shard.taken == 3000
    assert len(shard.observed) > 1500
    shard.server.catch_up()
    assert [push.clock for push, _ in shard.observed] == list(range(3000))


@pytest.mark.parametrize(("elements", "large"), [(1 << 16, False), ((1 << 16) + 1, True)])
def test_what_is_stepped_in_stretches_goes_no_short_way(elements: int, large: bool) -> None:
    """Also in half precision: the ends of stretches may be rounded otherwise."""
    made = partial(optim.SGD, lr=0.1)
    model = nn.ParameterList([nn.Parameter(torch.zeros(elements, dtype=torch.bfloat16))])
    blueprint = draw(model, made)
    (layout,) = blueprint.layouts(1)
    job = Job(1)
    server = ParameterServer(job, 0, blueprint, ShardStore(blueprint, layout, model, job.reduction))
    assert server.large is large
