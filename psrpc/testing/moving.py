"""A simulated server that goes from layout to layout, as `Mover` lets a real one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.decisions import Decision, Image, Token
from psrpc.core.shard import ShardCore
from psrpc.messages import Adopt, Pull, Push, Reply, UpdateKey
from psrpc.moves import Moved, Retire, Settled
from psrpc.orders import Cut, Halt
from psrpc.testing.calls import Call, Trace
from psrpc.testing.network import Network
from psrpc.testing.servers import SimServer, SimWatcher
from psrpc.testing.witness import Witness


class Stood(NamedTuple):
    """What a server has at a cut: its ledger's digest, its decisions, what its witness knows."""

    mark: str
    core: bytes
    witness: bytes
    applied: frozenset[UpdateKey]


class Phase(Enum):
    """Where in a change a server may die."""

    RECEIVE = "a request has come"
    REPLY = "a step is answered"
    HALT = "it has halted"
    STAND = "it stands at the cut"
    GIVE = "another one takes its rows"
    GAVE = "another one has taken its rows"
    READY = "it has its own"
    SETTLE = "the new layout is in force"


class MovingServer(SimServer):
    """A server process, `number` of all that there ever are, of one layout after another."""

    def __init__(
        self,
        number: int,
        index: int,
        shard: ShardCore,
        coordinator: CoordinatorCore | None,
        network: Network,
        witness: Witness,
        trace: Trace | None,
    ) -> None:
        super().__init__(number, shard, coordinator, network, witness, trace)
        self.be_shard(index)
        self._next_token = number * 1_000_000

    def be_shard(self, index: int) -> None:
        """Be shard `index` of its layouts."""
        self.shard_index = index
        self.layout = 0
        self.next_layout: int | None = None
        self.left: int | None = None  # the layout since which it keeps no rows
        self.stood: dict[int, Stood] = {}  # at the cuts for layouts
        self._at: int | None = None
        self.takes: Callable[[Cut], None] = lambda cut: None
        self.dead = False
        self.comes_to: Callable[[Phase], None] = lambda phase: None

    def receive(self, call: Call) -> None:
        """See `SimServer`; a request of another layout is sent on."""
        request = call.request
        if isinstance(request, Push | Pull | Adopt) and request.layout != self.layout:
            if request.layout != self.next_layout:
                self._send_on(call)
                return
            self.settle(request.layout, stays=True)
        super().receive(call)

    def _send_on(self, call: Call) -> None:
        self._network.send(call.answered, call, Moved(self.layout))

    def about(self, decide: Callable[[], list[Decision]]) -> None:
        """The coordinator decides something about servers."""
        self._convene(decide(), None)

    def halt(self, number: int) -> None:
        """See `SimServer`."""
        super().halt(number)
        self.comes_to(Phase.HALT)

    def cut(self, cut: Cut) -> None:
        """See `SimServer`; who keeps rows in a new layout takes them then."""
        if cut.given_up:
            self.next_layout = None
        self._at = cut.number if cut.layout else None
        super().cut(cut)
        if cut.layout and self.shard_index < cut.servers:
            self.takes(cut)

    def settle(self, layout: int, *, stays: bool) -> None:
        """A layout is in force."""
        if layout == self.layout:
            return
        self.layout, self.next_layout = layout, None
        if not stays:
            self.left = layout
        open_calls = [
            token
            for token, call in self._calls.items()
            if isinstance(call.request, Push | Pull | Adopt)
        ]
        for token in open_calls:
            self._answer(token, Moved(layout))
            self._same.pop(token, None)
        self.shard.settle()
        self._witness.shards[self.index].settle()
        self.comes_to(Phase.SETTLE)

    def stands_at(self, number: int) -> bool:
        """Whether it still is at this cut."""
        return self._at == number

    def hear(self, word: Settled | Retire) -> None:
        """A word about layouts has come."""
        if isinstance(word, Settled) and self.left is None:
            self.settle(word.layout, stays=self.shard_index < word.servers)

    def _convene(self, decisions: list[Decision], token: int | None) -> None:
        super()._convene(decisions, token)
        assert self.coordinator is not None
        own = self.coordinator.resharding.take_own()
        for word in own:
            if isinstance(word, Cut):
                self.cut(word)
            else:
                self.hear(word)
        if own and self.shard.eventful:
            self._convene([], None)

    def _carry_out(self, decision: Decision) -> None:
        if isinstance(decision, Image) and decision.cut.layout:
            witness = self._witness.shards[self.index]
            self.stood[decision.cut.layout] = Stood(
                self.shard.ledger.mark(decision.cut),
                pickle.dumps(self.shard),
                pickle.dumps(witness),
                frozenset(witness.applied),
            )
            self.comes_to(Phase.STAND)
        super()._carry_out(decision)

    def _answer(self, token: Token, reply: Reply) -> None:
        if self.dead:
            del self._calls[token]  # nobody hears of it
            return
        step = isinstance(self._calls[token].request, Push)
        super()._answer(token, reply)
        if step:
            self.comes_to(Phase.REPLY)


class MovingWatcher(SimWatcher):
    """Hears of layouts as well."""

    def go_on(self) -> None:
        """See `SimWatcher`."""
        server = self._server
        assert isinstance(server, MovingServer)
        shard = server.shard
        if self._call is not None and self._call.reply is not None:
            reply = self._call.reply
            if isinstance(reply, Retire) and reply.layout >= (server.left or reply.layout + 1):
                return
            if server.left is not None and isinstance(reply, Halt | Cut | Settled | Retire):
                shard.heard_of_layout()
            elif isinstance(reply, Settled | Retire):
                server.hear(reply)
                shard.heard_of_layout()
            else:
                self._take_in(reply)
        self._rounds = max(self._rounds, shard.gate.floor)
        watch = shard.watches(server.shard_index, self._rounds)
        self._call = self.caller.ask(0, replace(watch, layout=server.layout))
        self.caller.wait_for([self._call])
