"""The collective plane's side of a server: it says when a round's collectives begin.

Who is in a round is known when the round is complete, and not before: a worker may
go idle at an epoch's end. So a worker sends the header of its push alone and
waits. When the server's core lets the round be applied, every worker in it gets
its `Cue`: with whom, and by what weight. They add up their gradients in a
process group, the server steps, and the weights go back to the same workers.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from psrpc.errors import JobFailedError, PeerLostError, ProtocolError, PsrpcError, encode
from psrpc.messages import Failure, Push, Reply, Request, Stepped
from psrpc.planes import codec
from psrpc.planes.base import Answer, Landing, Payload, Service
from psrpc.planes.groups import Group, Groups
from psrpc.planes.staging import Staging
from psrpc.store.shard import Awaited

_GROUPS = 8

Future = torch.futures.Future[Payload]


@dataclass(frozen=True)
class Enter(Request):
    """A push without its gradients. Answered with a `Cue`, or as the push itself would be."""

    push: Push


@dataclass(frozen=True)
class Outcome(Request):
    """What became of the push that was made at `clock`, asked when its round did not say."""

    clock: int


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

codec.know(Enter, Outcome, Cue)


class Ending(Service, Protocol):
    """A service that can end its job."""

    def fail(self, error: PsrpcError) -> None:
        """Answer every open and every later request with `error`."""
        ...


class Part(Awaited):
    """One worker's part in one round: its gradients come when they are asked for."""

    def __init__(self, conductor: Conductor, push: Push) -> None:
        self.push = push
        self.round: Round | None = None
        self.cue: Future = torch.futures.Future()
        self.outcome: Future = torch.futures.Future()
        self._conductor = conductor

    def sum(self, shares: Sequence[tuple[Sequence[torch.Tensor], float]]) -> list[torch.Tensor]:
        """See `Awaited`."""
        return self._conductor.conduct(shares)

    def answer(self, payload: Payload) -> None:
        """The server has answered the push."""
        if self.round is None:
            self.cue.set_result(payload)
        else:
            self.round.answered(self, payload)


class Round:
    """The parts that are summed together, from their cue until their answers are sent."""

    def __init__(self, conductor: Conductor, parts: Sequence[Part]) -> None:
        self.group: Group | None = None
        self._conductor = conductor
        self._parts = len(parts)
        self._answers: list[tuple[Part, Payload]] = []
        self._lock = threading.Lock()

    def answered(self, part: Part, payload: Payload) -> None:
        """Keep one part's answer; the last one sends them all.

        Whoever steps synchronously is let go with the others of his round, so that no
        answer waits here for long.
        """
        with self._lock:
            self._answers.append((part, payload))
            complete = len(self._answers) == self._parts
        if complete:
            answers, self._answers = self._answers, []
            broken = self._conductor.spread(self.group, answers)
            for part, (reply, weights) in answers:
                # Weights that have gone to the group already are not kept for it as well.
                sent = isinstance(reply, Stepped)
                outcome = broken or (reply, [] if sent else weights)
                part.outcome.set_result(outcome)


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

    @property
    def kept(self) -> tuple[int, ...]:
        """The numbers that are not forgotten."""
        return tuple(self._numbers.values())


class Conductor:
    """Stands before a server's service. Knows of collectives what the service does not."""

    def __init__(self, service: Ending, staging: Staging, groups: Groups) -> None:
        self._service = service
        self._staging = staging
        self._groups = groups
        self._numbers = _Numbers()
        self._parts: dict[int, Part] = {}
        self._lock = threading.Lock()
        self._spreading = threading.Lock()
        self._orders: queue.SimpleQueue[tuple[Part, bool] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="psrpc-conductor", daemon=True)

    def start(self) -> None:
        """Begin to take pushes."""
        self._thread.start()

    def close(self) -> None:
        """Take no more. Blocks until the groups are gone; a round under way for 2 s at most.

        A process that ends while its thread lets go of a group of Gloo's is aborted.
        """
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
            self._enter(request.push).add_done_callback(_passing_on_to(answer))
        elif isinstance(request, Outcome):
            self._outcome(request).add_done_callback(_passing_on_to(answer))
        else:
            self._service.handle(request, tensors, answer, land)

    def conduct(self, shares: Sequence[tuple[Sequence[torch.Tensor], float]]) -> list[torch.Tensor]:
        """Give the parts among `shares` their cue, and add up all. The server holds its lock."""
        parts = [(share, weight) for share, weight in shares if isinstance(share, Part)]
        workers = tuple(sorted(part.push.worker for part, _ in parts))
        number = self._numbers.of(workers)
        kept = self._numbers.kept
        round_ = Round(self, [part for part, _ in parts])
        for part, weight in parts:
            part.round = round_
            part.cue.set_result((Cue(number, workers, weight, kept), []))
        self._groups.keep(kept)
        self._staging.clear()
        for share, weight in shares:
            if not isinstance(share, Part):
                self._staging.add(share, weight)
        try:
            group = self._groups.join(number, workers, 0)
            for total in self._staging.sums:
                group.reduce(total)
        except PeerLostError:
            self._groups.close()
            raise
        round_.group = group
        return self._staging.total()

    def spread(
        self, group: Group | None, answers: Sequence[tuple[Part, Payload]]
    ) -> Payload | None:
        """Send weights and answers to a round's workers; returns what they get if that breaks."""
        if group is None:
            return None  # The sum broke, and they ask for the outcome.
        replies = {part.push.worker: reply for part, (reply, _) in answers}
        weights = next((w for _, (reply, w) in answers if isinstance(reply, Stepped)), None)
        with self._spreading:
            self._staging.put(self._staging.weights if weights is None else weights, replies)
            try:
                group.broadcast(self._staging.spread)
            except PeerLostError as error:
                self._groups.close()
                self._service.fail(error)
                return Failure(encode(error)), []
        return None

    def _enter(self, push: Push) -> Future:
        with self._lock:
            latest = self._parts.get(push.worker)
            again = latest is not None and latest.push.clock == push.clock
            part = latest if latest is not None and again else Part(self, push)
            if latest is None or latest.push.clock < push.clock:
                self._parts[push.worker] = part
        # Not by this thread: only when it has returned can the cue be sent.
        self._orders.put((part, again))
        return part.cue

    def _outcome(self, request: Outcome) -> Future:
        with self._lock:
            part = self._parts.get(request.worker)
        if part is not None and part.push.clock == request.clock:
            return part.outcome
        unknown: Future = torch.futures.Future()
        error = ProtocolError(f"worker {request.worker} made no push at clock {request.clock}")
        unknown.set_result((Failure(encode(error)), []))
        return unknown

    def _serve(self, part: Part, answer: Answer) -> None:
        try:
            self._service.handle(part.push, part, answer)
        except Exception as error:
            # Without this thread all others would wait for ever.
            failed = JobFailedError(f"a push failed: {type(error).__name__}: {error}")
            self._service.fail(failed)
            answer((Failure(encode(failed)), []))

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            part, again = order
            # A repeated push gets the first one's answer, which is kept already.
            self._serve(part, (lambda payload: None) if again else part.answer)
        self._groups.close()


def _passing_on_to(answer: Answer) -> Callable[[Future], None]:
    def pass_on(done: Future) -> None:
        answer(done.value())

    return pass_on
