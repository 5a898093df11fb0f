"""What the coordinator does when a worker comes, asks for work, pauses, leaves or dies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from psrpc.core.decisions import Answer, Decision, Hold, Token, some_workers
from psrpc.core.leases import POISON, LeaseBook
from psrpc.core.membership import Membership
from psrpc.core.newsroom import Newsroom
from psrpc.core.parting import Parting
from psrpc.core.resharding import Resharding
from psrpc.core.shard import ShardCore
from psrpc.core.words import Word, Words, refuse
from psrpc.counts import WorkerStats
from psrpc.errors import JobFailedError, JobOverError, UsageError, encode
from psrpc.messages import (
    Acquire,
    Bye,
    Done,
    Failure,
    Granted,
    Idle,
    Lease,
    LeaseId,
    Leave,
    Left,
    Register,
    Reply,
    Request,
    StreamKind,
    Welcome,
)
from psrpc.modes import Aggregation, Mode, OnFailure, OnPoison
from psrpc.orders import Cut, Watch

_NOBODY: Token = -1


@dataclass
class CoordinatorCore:
    """Decides for the job.

    `workers` are expected; the job begins when all have come, or `least` of them. `shard` is
    always the coordinator's own: its floor is the slowest clock, and its ledger tells what is
    left of a lease. `verdict` is set when the job must end.
    """

    mode: Mode
    workers: int
    least: int | None = None
    servers: int = 1
    on_failure: OnFailure = OnFailure.CONTINUE
    on_poison: OnPoison = OnPoison.STOP
    leases: LeaseBook = field(default_factory=LeaseBook)
    stats: dict[int, WorkerStats] = field(default_factory=dict)
    verdict: JobFailedError | None = None

    def __post_init__(self) -> None:
        self.members = Membership(self.workers, self.least)
        self._comings: dict[int, Word] = {}  # by process
        self._worker_of: dict[int, int] = {}  # by process, for as long as it belongs here
        self._words = Words()
        self._asking: dict[int, Acquire] = {}
        self._fresh: set[int] = set()  # have never stepped
        self._newsroom = Newsroom(self.servers)
        self.resharding = Resharding(self._newsroom, self.leases)
        self.incarnation = 0
        self.parting = Parting(self._words)

    def go_back(self, first: int) -> None:
        """Begin anew, with whoever comes, in a job that goes back to a checkpoint.

        No number of a worker or a view is below `first`. What it lacks, workers do again.
        """
        self.members = Membership(self.workers, self.least or 1, first)
        self.leases.goes_back = True

    @property
    def over(self) -> bool:
        """Whether everybody has left, and nobody will say anything again."""
        return self.members.finished and self.parting.all_gone

    # Coming.

    def register(self, request: Register, token: Token, shard: ShardCore) -> list[Decision]:
        """A process wants to be a worker: it is answered when the job may begin."""
        process, before = request.worker, self._comings.get(request.worker)
        decisions: list[Decision] = []
        if before is not None and request.serial <= before.serial:
            return [before.again(request.serial, token)]
        if before is not None:
            decisions += self.lose(process, "it has come anew", shard)
            self.leases.lived(process)
        self._comings[process] = Word(request.serial, token)
        if self.members.finished:
            over = Failure(encode(JobOverError("all workers had left when this one came")))
            self._comings[process].reply = over
            return [*decisions, Answer(token, over, "the job is over")]
        began = self.members.started
        worker = self.members.join(request.rank)
        self._worker_of[process] = worker
        self.parting.come(worker)
        self.resharding.come(worker, request.layout)
        self._fresh.add(worker)
        if not self.members.started:
            who = some_workers(self.members.to_come, lambda: self.members.missing)
            return [*decisions, Hold(token, f"{who} have not come yet")]
        welcome = (process,) if began else tuple(self._worker_of)
        return [*decisions, *(self._welcome(each) for each in welcome)]

    def lose(self, process: int, why: str, shard: ShardCore) -> list[Decision]:
        """A process is dead, or counts as dead: nobody waits for its worker any more."""
        decisions = self.resharding.lose(process, why)
        # What it said before counts no more, even if it arrives later.
        coming = self._comings.setdefault(process, Word(0, _NOBODY, Done()))
        refusal = refuse(process, coming.token, why)
        if coming.reply is None:
            decisions.append(refusal)
        coming.reply = refusal.reply
        worker = self._worker_of.pop(process, None)
        if worker is None:
            return decisions
        self.resharding.forget(worker)
        decisions += [*self._words.lose(worker, why), *self.parting.lose(worker)]
        was_live = worker in self.members.live
        rank = self.members.rank(worker) if was_live else 0
        self._forget(worker)
        self.members.lose(worker)
        freed = self._give_back(worker, shard)
        if was_live and self.members.started:
            self._judge(process, rank, why, freed)
        return [*decisions, *self._proceed(shard), *self._part()]

    # Working.

    def acquire(self, request: Acquire, token: Token, shard: ShardCore) -> list[Decision]:
        """A worker wants work: a lease, or only to be counted among the stepping ones."""
        repeated = self._repeated(request.worker, request.serial, token)
        if repeated is not None:
            return [repeated]
        worker = request.worker
        self._finish(worker, request.done, shard)
        self._give_back(worker, shard, before=request.epoch)
        if self.members.is_active(worker):
            return [self._grant_now(request), *self._proceed(shard)]
        self._asking[worker] = request
        decisions = self._proceed(shard)
        if worker in self._asking:
            decisions.append(Hold(token, self._why_held(request)))
        return decisions

    def idle(self, request: Idle, token: Token, shard: ShardCore) -> list[Decision]:
        """A worker has no more work for now: nobody shall wait for it."""
        repeated = self._repeated(request.worker, request.serial, token)
        if repeated is not None:
            return [repeated]
        self._finish(request.worker, request.done, shard)
        self.members.deactivate(request.worker)
        reply = Granted(self.members.view, exhausted=True)
        answer = self._answer(request.worker, reply, "it is waited for no longer")
        return [answer, *self._proceed(shard)]

    def leave(self, request: Leave, token: Token, shard: ShardCore) -> list[Decision]:
        """A worker is done: it is answered when all are, or at once if it leaves early."""
        waits = self._words.open(request.worker)
        repeated = self._repeated(request.worker, request.serial, token)
        if repeated is not None:
            return [repeated]
        worker = request.worker
        decisions: list[Decision] = []
        if waits is not None:
            decisions.append(Answer(waits, Done(), "it leaves, and waits no longer"))
        self._finish(worker, request.done, shard)
        self._give_back(worker, shard, settled=request.settled)
        self.stats[worker] = request.stats
        rank = self.members.rank(worker)
        self._forget(worker)
        self.members.leave(worker, early=request.early)
        if self.members.finished and (lacking := self.leases.lacking(request.epochs)):
            self.verdict = JobFailedError(
                f"a server died when all workers had done their work, and nobody is left to do "
                f"again what its checkpoint lacks of epochs {lacking}: start the job again with "
                "--resume auto"
            )
        decisions += self._proceed(shard)
        if request.early:
            decisions.append(self._answer(worker, Left(), "it leaves early"))
        else:
            self.parting.leave(worker, rank)
        decisions += self._part()
        if self.parting.waits(worker):
            who = some_workers(len(self.members.live), lambda: self.members.live)
            decisions.append(Hold(token, f"{who} still train"))
        return decisions

    def bye(self, request: Bye, token: Token, shard: ShardCore) -> list[Decision]:
        """A worker has all that it wants: it is answered when one that reports the results has."""
        self.resharding.forget(request.worker)
        return self.parting.bye(request, token)

    # Servers.

    def watch(self, request: Watch, token: Token, shard: ShardCore) -> list[Decision]:
        """A server wants to know what is new: it is answered when something is."""
        asked = self._newsroom.watch(request, token)
        told = self.news(shard.closed)
        answered = {decision.token for decision in told if isinstance(decision, Answer)}
        return [*(d for d in asked if not (isinstance(d, Hold) and d.token in answered)), *told]

    def news(self, rounds: Mapping[int, tuple[int, ...]]) -> list[Decision]:
        """What servers do not know: the view, `rounds`, a cut; the end, when it has come."""
        if self.over:
            return [*self.resharding.give_up("it is over"), *self._newsroom.end()]
        return [*self.resharding.news(), *self._newsroom.news(self.members.view, rounds)]

    def begin_cut(self, number: int, folder: str, shard: ShardCore) -> list[Decision]:
        """A checkpoint is to be made: all shards halt, and `take_cut` tells when they have."""
        self._newsroom.begin_cut(Cut(number, folder=folder), shard.halt(number))
        return []

    def take_cut(self) -> Cut | None:
        """Where all shards are to be cut, once, as soon as that is known."""
        if (cut := self._newsroom.cut(self.members.view)) is not None:
            self.resharding.dealt(cut)
        return cut

    def reshard(self, request: Request, token: Token, shard: ShardCore) -> list[Decision]:
        """A word about servers that come and go."""
        return self.resharding.take(request, token, shard, self.members, self.parting.here)

    def give_up_cut(self, number: int) -> list[Decision]:
        """Let all servers hear that a cut is given up."""
        self._newsroom.give_up_cut(number)
        return []

    def take_back(self, shard: ShardCore) -> list[Decision]:
        """Hand out again what came too late for its round."""
        self._take_back(shard)
        return self._proceed(shard)

    def _take_back(self, shard: ShardCore) -> None:
        dropped, shard.dropped = shard.dropped, []
        for worker, key in dropped:
            if key.stream.kind is StreamKind.LEASE:
                self.leases.take_back(worker, key)

    @property
    def processes(self) -> list[int]:
        """The processes that work here, or did, and are not dead."""
        return sorted(self._worker_of)

    def worker_of(self, process: int) -> int | None:
        """The number under which a process works, if it does."""
        return self._worker_of.get(process)

    def _repeated(self, worker: int, serial: int, token: Token) -> Decision | None:
        return self._words.repeated(worker, serial, token, self.members.live)

    # What follows.

    def _judge(self, process: int, rank: int, why: str, freed: list[Lease]) -> None:
        """See whether a death ends the job."""
        if self.on_failure is OnFailure.STOP:
            self.verdict = JobFailedError(f"worker {rank} is lost: {why}")
        if not freed or self.leases.died_of(freed[0], process) < POISON:
            return
        lease = freed[0]
        if self.on_poison is OnPoison.SKIP:
            self.leases.skip(lease)
            return
        low, high = lease.batch(min(lease.first_step, lease.steps - 1))
        self.verdict = JobFailedError(
            f"the same samples have killed {POISON} workers in a row: positions {low} to "
            f"{high - 1} of epoch {lease.epoch}'s order, or later ones up to {lease.stop - 1}"
        )

    def _finish(self, worker: int, leases: tuple[LeaseId, ...], shard: ShardCore) -> None:
        self._take_back(shard)  # of a lease that is done, what came too late is not
        self.leases.finish(worker, leases)
        shard.forget(worker, leases)

    def _give_back(
        self, worker: int, shard: ShardCore, *, settled: bool = False, before: int | None = None
    ) -> list[Lease]:
        self._take_back(shard)

        def steps_done(lease: Lease) -> int:
            return shard.steps_done(lease, worker, settled=settled)

        return self.leases.give_back(worker, steps_done, before=before)

    def _forget(self, worker: int) -> None:
        self._asking.pop(worker, None)
        self._fresh.discard(worker)

    def _proceed(self, shard: ShardCore) -> list[Decision]:
        """Answer those who ask for work and can have it now."""
        everybody = self._everybody_asks()
        decisions: list[Decision] = []
        starts: list[tuple[Acquire, Lease | None]] = []
        for worker, request in sorted(self._asking.items()):
            if self._is_over(request):
                decisions.append(self._grant(request, None))
            elif not self._may_begin(request, everybody):
                continue
            else:
                try:
                    lease = self._lease(request)
                except UsageError as error:
                    decisions.append(self._reject(worker, error))
                else:
                    if request.samples is not None and lease is None:
                        continue
                    starts.append((request, lease))
            del self._asking[worker]
        if starts:
            self._activate([request for request, _ in starts], shard.gate.floor)
        return [*decisions, *(self._grant(request, lease) for request, lease in starts)]

    def _everybody_asks(self) -> bool:
        """Whether all live workers ask for work that is not over, and can begin together."""
        over = {w for w, r in self._asking.items() if self._is_over(r)}
        return self._asking.keys() - over == self.members.live

    def _is_over(self, request: Acquire) -> bool:
        return request.samples is not None and self.leases.closed(request.epoch)

    def _may_begin(self, request: Acquire, everybody: bool) -> bool:
        if self.mode.aggregation is Aggregation.PUSH or everybody:
            return True
        if request.samples is None:
            return bool(self.members.view.active) and request.worker in self._fresh
        return self.leases.begun(request.epoch)

    def _activate(self, requests: list[Acquire], floor: int) -> None:
        starts = {request.worker: max(floor, request.clock) for request in requests}
        if self.mode.aggregation is Aggregation.ROUND:
            # A round that is under way is not theirs; those who begin together have one clock.
            latest = max(starts.values())
            stepping = bool(self.members.view.active)
            starts = dict.fromkeys(starts, max(floor + 1, latest) if stepping else latest)
        self._fresh -= starts.keys()
        self.members.activate(starts)

    def _lease(self, request: Acquire) -> Lease | None:
        if request.samples is None:
            return None
        live = len(self.members.live)
        return self.leases.acquire(
            request.worker, request.epoch, request.samples, request.batch_size, live
        )

    def _why_held(self, request: Acquire) -> str:
        if self._may_begin(request, everybody=False):
            return f"the last samples of epoch {request.epoch} are with others"
        live, asking = self.members.live, self._asking.keys()
        late = some_workers(len(live) - len(asking), lambda: live - asking)
        return f"epoch {request.epoch} begins when {late} come to it"

    def _part(self) -> list[Decision]:
        """Let those go who wait for the end, if it has come."""
        return self.parting.part() if self.members.finished else []

    def _welcome(self, process: int) -> Decision:
        worker, coming = self._worker_of[process], self._comings[process]
        coming.reply = Welcome(worker, self.members.rank(worker), self.incarnation)
        return Answer(coming.token, coming.reply, "the job has begun")

    def _grant(self, request: Acquire, lease: Lease | None) -> Decision:
        worker, view = request.worker, self.members.view
        since = self.members.since(worker)
        if request.samples is None:
            return self._answer(worker, Granted(view, since=since), "it steps with its own data")
        what = "no samples are left" if lease is None else f"samples {lease.start}-{lease.stop}"
        return self._answer(worker, Granted(view, lease, lease is None, since), what)

    def _grant_now(self, request: Acquire) -> Decision:
        try:
            return self._grant(request, self._lease(request))
        except UsageError as error:
            return self._reject(request.worker, error)

    def _reject(self, worker: int, error: UsageError) -> Decision:
        return self._answer(worker, Failure(encode(error)), str(error))

    def _answer(self, worker: int, reply: Reply, reason: str) -> Decision:
        return self._words.answer(worker, reply, reason)
