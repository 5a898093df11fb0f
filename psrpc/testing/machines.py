"""What a replicated server replicates: the real cores, what they are held to, and weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.decisions import Apply, Decision, Image, Token
from psrpc.core.shard import ShardCore
from psrpc.messages import Push, Reply, Request, UpdateKey, View
from psrpc.modes import Reduction
from psrpc.moves import Retire, Settled
from psrpc.orders import Closed, Cut, Halt, Watch
from psrpc.store.blueprint import OptimizerFactory, draw
from psrpc.store.image import ShardImage
from psrpc.store.shard import Contribution, ShardStore
from psrpc.testing.calls import Call, Trace
from psrpc.testing.network import Network
from psrpc.testing.servers import SimServer
from psrpc.testing.witness import Witness

# One optimizer step: the updates in it, each with its samples.
Step = tuple[tuple[UpdateKey, int], ...]

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
}
_SIZE = 3


@dataclass(frozen=True)
class Entry:
    """What a primary forwards: a request, the coordinator's news, or a worker's death.

    Or the number of a checkpoint that is to be made, or given up; or what belongs to a new
    `layout`: that it is to begin, or comes to nothing, or this server's rows of it.
    """

    request: Request | None = None
    news: View | Closed | Halt | Cut | Settled | Retire | None = None
    lost: tuple[int, str] | None = None
    wanted: int | None = None
    given_up: bool = False
    layout: object = None


class Weights:
    """A shard's parameters and optimizer, stepped by gradients that only an update's name makes."""

    def __init__(self, optimizer: str) -> None:
        torch.manual_seed(0)
        model = nn.Linear(_SIZE, 1)
        blueprint = draw(model, OPTIMIZERS[optimizer])
        (layout,) = blueprint.layouts(1)
        self._store = ShardStore(blueprint, layout, model, Reduction.MEAN)

    def step(self, step: Step) -> None:
        """Make one optimizer step."""
        contributions = [Contribution(self._gradients(key), samples) for key, samples in step]
        self._store.step(contributions)

    def image(self) -> ShardImage:
        """A copy, as a new backup is given."""
        return self._store.image()

    def restore(self, image: ShardImage) -> None:
        """Go on from a copy."""
        self._store.restore(image)

    def values(self) -> list[list[float]]:
        """All numbers: weights and state."""
        image = self._store.image()
        numbers = [
            value.double().flatten().tolist()
            for piece in image.pieces
            for value in (piece.weights, *piece.state.values())
            if isinstance(value, torch.Tensor)
        ]
        image.release()
        return numbers

    def _gradients(self, key: UpdateKey) -> list[torch.Tensor]:
        stream = key.stream
        first = stream.major * 31 + stream.minor * 17 + key.sequence * 7
        return [
            torch.arange(first, first + flat.numel()).remainder(101).to(flat.dtype) / 7 - 5
            for flat in self._store.flats
        ]


def replay(optimizer: str, history: Sequence[Step]) -> list[list[float]]:
    """What one process computes from the same updates in the same order."""
    weights = Weights(optimizer)
    for step in history:
        weights.step(step)
    return weights.values()


def silent(server: int, request: Request) -> Call:
    """A call that nobody waits for here: its caller is another server's."""
    return Call(server, request, lambda call, reply: None, lambda: True)


class Machine(SimServer):
    """One server's state. `keep` takes what it answers; nobody is told but by `keep`."""

    def __init__(
        self,
        index: int,
        shard: ShardCore,
        coordinator: CoordinatorCore | None,
        network: Network,
        witness: Witness,
        optimizer: str | None,
        trace: Trace | None,
    ) -> None:
        super().__init__(index, shard, coordinator, network, witness, None)
        self.keep: Callable[[Call, Reply], None] = lambda call, reply: None
        self.pictured: Callable[[Image], None] = lambda image: None
        self.shard_index = index  # in the present layout
        self.history: list[Step] = []
        self.weights = Weights(optimizer) if optimizer is not None else None
        self._all_traces = trace

    @property
    def witness(self) -> Witness:
        """What it is held to."""
        return self._witness

    listens = True  # to the coordinator, if it is not beside it

    def watch(self, rounds: int, number: int) -> Watch:
        """What it asks the coordinator when it is the process `number`."""
        return self.shard.watches(self.index, rounds)

    def speak(self) -> None:
        """Let its decisions be traced from now on."""
        self._trace = self._all_traces

    def do(self, entry: Entry, call: Call | None = None) -> None:
        """Take an entry in; `call` is the request's, where its caller waits here."""
        if entry.request is not None:
            self.receive(call or silent(self.index, entry.request))
        elif isinstance(entry.news, Closed):
            self.tell(entry.news)
        elif isinstance(entry.news, Halt):
            self.halt(entry.news.number)
        elif isinstance(entry.news, Cut):
            self.cut(entry.news)
        elif isinstance(entry.news, View):
            self.adopt(entry.news)
        elif entry.lost is not None:
            self.lose(*entry.lost)
        elif entry.wanted is not None and entry.given_up:
            self.give_up_cut(entry.wanted)
        elif entry.wanted is not None:
            self.begin_cut(entry.wanted)

    def copied(self) -> dict[str, Any]:
        """All of it, as one state."""
        state = copy.deepcopy(
            (self.shard, self.coordinator, self._witness, self._same, self._next_token)
        )
        requests = {token: call.request for token, call in self._calls.items()}
        image = self.weights.image() if self.weights is not None else None
        return {"cores": state, "open": requests, "history": [*self.history], "image": image}

    def load(self, state: dict[str, Any]) -> None:
        """Be as another one was when it was `copied`."""
        cores = state["cores"]
        self.shard, self.coordinator, self._witness, self._same, self._next_token = cores
        self._calls = {token: silent(self.index, r) for token, r in state["open"].items()}
        self.history = state["history"]
        if self.weights is not None:
            self.weights.restore(state["image"])
            state["image"].release()

    def _carry_out(self, decision: Decision) -> None:
        super()._carry_out(decision)
        if isinstance(decision, Image) and not decision.cut.layout:
            self.pictured(decision)
        if isinstance(decision, Apply):
            pushes = [self._calls[token].request for token in decision.tokens]
            step = tuple((p.key, p.samples) for p in pushes if isinstance(p, Push))
            self.history.append(step)
            if self.weights is not None:
                self.weights.step(step)

    def _answer(self, token: Token, reply: Reply) -> None:
        self.keep(self._calls.pop(token), reply)
