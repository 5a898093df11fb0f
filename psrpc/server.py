"""A parameter server: one shard, and the one place where gradients and decisions meet."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch

from psrpc.core.decisions import Answer, Apply, Decision, Image, Same, Token
from psrpc.core.shard import ShardCore
from psrpc.errors import JobFailedError, PeerLostError, ProtocolError, PsrpcError, encode
from psrpc.job import Job, PlaneChoice
from psrpc.messages import (
    Adopt,
    Bye,
    Done,
    Fail,
    Failure,
    GetState,
    GetStats,
    Peek,
    Ping,
    Pull,
    Push,
    Reply,
    Request,
    StateReply,
    StatsReply,
    Stepped,
    View,
)
from psrpc.orders import Closed, Cut
from psrpc.planes import base
from psrpc.planes.base import Landing, Payload, StretchLanding
from psrpc.store.blueprint import Blueprint
from psrpc.store.image import ShardImage
from psrpc.store.shard import Contribution, ShardStore


@dataclass(slots=True)
class Call:
    """A request that is not answered yet, and all those that its answer goes to."""

    request: Request
    tensors: Sequence[torch.Tensor] = ()
    answers: list[base.Answer] = field(default_factory=list)
    lands: list[Landing] = field(default_factory=list)
    landed: int = 0  # so many of the first of `lands` have been given the weights


class Desk:
    """Open calls by token. Not thread-safe; used under its owner's lock."""

    def __init__(self) -> None:
        self._calls: dict[Token, Call] = {}
        self.next_token = 0

    def open(self, call: Call) -> Token:
        """Keep a call until it is answered."""
        token, self.next_token = self.next_token, self.next_token + 1
        self._calls[token] = call
        return token

    def calls(self) -> list[tuple[Token, Call]]:
        """All open calls."""
        return list(self._calls.items())

    def reopen(self, next_token: Token, calls: Sequence[tuple[Token, Call]]) -> None:
        """Keep these calls in place of those that were kept."""
        self.next_token, self._calls = next_token, dict(calls)

    def look(self, token: Token) -> Call:
        """The open call of this token."""
        return self._calls[token]

    def attach(self, token: Token, first: Token) -> None:
        """Let the call `token` share the answer of the open call `first`."""
        again = self._calls.pop(token)
        self._calls[first].answers += again.answers
        self._calls[first].lands += again.lands

    def close(self, token: Token) -> Call:
        """Take out a call that is about to be answered."""
        return self._calls.pop(token)

    def clear(self) -> list[Call]:
        """Take out all open calls."""
        calls, self._calls = list(self._calls.values()), {}
        return calls


Answers = list[tuple[Call, Payload]]

_LARGE_BYTES = 1 << 18  # below, weights stay in the cache until all are stepped


def resolve(answers: Answers) -> None:
    """Send answers. Called without a lock, for it runs what waits for them."""
    for call, payload in answers:
        for answer in call.answers:
            answer(payload)


def _in_stretches(land: Landing) -> TypeGuard[StretchLanding]:
    return hasattr(land, "stretch")


class _StepFailedError(Exception):
    """The optimizer, a class of the user's choice, raised: nobody knows what it did before."""


