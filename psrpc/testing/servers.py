"""A simulated server: the real core, without tensors, on a simulated network."""

from __future__ import annotations

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.decisions import Answer, Apply, Decision, Hold, Same, Token
from psrpc.core.shard import ShardCore
from psrpc.messages import (
    Acquire,
    Adopt,
    Done,
    Idle,
    Leave,
    Pull,
    Push,
    Register,
    Reply,
    Request,
)
from psrpc.testing.calls import Call, Trace, describe
from psrpc.testing.network import Network
from psrpc.testing.witness import Witness


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
        decisions = self._decide(call.request, token)
        self._witness.decided(self.index, token, decisions, self.shard)
        for decision in decisions:
            self._carry_out(decision)

    def _decide(self, request: Request, token: Token) -> list[Decision]:
        match request:
            case Push():
                return self.shard.push(request, token)
            case Pull():
                return self.shard.pull(request, token)
            case Adopt():
                decisions = self.shard.adopt(request.view)
                return [*decisions, Answer(token, Done(self.shard.version), "it has the view")]
            case _:
                assert self.coordinator is not None, f"server {self.index} coordinates nothing"
                return self._coordinate(self.coordinator, request, token)

    def _coordinate(
        self, coordinator: CoordinatorCore, request: Request, token: Token
    ) -> list[Decision]:
        match request:
            case Register():
                return coordinator.register(request, token)
            case Acquire():
                return coordinator.acquire(request, token, self.shard.gate.floor)
            case Idle():
                return coordinator.idle(request, token)
            case Leave():
                return coordinator.leave(request, token, self.shard.gate.floor)
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
            case Apply():
                pass

    def _answer(self, token: Token, reply: Reply) -> None:
        call = self._calls.pop(token)
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
            case Same():
                return f"[{decision.token}] is [{decision.first}]: {decision.reason}"
