"""What the coordinator does when a worker comes, asks for work, pauses or leaves."""

from __future__ import annotations

from dataclasses import dataclass, field

from psrpc.core.decisions import Answer, Decision, Hold, Same, Token, some_workers
from psrpc.core.leases import LeaseBook
from psrpc.core.membership import Membership
from psrpc.errors import UsageError, encode
from psrpc.messages import (
    Acquire,
    Done,
    Failure,
    Granted,
    Idle,
    Leave,
    Register,
    Reply,
    Request,
    WorkerStats,
)
from psrpc.modes import Aggregation, Mode


@dataclass
class _Word:
    """A worker's latest numbered request, and its answer once there is one."""

    serial: int
    token: Token
    reply: Reply | None = None


@dataclass
class CoordinatorCore:
    """Decides for the job; `floor` is always the slowest clock that shard 0 knows."""

    mode: Mode
    workers: int
    leases: LeaseBook = field(default_factory=LeaseBook)
    stats: dict[int, WorkerStats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.members = Membership(self.workers)
        self._words: dict[int, _Word] = {}
        self._coming: dict[int, list[Token]] = {}
        self._asking: dict[int, Acquire] = {}

    def register(self, request: Register, token: Token) -> list[Decision]:
        """A worker has come: it is answered when all have."""
        self.members.join(request.worker)
        self._coming.setdefault(request.worker, []).append(token)
        if self.members.to_come:
            who = some_workers(self.members.to_come, lambda: self.members.missing)
            return [Hold(token, f"{who} have not come yet")]
        waiting = [token for tokens in self._coming.values() for token in tokens]
        self._coming.clear()
        return [Answer(token, Done(), "all workers have come") for token in waiting]

    def acquire(self, request: Acquire, token: Token, floor: int) -> list[Decision]:
        """A worker wants work: a lease, or only to be counted among the stepping ones."""
        repeated = self._repeated(request, request.serial, token)
        if repeated is not None:
            return [repeated]
        self.leases.finish(request.worker, request.epoch, request.done)
        if self.members.is_active(request.worker):
            return [self._grant(request)]
        self._asking[request.worker] = request
        opened = self._open(floor)
        if opened:
            return opened
        live, asking = self.members.live, self._asking.keys()
        late = some_workers(len(live) - len(asking), lambda: live - asking)
        return [Hold(token, f"epoch {request.epoch} begins when {late} come to it")]

    def idle(self, request: Idle, token: Token) -> list[Decision]:
        """A worker has no more work for now: nobody shall wait for it."""
        repeated = self._repeated(request, request.serial, token)
        if repeated is not None:
            return [repeated]
        self.leases.finish(request.worker, request.epoch, request.done)
        self.members.deactivate(request.worker)
        reply = Granted(self.members.view, exhausted=True)
        return [self._answer(request.worker, reply, "it is waited for no longer")]

    def leave(self, request: Leave, token: Token, floor: int) -> list[Decision]:
        """A worker is done: it is answered when all are."""
        repeated = self._repeated(request, request.serial, token)
        if repeated is not None:
            return [repeated]
        worker = request.worker
        self.leases.finish(worker, request.epoch, request.done)
        self.leases.give_back(worker, request.steps_done)
        self.stats[worker] = request.stats
        self.members.leave(worker)
        self._asking.pop(worker, None)
        decisions: list[Decision] = [*self._open(floor)]
        if not self.members.finished:
            who = some_workers(len(self.members.live), lambda: self.members.live)
            return [*decisions, Hold(token, f"{who} still train")]
        gone = [w for w, word in self._words.items() if word.reply is None]
        return [*decisions, *(self._answer(w, Done(), "all workers have left") for w in gone)]

    def _repeated(self, request: Request, serial: int, token: Token) -> Decision | None:
        word = self._words.get(request.worker)
        if word is None or serial > word.serial:
            self._words[request.worker] = _Word(serial, token)
            return None
        if serial < word.serial:
            return Answer(token, Done(), "an old word, answered before")
        if word.reply is None:
            return Same(token, word.token, "said before, and still open")
        return Answer(token, word.reply, "said before, and answered so")

    def _open(self, floor: int) -> list[Decision]:
        """Let the asking workers step: in rounds together, otherwise each by itself."""
        together = self.mode.aggregation is Aggregation.ROUND
        if not self._asking or (together and self._asking.keys() != self.members.live):
            return []
        asking, self._asking = self._asking, {}
        latest = max(request.clock for request in asking.values())
        self.members.activate(
            {
                worker: max(floor, latest if together else request.clock)
                for worker, request in asking.items()
            }
        )
        return [self._grant(request) for _, request in sorted(asking.items())]

    def _grant(self, request: Acquire) -> Decision:
        view = self.members.view
        if request.samples is None:
            return self._answer(request.worker, Granted(view), "it steps with its own data")
        try:
            lease = self.leases.acquire(
                request.worker,
                request.epoch,
                request.samples,
                request.batch_size,
                len(self.members.live),
            )
        except UsageError as error:
            return self._answer(request.worker, Failure(encode(error)), str(error))
        reason = "no samples are left" if lease is None else f"samples {lease.start}-{lease.stop}"
        reply = Granted(view, lease, exhausted=lease is None)
        return self._answer(request.worker, reply, reason)

    def _answer(self, worker: int, reply: Reply, reason: str) -> Decision:
        word = self._words[worker]
        word.reply = reply
        return Answer(word.token, reply, reason)