class ParameterServer:
    """Keeps one shard of the model and serves every plane through `handle`.

    `handle` may be called from any thread and never blocks on another worker: a
    request that must wait keeps its future open.
    """

    def __init__(self, job: Job, index: int, blueprint: Blueprint, store: ShardStore) -> None:
        self.job = job
        self.index = index
        self.core = ShardCore(job.mode, follows=index > 0, explains=False)
        self.observe: Callable[[Push, int], None] = lambda push, staleness: None
        # Called while the shard stands still; takes the image over, and must release it.
        self.pictured: Callable[[Cut, ShardImage, dict[str, Any]], None] = (
            lambda cut, image, record: image.release()
        )
        self._blueprint = blueprint
        self.store = store
        self._large = any(flat.nbytes >= _LARGE_BYTES for flat in store.flats)
        self._lock = threading.Lock()
        self.desk = Desk()
        self._failure: PsrpcError | None = None
        self.ended = threading.Event()
        self._handlers: dict[type[Request], Callable[[Any, Call], Answers]] = {
            Push: self._push,
            Pull: self._pull,
            Adopt: self._adopt,
            Peek: self._peek,
            GetState: self._get_state,
            GetStats: lambda request, call: [(call, (StatsReply(self.core.stats()), []))],
            Ping: lambda request, call: [(call, (Done(self.core.version), []))],
            Fail: self._fail,
            Bye: lambda request, call: [(call, (Done(self.core.version), []))],
        }

    def handle(
        self,
        request: Request,
        tensors: Sequence[torch.Tensor],
        answer: base.Answer,
        land: Landing | None = None,
    ) -> None:
        """Take a request with its tensors; see `Service`."""
        resolve(self.decide(request, tensors, answer, land))

    def decide(
        self,
        request: Request,
        tensors: Sequence[torch.Tensor],
        answer: base.Answer,
        land: Landing | None = None,
    ) -> Answers:
        """As `handle`, but the answers are returned, and not sent yet."""
        if isinstance(request, Ping) and self._failure is None:
            # Also while a step is under way, however long it takes.
            answer((Done(self.core.version), []))
            return []
        call = Call(request, tensors, [answer], [] if land is None else [land])
        with self._lock:
            return self._answer(call)

    def adopt(self, view: View) -> None:
        """Take a newer view from the coordinator; those who waited because of it are answered."""
        with self._lock:
            answers = self._answered(lambda: self.core.adopt(view))
        resolve(answers)

    def cut(self, cut: Cut) -> None:
        """Make an image of the shard at this point, when it has come; see `pictured`."""
        resolve(self.cut_at(cut))

    def cut_at(self, cut: Cut) -> Answers:
        """As `cut`, but the answers are returned, and not sent yet."""
        with self._lock:
            return self._answered(lambda: self.core.cut(cut))

    def halt(self, number: int) -> tuple[tuple[int, int], ...]:
        """Take no new steps until the cut `number`; returns the clocks that there are."""
        with self._lock:
            return self.core.halt(number)

    def tell(self, closed: Closed) -> None:
        """Shard 0 says what a round is made of."""
        with self._lock:
            answers = self._answered(lambda: self.core.tell(closed.clock, closed.workers))
        resolve(answers)

    def convene(
        self, decide: Callable[[ShardCore], Sequence[Decision]], view: Callable[[], View]
    ) -> tuple[Sequence[Decision], Answers, dict[int, tuple[int, ...]]]:
        """Let the coordinator decide while this shard stands still, and take its new view.

        Returns its decisions, answers of this shard that are to be sent then, and the latest
        rounds.
        """
        with self._lock:
            decisions = decide(self.core)
            answers = self._answered(lambda: self.core.adopt(view()))
            return decisions, answers, dict(self.core.closed)

    def _answered(self, decide: Callable[[], Sequence[Decision]]) -> Answers:
        if self._failure is not None:
            return []
        try:
            return self._carry_out(decide())
        except _StepFailedError as failed:
            return self._give_up(failed)

    def fail(self, error: PsrpcError) -> None:
        """Answer every open and every later request with `error`."""
        with self._lock:
            self._failure = self._failure or error
            answers = [(call, _failure(self._failure)) for call in self.desk.clear()]
        resolve(answers)
        self.ended.set()

    @property
    def failure(self) -> PsrpcError | None:
        """What ended the job before its time, if anything did."""
        return self._failure

    def _answer(self, call: Call) -> Answers:
        handler = self._handlers.get(type(call.request))
        if handler is None:
            return [(call, _failure(ProtocolError(f"unknown request {call.request!r}")))]
        if self._failure is not None and not isinstance(call.request, Bye):
            return [(call, _failure(self._failure))]
        try:
            return handler(call.request, call)
        except _StepFailedError as failed:
            answers = self._give_up(failed)
            return [
                *((each, payload) for each, payload in answers if each is not call),
                (call, _failure(self._reason(failed.__cause__))),
            ]
        except PsrpcError as error:
            return [(call, _failure(error))]

    def _give_up(self, failed: _StepFailedError) -> Answers:
        self._failure = self._reason(failed.__cause__)
        self.ended.set()
        return [(each, _failure(self._failure)) for each in self.desk.clear()]

    def _reason(self, error: BaseException | None) -> PsrpcError:
        if isinstance(error, PeerLostError):
            return error
        return JobFailedError(f"server {self.index}: {type(error).__name__}: {error}")

    def _push(self, push: Push, call: Call) -> Answers:
        if not push.void:
            self.store.check(call.tensors, f"worker {push.worker}")
        usual = self.core.quick(push)
        if usual is None:
            return self._carry_out(self.core.push(push, self.desk.open(call)))
        reply, staleness = usual
        self._step([call], [staleness])
        return [(call, (reply, self._granted(call, reply)))]

    def _pull(self, pull: Pull, call: Call) -> Answers:
        return self._carry_out(self.core.pull(pull, self.desk.open(call)))

    def _adopt(self, adopt: Adopt, call: Call) -> Answers:
        answers = self._carry_out(self.core.adopt(adopt.view))
        return [*answers, (call, (Done(self.core.version), []))]

    def _peek(self, request: Peek, call: Call) -> Answers:
        return [(call, (Done(self.core.version), self._weights_for(call)))]

    def _get_state(self, request: GetState, call: Call) -> Answers:
        pieces: list[tuple[str, int, tuple[tuple[str, int | None, object], ...]]] = []
        tensors: list[torch.Tensor] = []
        states = self.store.optimizer_state()
        for piece, state in zip(self.store.layout.pieces, states, strict=True):
            entries: list[tuple[str, int | None, object]] = []
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    entries.append((key, len(tensors), None))
                    tensors.append(value.clone())
                else:
                    entries.append((key, None, value))
            name = self._blueprint.specs[piece.parameter].name
            pieces.append((name, piece.first_row, tuple(entries)))
        return [(call, (StateReply(tuple(pieces)), tensors))]

    def _fail(self, request: Fail, call: Call) -> Answers:
        if lost_a_server(request) and self.job.plane is not PlaneChoice.COLLECTIVE:
            # The coordinator looks whether that one is dead, and ends the job if so.
            return [(call, (Done(self.core.version), []))]
        if self.core.gate.epoch and request.worker not in self.core.gate.active:
            # The coordinator knows whether it belongs here, and ends the job if it does.
            return [(call, (Done(self.core.version), []))]
        self._failure = self._failure or worker_failed(request)
        held = [(each, _failure(self._failure)) for each in self.desk.clear()]
        self.ended.set()
        return [(call, (Done(self.core.version), [])), *held]

    def _carry_out(self, decisions: Sequence[Decision]) -> Answers:
        answers: Answers = []
        for place, decision in enumerate(decisions):
            match decision:
                case Apply(tokens, _, staleness):
                    takers = self._takers(decisions[place + 1 :]) if self._large else []
                    self._step([self.desk.look(token) for token in tokens], staleness, takers)
                case Answer(token, reply):
                    call = self.desk.close(token)
                    answers.append((call, (reply, self._granted(call, reply))))
                case Same(token, first):
                    self.desk.attach(token, first)
                case Image(cut, record):
                    self.pictured(cut, self.store.image(), record)
        return answers

    def _takers(self, later: Sequence[Decision]) -> list[Call]:
        """The calls that take the weights of this step, each stretch as soon as it is stepped."""
        takers = []
        for decision in itertools.takewhile(lambda each: not isinstance(each, Apply), later):
            if isinstance(decision, Answer):
                call = self.desk.look(decision.token)
                if self._wants(call, decision.reply) and all(map(_in_stretches, call.lands)):
                    takers.append(call)
        return takers

    def _step(
        self, calls: Sequence[Call], staleness: Sequence[int], takers: Sequence[Call] = ()
    ) -> None:
        pushes = [call.request for call in calls if isinstance(call.request, Push)]
        contributions = [
            Contribution(call.tensors, push.samples, push.absent, push.overrides)
            for call, push in zip(calls, pushes, strict=True)
        ]
        stretches = [land.stretch for call in takers for land in call.lands if _in_stretches(land)]

        def written(segment: int, low: int, high: int) -> None:
            for stretch in stretches:
                stretch(self.store.flats, segment, low, high)

        try:
            self.store.step(contributions, written if stretches else None)
        except Exception as error:
            raise _StepFailedError from error
        for call in takers:
            call.landed = len(call.lands)
        for call, push, stale in zip(calls, pushes, staleness, strict=True):
            call.tensors = ()
            self.observe(push, stale)

    def _granted(self, call: Call, reply: Reply) -> list[torch.Tensor]:
        return self._weights_for(call) if self._wants(call, reply) else []

    def _wants(self, call: Call, reply: Reply) -> bool:
        request = call.request
        wants = isinstance(request, Pull) or (isinstance(request, Push) and request.pull)
        return wants and isinstance(reply, Stepped)

    def _weights_for(self, call: Call) -> list[torch.Tensor]:
        """Give the weights to those who take them now; return them for those who wait for them."""
        for land in call.lands[call.landed :]:
            land(self.store.flats)
        return self.store.snapshot() if len(call.answers) > len(call.lands) else []


def _failure(error: PsrpcError) -> Payload:
    return Failure(encode(error)), []


def lost_a_server(request: Fail) -> bool:
    """Whether what failed is a worker's way to a server, which others may still reach."""
    return request.error[0] == PeerLostError.__name__


def worker_failed(request: Fail) -> PsrpcError:
    """The error that ends a job by a worker's word: its failure, or one it was told of."""
    name, text = request.error
    if name == JobFailedError.__name__:
        return JobFailedError(text)
    return JobFailedError(f"worker {request.worker} failed: {name}: {text}")
