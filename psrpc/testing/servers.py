"""A simulated server: the real core, without tensors, on a simulated network."""

from __future__ import annotations

from collections.abc import Callable

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.decisions import Answer, Apply, Decision, Hold, Image, Made, Same, Token
from psrpc.core.shard import ShardCore
from psrpc.messages import (
    Acquire,
    Adopt,
    Done,
    Granted,
    Idle,
    Leave,
    Pull,
    Push,
    Register,
    Reply,
    Request,
    Stepped,
    View,
)
from psrpc.moves import ABOUT_SERVERS
from psrpc.orders import Closed, Cut, Halt, Watch
from psrpc.testing.calls import Call, Caller, Trace, describe
from psrpc.testing.network import Network
from psrpc.testing.witness import Witness
from psrpc.usual import Usual

_COORDINATED = (Register, Acquire, Idle, Leave, Watch, *ABOUT_SERVERS)


class SimServer:
    """Carries out the decisions of one shard, and of the coordinator where it holds that."""

    def __init__(
        self,
        index: int,
        shard: ShardCore,
        coordinator: CoordinatorCore | None,
        network: Network,
        witness: Witness,
        trace: Trace | None,
    ) -> None:
        self.index = index
        self.shard = shard
        self.coordinator = coordinator
        self._network = network
        self._witness = witness
        self._trace = trace
        self._calls: dict[Token, Call] = {}
        self._same: dict[Token, list[Token]] = {}
        self._next_token = 0

    def receive(self, call: Call) -> None:
        """A request has come."""
        token = self._next_token
        self._next_token += 1
        self._calls[token] = call
        if self._trace is not None:
            what = describe(call.request)
            self._trace(f"server {self.index} <- worker {call.request.worker}: {what} [{token}]")
        self._witness.received(self.index, token, call.request)
        if isinstance(call.request, _COORDINATED):
            assert self.coordinator is not None, f"server {self.index} coordinates nothing"
            self._convene(self._coordinate(self.coordinator, call.request, token), token)
            return
        decisions = self._decide(call.request, token)
        self._witness.decided(self.index, token, decisions, self.shard)
        for decision in decisions:
            self._carry_out(decision)
        if self.coordinator is not None and self.shard.eventful:
            self._convene([], None)

    def lose(self, process: int, why: str) -> None:
        """The coordinator has noticed that a process is dead."""
        assert self.coordinator is not None
        if self._trace is not None:
            self._trace(f"server {self.index}    process {process} is lost: {why}")
        worker = self.coordinator.worker_of(process)
        decisions = self.coordinator.lose(process, why, self.shard)
        if worker is not None:
            self._witness.lost(worker)
        self._convene(decisions, None)

    def adopt(self, view: View) -> None:
        """The coordinator has sent a newer view."""
        decisions = self.shard.adopt(view)
        self._witness.adopted(self.index, view, decisions, self.shard)
        for decision in decisions:
            self._carry_out(decision)

    def begin_cut(self, number: int) -> None:
        """The coordinator wants a checkpoint."""
        assert self.coordinator is not None
        self._witness.halted(0, True)
        self._convene(self.coordinator.begin_cut(number, "folder", self.shard), None)

    def halt(self, number: int) -> None:
        """The coordinator wants a checkpoint, and asks how far this shard is."""
        self._witness.halted(self.index, True)
        self.shard.halt(number)

    def give_up_cut(self, number: int) -> None:
        """The coordinator does not want it any more."""
        assert self.coordinator is not None
        self.cut(Cut(number))
        self._convene(self.coordinator.give_up_cut(number), None)

    def cut(self, cut: Cut) -> None:
        """The coordinator says where the checkpoint cuts."""
        decisions = self.shard.cut(cut)
        self._witness.halted(self.index, not cut.given_up)
        self._witness.adopted(self.index, cut.view or View(), decisions, self.shard)
        for decision in decisions:
            self._carry_out(decision)

    def tell(self, closed: Closed) -> None:
        """Shard 0 says what a round is made of."""
        decisions = self.shard.tell(closed.clock, closed.workers)
        self._witness.adopted(self.index, View(), decisions, self.shard)
        for decision in decisions:
            self._carry_out(decision)

    def _convene(self, decisions: list[Decision], token: Token | None) -> None:
        """Carry out what the coordinator decided; its own shard knows the new view at once."""
        assert self.coordinator is not None
        self._witness.convened(token, decisions)
        for decision in decisions:
            self._carry_out(decision)
        self.adopt(self.coordinator.members.view)
        cut = self.coordinator.take_cut()
        for decision in self.coordinator.news(self.shard.closed):
            self._carry_out(decision)
        if cut is not None:
            self.cut(cut)
        if self.shard.eventful:
            self.shard.eventful = False
            for worker, key in self.shard.dropped:
                self._witness.dropped(worker, key)
            self._convene(self.coordinator.take_back(self.shard), None)

    def _decide(self, request: Request, token: Token) -> list[Decision]:
        match request:
            case Push():
                return self._push(request, token)
            case Pull():
                return self.shard.pull(request, token)
            case Adopt():
                decisions = self.shard.adopt(request.view)
                return [*decisions, Answer(token, Done(self.shard.version), "it has the view")]
            case _:
                raise AssertionError(f"no server knows {request}")

    def _push(self, push: Push, token: Token) -> list[Decision]:
        """Every other push is decided in one look where it can be: both ways must agree."""
        usual = Usual.of(push) if token % 2 else None
        lead = None if usual is None else self.shard.quick(usual)
        if lead is None:
            return self.shard.push(push, token)
        ((_, staleness),) = self.shard.books.take_entered()
        reason = "it is applied as it comes"
        reply = Stepped(self.shard.version, lead)
        return [Apply((token,), reason, (staleness,)), Answer(token, reply, reason)]

    def _coordinate(
        self, coordinator: CoordinatorCore, request: Request, token: Token
    ) -> list[Decision]:
        match request:
            case Register():
                return coordinator.register(request, token, self.shard)
            case Acquire():
                return coordinator.acquire(request, token, self.shard)
            case Idle():
                return coordinator.idle(request, token, self.shard)
            case Leave():
                return coordinator.leave(request, token, self.shard)
            case Watch():
                return coordinator.watch(request, token, self.shard)
            case _ if isinstance(request, ABOUT_SERVERS):
                return coordinator.reshard(request, token, self.shard)
            case _:
                raise AssertionError(f"no server knows {request}")

    def _carry_out(self, decision: Decision) -> None:
        if self._trace is not None:
            self._trace(f"server {self.index}    {self._words(decision)}")
        match decision:
            case Answer():
                self._answer(decision.token, decision.reply)
                for token in self._same.pop(decision.token, ()):
                    self._answer(token, decision.reply)
            case Hold():
                self._calls[decision.token].reason = decision.reason
            case Same():
                self._same.setdefault(decision.first, []).append(decision.token)
            case Apply() | Made() | Image():
                pass

    def _answer(self, token: Token, reply: Reply) -> None:
        call = self._calls.pop(token)
        if not call.cut():
            self._network.send(call.answered, call, reply)

    @staticmethod
    def _words(decision: Decision) -> str:
        match decision:
            case Apply():
                return f"apply {list(decision.tokens)}: {decision.reason}"
            case Answer():
                return f"answer [{decision.token}] {describe(decision.reply)}: {decision.reason}"
            case Hold():
                return f"hold [{decision.token}]: {decision.reason}"
            case Image():
                return f"image {decision.cut.number}: {decision.reason}"
            case Made():
                return f"round {decision.clock} is of workers {list(decision.workers)}"
            case Same():
                return f"[{decision.token}] is [{decision.first}]: {decision.reason}"


class SimWatcher:
    """What a server does beside serving: it asks the coordinator for the next view, for ever."""

    def __init__(
        self, server: SimServer, caller_of: Callable[[Callable[[], None]], Caller]
    ) -> None:
        self._server = server
        self.caller = caller_of(self.go_on)
        self._call: Call | None = None
        self._rounds = 0

    def watches(self, server: SimServer) -> bool:
        """Whether it does so for this one."""
        return self._server is server

    def go_on(self) -> None:
        """Take in the news that has come, and ask for more."""
        shard = self._server.shard
        if self._call is not None and self._call.reply is not None:
            self._take_in(self._call.reply)
        self._rounds = max(self._rounds, shard.gate.floor)
        self._call = self.caller.ask(0, shard.watches(self._server.index, self._rounds))
        self.caller.wait_for([self._call])

    def _take_in(self, reply: Reply) -> None:
        match reply:
            case Granted():
                self._server.adopt(reply.view)
            case Closed():
                self._rounds = reply.clock + 1
                self._server.tell(reply)
            case Halt():
                self._server.halt(reply.number)
            case Cut():
                self._server.cut(reply)
