"""The collective plane's side of a server: it says when a round's collectives begin.

Who is in a round is known when the round is complete, and not before: a worker may
go idle at an epoch's end. So a worker sends the header of its push alone, which
waits here. When all are here that the server's round lacks, every worker in it gets
its `Cue`: with whom, and by what weight. They add up their gradients in a
process group; then the server takes in the whole round at once, and the weights go
back to the same workers. So a round that breaks, as one of its members has died, has
changed nothing, and is made again by those who come again.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from psrpc.errors import JobFailedError, PeerLostError, PsrpcError, encode
from psrpc.messages import Adopt, Failure, Push, Reply, Request, Stepped
from psrpc.modes import Reduction
from psrpc.planes import codec
from psrpc.planes.base import Answer, Landing, Payload, Service
from psrpc.planes.groups import Group, Groups
from psrpc.planes.staging import Staging
from psrpc.store.shard import shares

_GROUPS = 8
_MOST_BREAKS = 3  # of one round with the same workers, all of whom came again

Future = torch.futures.Future[Payload]
Gathered = list[tuple[Push, bool]]


@dataclass(frozen=True)
class Enter(Request):
    """A push without its gradients. Answered with a `Cue`, or as the push itself would be.

    `serial` grows each time its worker comes, be it with the same push: who comes again has left
    the round that it was in.
    """

    push: Push
    serial: int


@dataclass(frozen=True)
class Cue(Reply):
    """The round begins: send the gradients, times `weight`, in `group`, to which `workers` belong.

    `kept` are the groups that may be used again; all others are left.
    """

    group: int
    workers: tuple[int, ...]
    weight: float
    kept: tuple[int, ...]


_LONGEST_END_S = 2.0

codec.know(Enter, Cue)


class Ensemble(Protocol):
    """A server whose rounds' gradients are added up elsewhere. For any thread; never waits."""

    def gather(self, pushes: Sequence[Push]) -> Gathered | None:
        """Which of these pushes make the present round complete, see `Rounds.gather`."""
        ...

    def wants(self, push: Push) -> bool:
        """Whether a push is new, so that its gradients are needed."""
        ...

    def join(
        self, pushes: Sequence[Push], total: Sequence[torch.Tensor], answers: Sequence[Answer]
    ) -> bool:
        """Take in the pushes of a round with their gradients' sum; False if they make none now."""
        ...

    def repeat(self, push: Push, answer: Answer) -> bool:
        """Answer a push whose gradients are not needed; False if they are."""
        ...


class Part:
    """One worker's part in one round, from its coming to its answer."""

    def __init__(self, push: Push, serial: int) -> None:
        self.push = push
        self.serial = serial
        self.round: Round | None = None
        self.cue: Future = torch.futures.Future()
        self._lock = threading.Lock()

    def tell(self, payload: Payload) -> None:
        """Answer its coming, unless that was done."""
        with self._lock:
            if not self.cue.done():
                self.cue.set_result(payload)

    def answer(self, payload: Payload) -> None:
        """The server has answered the push."""
        if self.round is None:
            self.tell(payload)
        else:
            self.round.answered(payload)


class Round:
    """The parts whose gradients are added up together, until their answers are sent."""

    def __init__(self, parts: Sequence[Part], complete: Callable[[Round], None]) -> None:
        self.workers = tuple(part.push.worker for part in parts)
        self.group: Group | None = None
        self.number = -1
        self.answers: list[Payload] = []
        self._parts = parts
        self._complete = complete
        self._lock = threading.Lock()

    def begin(self, number: int, kept: tuple[int, ...], reduction: Reduction) -> None:
        """Give all their cue."""
        self.number = number
        weights = shares([part.push.samples for part in self._parts], reduction)
        for part, weight in zip(self._parts, weights, strict=True):
            part.round = self
            part.tell((Cue(number, self.workers, weight, kept), []))

    def answered(self, payload: Payload) -> None:
        """Keep one part's answer.

        Whoever steps synchronously is let go with the others of his round, so that no
        answer waits here for long.
        """
        with self._lock:
            self.answers.append(payload)
            complete = len(self.answers) == len(self._parts)
        if complete:
            self._complete(self)


