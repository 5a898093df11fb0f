"""The coordinator, beside server 0's shard: who takes part, who does which samples, the counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.decisions import Answer, Decision, Same, Token
from psrpc.core.leases import epochs_of
from psrpc.core.ledger import Ledger
from psrpc.core.shard import ShardCore
from psrpc.counts import Reshard
from psrpc.desk import Answers, Call, Desk, lost_a_server, resolve, worker_failed
from psrpc.errors import JobFailedError, ProtocolError, PsrpcError, encode
from psrpc.job import PROTOCOL, Job, check_alike
from psrpc.messages import (
    Acquire,
    Bye,
    Done,
    End,
    Ended,
    Fail,
    Failure,
    GetBuffers,
    GetFrozen,
    GetStats,
    Idle,
    Leave,
    PutBuffers,
    Register,
    Request,
    StatsReply,
)
from psrpc.meter import Meter
from psrpc.modes import OnFailure, OnPoison
from psrpc.moves import ABOUT_SERVERS, Agreed, Moved, Offer, Retire, Scale, Settled
from psrpc.orders import Cut, PutPart, Watch
from psrpc.planes import base
from psrpc.planes.base import Landing
from psrpc.server import ParameterServer
from psrpc.store.blueprint import Blueprint, compare
from psrpc.store.buffers import BufferMean, buffers_of

Seen = TypeVar("Seen")
Decide = Callable[[ShardCore], Sequence[Decision]]
Tensors = Sequence[torch.Tensor]

# Frozen parameters, the model's buffers, and each worker's with its steps.
Untrained = tuple[Tensors, Tensors, dict[int, tuple[int, Tensors]]]


class Coordinator:
    """Answers what concerns the whole job, and passes on the rest to its shard's server."""

    def __init__(
        self,
        job: Job,
        server: ParameterServer,
        blueprint: Blueprint,
        model: nn.Module,
    ) -> None:
        self.job = job
        self.server = server
        elastic = job.elastic
        self.core = CoordinatorCore(
            job.mode,
            job.workers,
            elastic.min_workers,
            job.servers,
            OnFailure(elastic.on_failure),
            OnPoison(elastic.on_poison),
        )
        self.core.resharding.refusal = job.unscalable
        self.meter = Meter()
        self.updates_redone = 0
        self.settled_s = 0.0  # when the present layout came into force
        self.changed = threading.Condition()
        self.lost: Callable[[int], None] = lambda process: None
        self.came: Callable[[int], None] = lambda rank: None  # while the job runs
        self.part_came: Callable[[PutPart], None] = lambda put: None
        self.kept_last: Callable[[], bool] = lambda: True
        self.expected: Callable[[int], None] = lambda process: None
        self.saving: Callable[[], bool] = lambda: False  # whether a checkpoint is being made
        self.reshards: Callable[[], tuple[Reshard, ...]] = tuple
        # A worker lost a server: to be looked into, on another thread.
        self.suspect: Callable[[PsrpcError], None] | None = None
        self._model, self._blueprint = model, blueprint
        self._take_rest()
        self._lock = threading.Lock()
        self.desk = Desk()
        self._failure: PsrpcError | None = None
        self._handlers: dict[type[Request], Callable[[Any, Call], Answers]] = {
            Register: self._register,
            Acquire: self._word(lambda *word: self.core.acquire(*word)),
            Idle: self._word(lambda *word: self.core.idle(*word)),
            Leave: self._leave,
            End: lambda request, call: [(call, (Ended(self.kept_last()), []))],
            Watch: self._word(lambda *word: self.core.watch(*word)),
            PutPart: self._put_part,
            Bye: self._bye,
            Fail: self._fail,
            PutBuffers: self._put_buffers,
            GetBuffers: lambda request, call: [(call, (Done(), self._buffers.mean()))],
            GetFrozen: lambda request, call: [(call, (Done(), self._frozen))],
            GetStats: self._get_stats,
            **dict.fromkeys(ABOUT_SERVERS, self._word(lambda *word: self.core.reshard(*word))),
            Offer: self._offer,
            Scale: self._scale,
        }
        server.observe = self.meter.count

    def handle(
        self,
        request: Request,
        tensors: Sequence[torch.Tensor],
        answer: base.Answer,
        land: Landing | None = None,
    ) -> None:
        """Take a request with its tensors; see `Service`."""
        handler = self._handlers.get(type(request))
        if handler is None:
            self._pass_on(request, tensors, answer, land)
            return
        call = Call(request, tensors, [answer])
        with self._lock:
            answers = self._answer(handler, call)
        resolve(answers)
        self._tell()

    def _pass_on(
        self,
        request: Request,
        tensors: Sequence[torch.Tensor],
        answer: base.Answer,
        land: Landing | None,
    ) -> None:
        """A request for the shard; what it closes or drops, the others are to hear of first."""
        answers = self.server.decide(request, tensors, answer, land)
        if self.server.core.eventful:
            with self._lock:
                if self._failure is None:
                    answers = [*self._convene(lambda shard: []), *answers]
        resolve(answers)

    def fail(self, error: PsrpcError) -> None:
        """End the job: every open and every later request is answered with `error`."""
        with self._lock:
            answers = self._end(error)
        resolve(answers)
        self._tell()

    def begin_cut(self, number: int, folder: str) -> None:
        """Let all shards be cut for a checkpoint: at a point that has not come on any."""
        with self._lock:
            answers = self._convene(lambda shard: self.core.begin_cut(number, folder, shard))
        resolve(answers)

    def give_up_cut(self, number: int) -> None:
        """Let nobody wait for a cut any more that was not made."""
        self.server.cut(Cut(number))
        with self._lock:
            answers = self._convene(lambda shard: self.core.give_up_cut(number))
        resolve(answers)

    def begin_layout(self, giver: str) -> None:
        """Let all servers be cut for a new layout; the own one gives its rows away at `giver`."""

        def begin(shard: ShardCore) -> Sequence[Decision]:
            if self.core.resharding.may_cut:
                self.core.resharding.begin(shard, giver)
            return []

        with self._lock:
            answers = self._convene(begin)
        resolve(answers)

    def give_up_layout(self, why: str) -> None:
        """Let the servers go on as they are, if the new layout is not in force yet."""
        with self._lock:
            answers = self._convene(lambda shard: self.core.resharding.give_up(why))
        resolve(answers)

    def look(self, at: Callable[[CoordinatorCore], Seen]) -> Seen:
        """What `at` finds in the decisions, while none is made."""
        with self._lock:
            return at(self.core)

    def restore(
        self, record: Mapping[str, Any], rest: Mapping[str, Any], ledgers: Sequence[Ledger]
    ) -> None:
        """Go on, before anybody comes, from what `record` gave.

        `rest` has the frozen parameters and buffers, by name, `ledgers` are those of all shards.
        """
        self._model.load_state_dict(dict(rest), strict=False)
        self._take_rest()
        self.core.incarnation = int(record["incarnation"]) + 1
        self.meter.samples_before = self.server.stats().samples
        self.core.leases.restore(epochs_of(record), ledgers)

    def buffers(self) -> list[torch.Tensor]:
        """The mean of all workers' buffers."""
        return self._buffers.mean()

    def untrained(self) -> Untrained:
        """The frozen parameters, and the buffers of each worker. Not to be changed."""
        return self._frozen, *self._buffers.export()

    def take_over(self, core: CoordinatorCore, untrained: Untrained) -> None:
        """Be as another coordinator, which has this `core` and gave `untrained`."""
        self.core = core
        frozen, initial, of_worker = untrained
        self._frozen = list(frozen)
        with torch.no_grad():  # for checkpoints
            for parameter, value in zip(
                self._blueprint.untrained(self._model), frozen, strict=True
            ):
                parameter.copy_(value)
        self._buffers.restore(initial, of_worker)

    def lose(self, process: int, why: str) -> None:
        """A process died, or stopped saying that it lives: nobody waits for it any more."""
        with self._lock:
            if self._failure is not None:
                return
            worker = self.core.worker_of(process)
            if worker is not None and worker in self.core.members.live:
                self._buffers.drop(worker)
            try:
                answers = self._convene(lambda shard: self.core.lose(process, why, shard))
            except Exception as error:
                # On the thread that hears of deaths, which must go on.
                answers = self._end(JobFailedError(f"server 0: {type(error).__name__}: {error}"))
        resolve(answers)
        self.lost(process)
        self._tell()

    def _take_rest(self) -> None:
        """What the model has that is not trained, as workers are to have it."""
        model = self._model
        self._buffers = BufferMean(buffers_of(model))
        self._frozen = [p.detach().cpu().clone() for p in self._blueprint.untrained(model)]

    def _tell(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def _answer(self, handler: Callable[[Any, Call], Answers], call: Call) -> Answers:
        if self._failure is not None and not isinstance(call.request, Bye):
            return [(call, (Failure(encode(self._failure)), []))]
        try:
            return handler(call.request, call)
        except PsrpcError as error:
            return [(call, (Failure(encode(error)), []))]
        except Exception as error:
            # Buffers are the user's own: whatever is wrong with them ends the job.
            failed = JobFailedError(f"server 0: {type(error).__name__}: {error}")
            others = [answer for answer in self._end(failed) if answer[0] is not call]
            return [*others, (call, (Failure(encode(failed)), []))]

    def _register(self, request: Register, call: Call) -> Answers:
        self._check(request)
        self.expected(request.worker)
        before, members = self.core.worker_of(request.worker), self.core.members
        began = members.started
        answers = self._word(self.core.register)(request, call)
        now = self.core.worker_of(request.worker)
        if before is not None and before != now:
            self._buffers.drop(before)
        if began and now is not None and before != now:
            self.came(members.rank(now))
        return answers

    def _check(self, request: Register) -> None:
        who = f"worker {request.worker if request.rank is None else request.rank}"
        if request.protocol != PROTOCOL:
            raise ProtocolError(
                f"{who} speaks version {request.protocol} of the protocol, this server "
                f"{PROTOCOL}: install the same psrpc everywhere"
            )
        self._compare(request, who)

    def _offer(self, request: Offer, call: Call) -> Answers:
        self._compare(request, f"the new server {request.worker}")
        return self._word(self.core.reshard)(request, call)

    def _compare(self, request: Register | Offer, who: str) -> None:
        ours = (*self.job.settings, *self._blueprint.options)
        check_alike(request.settings, ours, who)
        compare(request.model, self._blueprint.signature, who)

    def _word(
        self, decide: Callable[[Any, Token, ShardCore], Sequence[Decision]]
    ) -> Callable[[Any, Call], Answers]:
        """A handler of what workers say about themselves."""

        def handle(request: Request, call: Call) -> Answers:
            token = self.desk.open(call)
            return self._convene(lambda shard: decide(request, token, shard))

        return handle

    def _convene(self, decide: Decide) -> Answers:
        """Decide; the own shard knows at once who steps, and the other servers are told."""
        decisions, released, rounds = self.server.convene(decide, lambda: self.core.members.view)
        answers = self._carry_out([*decisions, *self.core.news(rounds)]) + released
        if (cut := self.core.take_cut()) is not None:
            own = self.server.hears if cut.layout else self.server.cut_at
            answers += [*self._carry_out(self.core.news(rounds)), *own(cut)]
        for word in self.core.resharding.take_own():
            answers += self._hear(word)
        if self.server.core.eventful:
            self.server.core.eventful = False
            return [*answers, *self._convene(self.core.take_back)]
        if self.core.verdict is not None:
            answers += self._end(self.core.verdict)
        elif self.core.over:
            self.server.ended.set()
        return answers

    def _hear(self, word: Cut | Settled | Retire) -> Answers:
        if isinstance(word, Settled):
            self.settled_s = time.monotonic()
            self.meter.await_next()
            self.server.awaited = True
        return self.server.hears(word)

    def _scale(self, request: Scale, call: Call) -> Answers:
        saving, answers = self.saving(), self._word(self.core.reshard)(request, call)
        return [
            (each, (replace(reply, saving=saving) if isinstance(reply, Agreed) else reply, beside))
            for each, (reply, beside) in answers
        ]

    def _bye(self, request: Bye, call: Call) -> Answers:
        if self._failure is not None:  # nobody reports
            request = replace(request, gone=True)
        return self._word(self.core.bye)(request, call)

    def _leave(self, request: Leave, call: Call) -> Answers:
        answers = self._word(self.core.leave)(request, call)
        if request.early:
            self._buffers.retire(request.worker)
        return answers

    def _put_part(self, request: PutPart, call: Call) -> Answers:
        self.part_came(request)
        return [(call, (Done(), []))]

    def _fail(self, request: Fail, call: Call) -> Answers:
        members = self.core.members
        if members.started and request.worker not in members.live:
            # One that was not let in, or is taken for dead: the job goes on without it.
            return [(call, (Done(), []))]
        failed = worker_failed(request)
        if self.suspect is not None and lost_a_server(request):
            self.suspect(failed)
            return [(call, (Done(), []))]
        return [(call, (Done(), [])), *self._end(failed)]

    def _end(self, error: PsrpcError) -> Answers:
        self._failure = self._failure or error
        self.server.fail(self._failure)
        return [(each, (Failure(encode(self._failure)), [])) for each in self.desk.clear()]

    def _put_buffers(self, request: PutBuffers, call: Call) -> Answers:
        if request.worker in self.core.members.live:  # not dead, nor taken for dead
            self._buffers.put(request.worker, request.steps, call.tensors)
        return [(call, (Done(), []))]

    def _get_stats(self, request: GetStats, call: Call) -> Answers:
        if request.layout != self.server.layout:
            return [(call, (Moved(self.server.layout), []))]
        reply = StatsReply(
            shard=self.server.stats(),
            workers=tuple(sorted(self.core.stats.items())),
            final_loss=self.meter.loss,
            leases=self.core.leases.export(),
            workers_lost=self.core.members.lost,
            updates_redone=self.updates_redone,
            reshards=self.reshards(),
        )
        return [(call, (reply, []))]

    def _carry_out(self, decisions: Sequence[Decision]) -> Answers:
        answers: Answers = []
        for decision in decisions:
            match decision:
                case Answer(token, reply):
                    answers.append((self.desk.close(token), (reply, [])))
                case Same(token, first):
                    self.desk.attach(token, first)
        return answers
