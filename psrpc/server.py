"""A parameter server: one shard, and the one place where gradients and decisions meet."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch

from psrpc.core.decisions import Answer, Apply, Decision, Image, Same
from psrpc.core.shard import ShardCore
from psrpc.desk import Answers, Call, lost_a_server, resolve, worker_failed
from psrpc.errors import JobFailedError, ProtocolError, PsrpcError, encode
from psrpc.job import Job
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
    StatsReply,
    Stepped,
    View,
)
from psrpc.moves import Moved, Retire, Settled
from psrpc.orders import Closed, Cut, Halt
from psrpc.planes import base
from psrpc.planes.base import Landing, Payload, StretchLanding
from psrpc.quick import Quick
from psrpc.store.blueprint import Blueprint
from psrpc.store.image import ShardImage
from psrpc.store.shard import Contribution, Joint, ShardStore
from psrpc.usual import Usual


def _in_stretches(land: Landing) -> TypeGuard[StretchLanding]:
    return hasattr(land, "stretch")


class _StepFailedError(Exception):
    """The optimizer, a class of the user's choice, raised: nobody knows what it did before."""


class ParameterServer(Quick):
    """Keeps one shard of the model and serves every plane through `handle`.

    `handle` may be called from any thread and never blocks on another worker: a
    request that must wait keeps its future open.
    """

    def __init__(self, job: Job, index: int, blueprint: Blueprint, store: ShardStore) -> None:
        self.job = job
        self.index = index
        core = ShardCore(job.mode, follows=index > 0, explains=False)
        super().__init__(core, store, job.servers)
        # Called while the shard stands still; takes the image over, and must release it. Without
        # it no image is made: another server of the shard writes it.
        self.pictured: Callable[[Cut, ShardImage, dict[str, Any]], None] | None = None
        # Called when the shard begins to stand still for a new layout.
        self.stands: Callable[[Cut], None] = lambda cut: None
        self.hears: Callable[[Cut | Settled | Retire], Answers] = self.hear
        self.ended = threading.Event()
        self._handlers: dict[type[Request], Callable[[Any, Call], Answers]] = {
            Push: self._push,
            Pull: self._pull,
            Adopt: self._adopt,
            Peek: self._peek,
            GetState: lambda request, call: [(call, self.store.described_state())],
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
            answers = self._answer(call)
        self.stirred()
        return answers

    def gather(self, pushes: Sequence[Push]) -> list[tuple[Push, bool]] | None:
        """Which of these pushes, whose gradients are elsewhere, make a round; see `Rounds`."""
        with self._lock:
            return self.core.gather(pushes)

    def join(
        self, pushes: Sequence[Push], total: Sequence[torch.Tensor], answers: Sequence[base.Answer]
    ) -> bool:
        """Take in what was gathered, if it still makes a round; `total` is as in `Joint`."""
        joint, settled = Joint(total), list[tuple[Call, Payload]]()
        with self._lock:
            if not self.makes_round(pushes):
                return False
            carry = {push.worker for push, carries in self.core.gather(pushes) or () if carries}
            for push, answer in zip(pushes, answers, strict=True):
                sent = joint if push.worker in carry else Joint()
                settled += self._answer(Call(push, sent, [answer]))
        resolve(settled)
        return True

    def makes_round(self, pushes: Sequence[Push]) -> bool:
        """Whether `join` would take these pushes, if nothing else comes meanwhile."""
        if self._failure is not None:
            return True  # that is their answer
        gathered = self.core.gather(pushes)
        return gathered is not None and len(gathered) == len(pushes)

    def repeat(self, push: Push, answer: base.Answer) -> bool:
        """Answer a push whose gradients are not needed; False if they are."""
        with self._lock:
            if self.wants(push):
                return False
            answers = self._answer(Call(push, (), [answer]))
        resolve(answers)
        return True

    def wants(self, push: Push) -> bool:
        """Whether a push's gradients are needed."""
        return self._failure is None and self.core.wants(push)

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

    def obey(self, word: Halt | Cut | Settled | Retire) -> None:
        """The coordinator has said a word about cuts, or about layouts."""
        if self.left is not None:
            self.heard()  # others keep its rows
        elif isinstance(word, Halt):
            self.halt(word.number)
        elif self.fresh and isinstance(word, Settled):
            self.fresh = False
            self.heard(word.heard)
        else:
            resolve(self.hears(word))
            if isinstance(word, Settled | Retire):
                self.heard()

    def hear(self, word: Cut | Settled | Retire) -> Answers:
        """Be cut, or go over to another layout; the answers are to be sent then."""
        if isinstance(word, Settled):
            return self.settle(word.layout, stays=self.index < word.servers)
        if isinstance(word, Cut) and word.given_up:
            self.forgo(-word.number)
        return self.cut_at(word) if isinstance(word, Cut) else []

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
            return self._give_up(failed.__cause__ or failed)
        finally:
            self.stirred()

    def fail(self, error: PsrpcError) -> None:
        """Answer every open and every later request with `error`."""
        with self._lock:
            self._failure = self._failure or error
            answers = [(call, _failure(self._failure)) for call in self.desk.clear()]
        resolve(answers)
        self.ended.set()
        self.stirred()

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
        asked = getattr(call.request, "layout", self.layout)
        if asked == self.layout:
            return self._handle(handler, call)
        if self.next is None or self.next[0] != asked:
            return [(call, (Moved(self.layout), []))]
        return [*self._settle(), *self._handle(handler, call)]

    def _handle(self, handler: Callable[[Any, Call], Answers], call: Call) -> Answers:
        try:
            return handler(call.request, call)
        except _StepFailedError as failed:
            cause = failed.__cause__ or failed
            answers = self._give_up(cause)
            return [
                *((each, payload) for each, payload in answers if each is not call),
                (call, _failure(self._reason(cause))),
            ]
        except PsrpcError as error:
            return [(call, _failure(error))]

    def _give_up(self, error: BaseException) -> Answers:
        self._failure = self._reason(error)
        self.ended.set()
        return [(each, _failure(self._failure)) for each in self.desk.clear()]

    def _reason(self, error: BaseException) -> PsrpcError:
        return JobFailedError(f"server {self.index}: {type(error).__name__}: {error}")

    def _push(self, push: Push, call: Call) -> Answers:
        sent = call.tensors
        if not (push.void or isinstance(sent, Joint)) and (sent or self.core.wants(push)):
            self.store.check(call.tensors, f"worker {push.worker}")
        usual = Usual.of(push)
        lead = None if usual is None else self.core.quick(usual)
        if lead is None:
            return self._carry_out(self.core.push(push, self.desk.open(call)))
        reply = Stepped(self.core.version, lead)
        self._apply([call])
        if self.awaited:
            self._enter()
        return [(call, (reply, self._granted(call, reply)))]

    def _pull(self, pull: Pull, call: Call) -> Answers:
        return self._carry_out(self.core.pull(pull, self.desk.open(call)))

    def _adopt(self, adopt: Adopt, call: Call) -> Answers:
        answers = self._carry_out(self.core.adopt(adopt.view))
        return [*answers, (call, (Done(self.core.version), []))]

    def _peek(self, request: Peek, call: Call) -> Answers:
        return [(call, (Done(self.core.version), self._weights_for(call)))]

    def _fail(self, request: Fail, call: Call) -> Answers:
        if lost_a_server(request):
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
                    takers = self._takers(decisions[place + 1 :]) if self.large else []
                    self._step([self.desk.look(token) for token in tokens], staleness, takers)
                case Answer(token, reply):
                    call = self.desk.close(token)
                    answers.append((call, (reply, self._granted(call, reply))))
                case Same(token, first):
                    self.desk.attach(token, first)
                case Image(cut, record):
                    if cut.layout:
                        self.stands(cut)
                    elif self.pictured is not None:
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
        self._apply(calls, takers)
        for call, stale in zip(calls, staleness, strict=True):
            if isinstance(call.request, Push):
                self.observe(call.request, stale)

    def _apply(self, calls: Sequence[Call], takers: Sequence[Call] = ()) -> None:
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
        for call in calls:
            call.tensors = ()

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