class _Numbers:
    """The numbers of groups by their workers; the oldest are forgotten."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self._next = 0

    def of(self, workers: tuple[int, ...]) -> int:
        """The number of this group; a new one if it has none."""
        if workers not in self._numbers:
            self._numbers[workers] = self._next
            self._next += 1
        self._numbers.move_to_end(workers)
        if len(self._numbers) > _GROUPS:
            self._numbers.popitem(last=False)
        return self._numbers[workers]

    def forget(self, workers: tuple[int, ...]) -> None:
        """These workers' group is broken: their next one is another."""
        self._numbers.pop(workers, None)

    @property
    def kept(self) -> tuple[int, ...]:
        """The numbers that are not forgotten."""
        return tuple(self._numbers.values())


class Conductor:
    """Stands before a server's service. Knows of collectives what the service does not.

    `rounds` is the shard of `service`; `fail` ends the job.
    """

    def __init__(
        self,
        service: Service,
        rounds: Ensemble,
        fail: Callable[[PsrpcError], None],
        staging: Staging,
        groups: Groups,
        reduction: Reduction,
    ) -> None:
        self._service = service
        self._rounds = rounds
        self._fail = fail
        self._staging = staging
        self._groups = groups
        self._reduction = reduction
        self._numbers = _Numbers()
        self._parts: dict[int, Part] = {}  # by worker, the latest
        self._waiting: dict[int, Part] = {}  # of these, the ones that no round has taken
        self._breaks: tuple[tuple[int, tuple[int, ...]], int] = ((-1, ()), 0)
        self._closed = False
        self._lock = threading.Lock()
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="psrpc-conductor", daemon=True)

    def start(self) -> None:
        """Begin to take pushes."""
        self._thread.start()

    def close(self) -> None:
        """Take no more. Blocks until the groups are gone; a round under way for 2 s at most.

        A process that ends while its thread lets go of a group of Gloo's is aborted.
        """
        self._closed = True
        self._orders.put(None)
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(_LONGEST_END_S)

    def handle(
        self,
        request: Request,
        tensors: Sequence[torch.Tensor],
        answer: Answer,
        land: Landing | None = None,
    ) -> None:
        """Take a request with its tensors; see `Service`."""
        if isinstance(request, Enter):
            self._enter(request).add_done_callback(_passing_on_to(answer))
        else:
            self._service.handle(request, tensors, answer, land)

    def stir(self) -> None:
        """The server's round may lack less than before: look again. For any thread."""
        if self._waiting:
            self._orders.put(self._look)

    def _enter(self, request: Enter) -> Future:
        part = Part(request.push, request.serial)
        with self._lock:
            latest = self._parts.get(request.worker)
            if latest is not None and latest.serial == request.serial:
                return latest.cue
            stale = latest is not None and latest.serial > request.serial
            if not stale:
                self._parts[request.worker] = part
        old = part if stale else latest
        if old is not None:
            # Its worker has come again since, and does not wait for this answer any more.
            old.tell(_lost("this request was made anew"))
        if not stale:
            # Not by this thread: only when it has returned can the cue be sent.
            self._orders.put(partial(self._take, part))
        return part.cue

    # What follows is the conductor's own thread.

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                order()
            except Exception as error:
                # Without this thread all others would wait for ever.
                self._fail(JobFailedError(f"a round failed: {type(error).__name__}: {error}"))
        for part in self._waiting.values():
            if not self._rounds.repeat(part.push, part.answer):
                part.tell(_lost("this server is closed"))
        self._groups.close()

    def _take(self, part: Part) -> None:
        if part is not self._parts.get(part.push.worker):
            return
        if part.push.view is not None:
            news = Adopt(part.push.worker, part.push.view)
            self._service.handle(news, (), lambda payload: None)
        self._waiting[part.push.worker] = part
        self._look()

    def _look(self) -> None:
        """Answer those that no round waits for, and play the rounds that are complete."""
        while True:
            for worker, part in list(self._waiting.items()):
                if part.cue.done() or self._rounds.repeat(part.push, part.answer):
                    del self._waiting[worker]
            pushes = [part.push for part in self._waiting.values()]
            gathered = self._rounds.gather(pushes) if pushes else None
            if gathered is None:
                return
            self._play(gathered)

    def _play(self, gathered: Gathered) -> None:
        """Let the server take in a round, if it does not break before."""
        parts = [self._waiting.pop(push.worker) for push, _ in gathered]
        carriers = [part for part, (_, carries) in zip(parts, gathered, strict=True) if carries]
        round_ = Round(carriers, lambda each: self._orders.put(partial(self._spread, each)))
        total = self._sum(round_, carriers) if carriers else []
        pushes, answers = [part.push for part in parts], [part.answer for part in parts]
        if total is not None and self._rounds.join(pushes, total, answers):
            return
        for part in parts:
            if part.round is None:
                self._waiting.setdefault(part.push.worker, part)
        if total is not None:
            self._spread(round_)  # somebody has left meanwhile: all are to come again

    def _sum(self, round_: Round, carriers: Sequence[Part]) -> list[torch.Tensor] | None:
        """The gradients of a round; None if that broke."""
        workers = round_.workers
        number = self._numbers.of(workers)
        kept = self._numbers.kept
        round_.begin(number, kept, self._reduction)
        self._groups.keep(kept)

        def off() -> bool:
            here = (part is self._parts.get(part.push.worker) for part in carriers)
            wanted = (self._rounds.wants(part.push) for part in carriers)
            return self._closed or not (all(here) and all(wanted))

        try:
            round_.group = self._groups.join(number, workers, 0, off)
            self._staging.clear()
            for total in self._staging.sums:
                round_.group.reduce(total)
        except PeerLostError as error:
            self._lose(round_, carriers[0].push.clock, error)
            return None
        return self._staging.total()

    def _spread(self, round_: Round) -> None:
        """Send weights and the answer to a round's workers; those who miss it come again.

        If there are none, the round is broken: then all of them do.
        """
        assert round_.group is not None
        first = round_.answers[0][0] if round_.answers else None
        alike = isinstance(first, Stepped) and all(r == first for r, _ in round_.answers)
        weights = next((w for r, w in round_.answers if isinstance(r, Stepped)), None)
        if weights is None:
            self._drop(round_)
        else:
            self._staging.put(weights, first if isinstance(first, Stepped) and alike else None)
            try:
                round_.group.broadcast(self._staging.spread)
            except PeerLostError:
                self._drop(round_)
        round_.answers = []
        self._forget(round_)

    def _forget(self, round_: Round) -> None:
        """Keep no weights of a round that is over, nor of parts that were answered without one.

        Whoever has missed an answer comes again, and the server knows it.
        """
        with self._lock:
            for worker, part in list(self._parts.items()):
                over = part.cue.done() and part.round in (None, round_)
                if over and worker not in self._waiting:
                    del self._parts[worker]

    def _lose(self, round_: Round, clock: int, error: PeerLostError) -> None:
        self._drop(round_)
        which, times = (clock, round_.workers), 1
        if self._breaks[0] == which:
            times += self._breaks[1]
        self._breaks = which, times
        if times >= _MOST_BREAKS:
            self._fail(error)

    def _drop(self, round_: Round) -> None:
        self._groups.drop(round_.number)
        self._numbers.forget(round_.workers)


def _passing_on_to(answer: Answer) -> Callable[[Future], None]:
    def pass_on(done: Future) -> None:
        answer(done.value())

    return pass_on


def _lost(why: str) -> Payload:
    return Failure(encode(PeerLostError(why))), []
