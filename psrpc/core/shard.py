"""What one shard does with a push or a pull: apply, answer, hold, or drop as a duplicate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from psrpc.core.consistency import Gate, Ready, Start
from psrpc.core.decisions import Answer, Apply, Decision, Hold, Image, Same, Token, some_workers
from psrpc.core.ledger import Ledger
from psrpc.counts import ShardStats
from psrpc.messages import Failure, Lease, LeaseId, Pull, Push, Stepped, StreamKind, UpdateKey, View
from psrpc.modes import Aggregation, Mode
from psrpc.orders import Cut

_MANY_FRONTS = 1024


class _Entry(NamedTuple):
    """A push that waits for its round; `carries` is False where its key is applied already."""

    token: Token
    push: Push
    carries: bool


@dataclass
class _Begun:
    """The state of things when a worker was allowed to start the step at `clock`.

    `own` of the updates since then are the worker's.
    """

    clock: int
    lead: int
    updates: int
    own: int = 0


class ShardCore:
    """Decides for one shard; the same state and the same events give the same decisions."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.gate = Gate(mode.bound)
        self.version = 0
        self._ledger = Ledger()
        self._rounds: dict[int, dict[int, _Entry]] = {}  # by clock, then by worker
        self._keys_held: set[UpdateKey] = set()
        self._open: dict[tuple[int, int], Token] = {}
        self._begun: dict[int, list[_Begun]] = {}  # the latest last
        self._answers: dict[int, tuple[int, Stepped]] = {}
        self._latest: dict[int, tuple[UpdateKey, ...]] = {}
        self._cut: Cut | None = None
        self._parked: list[tuple[Push, Token]] = []
        self._fronts: dict[LeaseId, tuple[int, int]] = {}  # who pushed last of it, how far
        self._updates = 0
        self._samples = 0
        self._duplicates = 0
        self._voids = 0
        self._max_gap = 0
        self._staleness: Counter[int] = Counter()
        self._update_lag: Counter[int] = Counter()

    def adopt(self, view: View | None) -> list[Decision]:
        """Take a newer view: those it leaves out are waited for no longer."""
        if view is None or not self.gate.adopt(view):
            return []
        for worker in self._begun.keys() - self.gate.active:
            # If it comes back it starts from the weights of that moment.
            del self._begun[worker]
        return [
            *self._drop_absent(),
            *self._close_rounds(),
            *self._release(),
            *self._try_cut(),
        ]

    def push(self, push: Push, token: Token) -> list[Decision]:
        """A worker's gradients have come."""
        decisions = self.adopt(push.view)
        is_open = (push.worker, push.clock) in self._open
        if push.worker not in self.gate.active or is_open or self._seen(push):
            return [*decisions, self._repeat(push, token)]
        if self._cut is not None and push.clock >= dict(self._cut.clocks).get(push.worker, 0):
            self._open[push.worker, push.clock] = token
            self._parked.append((push, token))
            return [*decisions, Hold(token, f"checkpoint {self._cut.number} comes before it")]
        return [*decisions, *self._accept(push, token), *self._try_cut()]

    def cut(self, cut: Cut) -> list[Decision]:
        """Make an image when all steps before the cut are made; later ones wait for it."""
        if self._cut is not None and self._cut.number == cut.number and not cut.folder:
            self._cut = None
            return self._unpark()
        if cut.folder:
            self._cut = cut
        return self._try_cut()

    def cut_here(self, number: int, folder: str) -> Cut:
        """A cut that every shard can make: a worker pushes again when all have answered."""
        clocks = ((w, self.gate.clock(w) + 1) for w in sorted(self.gate.active))
        return Cut(number, tuple(clocks), folder)

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps of these decisions, as a value for JSON."""
        return {
            "ledger": self._ledger.to_json(),
            "floor": self.gate.floor,
            "version": self.version,
            "updates": self._updates,
            "samples": self._samples,
            "duplicates": self._duplicates,
            "voids": self._voids,
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Go on, before the first request, from what `record` gave."""
        self._ledger = Ledger.from_json(record["ledger"])
        self.gate.raise_to(int(record["floor"]))
        self.version = int(record["version"])
        self._updates, self._samples = int(record["updates"]), int(record["samples"])
        self._duplicates, self._voids = int(record["duplicates"]), int(record["voids"])

    @property
    def ledger(self) -> Ledger:
        """The applied updates; not to be changed."""
        return self._ledger

    def _try_cut(self) -> list[Decision]:
        cut = self._cut
        if cut is None or any(
            self.gate.clock(worker) < clock
            for worker, clock in cut.clocks
            if worker in self.gate.active
        ):
            return []
        self._cut = None
        # The record first: what was parked is applied after the image.
        image = Image(cut, self.record(), "all steps before it are made")
        return [image, *self._unpark()]

    def _unpark(self) -> list[Decision]:
        parked, self._parked = self._parked, []
        decisions: list[Decision] = []
        for push, token in parked:
            decisions += self._accept(push, token)
        return decisions

    def pull(self, pull: Pull, token: Token) -> list[Decision]:
        """A worker wants weights to start a step from."""
        decisions = self.adopt(pull.view)
        if pull.worker not in self.gate.active:
            return [*decisions, self._refuse(pull.worker, token)]
        start = Start(pull.worker, pull.clock, ahead=pull.ahead)
        self.gate.ask(token, start)
        obstacle = self.gate.obstacle(start)
        return [*decisions, *([Hold(token, obstacle)] if obstacle else self._release())]

    def stats(self) -> ShardStats:
        """The counters since the start."""
        return ShardStats(
            updates_applied=self._updates,
            duplicates_dropped=self._duplicates,
            optimizer_steps=self.version,
            samples=self._samples,
            void_updates=self._voids,
            max_clock_gap=self._max_gap,
            staleness=tuple(sorted(self._staleness.items())),
            update_lag=tuple(sorted(self._update_lag.items())),
            coverage=self._ledger.coverage(),
        )

    @property
    def ledger_size(self) -> int:
        """How many ranges it takes to know which updates are in the weights."""
        return self._ledger.size

    def applied(self, key: UpdateKey) -> bool:
        """Whether this update is in the weights."""
        return key in self._ledger

    def steps_done(self, lease: Lease, worker: int, *, settled: bool) -> int:
        """How many of a lease's updates are in the weights of all shards, as far as this one knows.

        They are those before the lease was given to `worker`, and those that it has pushed
        since: a worker pushes again when all shards have answered. Only its latest push may be
        missing on some, unless it is `settled`.
        """
        pusher, steps = self._fronts.get(lease.id, (worker, lease.first_step))
        if pusher != worker:
            return lease.first_step
        stream = lease.key(0).stream
        latest = [k.sequence for k in self._latest.get(worker, ()) if k.stream == stream]
        return steps if settled else min(steps, *latest, lease.steps)

    def forget(self, leases: Sequence[LeaseId]) -> None:
        """Nobody will ask about these leases again."""
        for lease in leases:
            self._fronts.pop(lease, None)

    def _drop_absent(self) -> list[Decision]:
        """Forget what the workers wanted that the view leaves out.

        Their gradients that no round has taken yet are made again by others.
        """
        absent = [step for step in self._open if step[0] not in self.gate.active]
        decisions: list[Decision] = []
        for worker, clock in absent:
            entry = self._rounds.get(clock, {}).pop(worker, None)
            if entry is not None and entry.carries:
                self._keys_held.discard(entry.push.key)
            token = self._open.pop((worker, clock))
            self.gate.withdraw(token)
            decisions.append(self._refuse(worker, token))
        self._parked = [(p, t) for p, t in self._parked if p.worker in self.gate.active]
        self._rounds = {clock: entries for clock, entries in self._rounds.items() if entries}
        return decisions

    # A push that is new, and one that is not.

    def _seen(self, push: Push) -> bool:
        waits = push.worker in self._rounds.get(push.clock, ())
        return waits or self.gate.finished(push.worker, push.clock)

    def _accept(self, push: Push, token: Token) -> list[Decision]:
        self._note_front(push)
        carries = push.key not in self._ledger and push.key not in self._keys_held
        self._duplicates += not carries
        self._open[push.worker, push.clock] = token
        entry = _Entry(token, push, carries)
        if self.mode.aggregation is Aggregation.PUSH:
            decisions = self._apply([entry], "it is applied as it comes")
        else:
            decisions = self._join_round(entry)
        decisions += self._release()
        if (push.worker, push.clock) in self._open:
            decisions.append(Hold(token, self._why_held(push)))
        return decisions

    def _note_front(self, push: Push) -> None:
        self._latest[push.worker] = keys = (push.key, *push.also)
        for key in keys:
            if key.stream.kind is StreamKind.LEASE:
                lease = (key.stream.major, key.stream.minor)
                pusher, steps = self._fronts.get(lease, (push.worker, 0))
                steps = max(steps if pusher == push.worker else 0, key.sequence + 1)
                self._fronts[lease] = (push.worker, steps)
        if len(self._fronts) > _MANY_FRONTS:
            # Only the coordinator's shard is told what nobody will ask for again.
            self._fronts = {
                lease: front
                for lease, front in self._fronts.items()
                if not self._ledger.closed(*lease)
            }

    def _why_held(self, push: Push) -> str:
        if push.worker in self._rounds.get(push.clock, ()):
            count = self.gate.slowest - len(self._rounds.get(self.gate.floor, ()))
            return f"round {push.clock} waits for {some_workers(count, self._missing)}"
        return self.gate.obstacle(_next(push))

    def _repeat(self, push: Push, token: Token) -> Decision:
        first = self._open.get((push.worker, push.clock))
        if first is not None:
            self._duplicates += 1
            return Same(token, first, f"worker {push.worker} sent step {push.clock} again")
        if not self._seen(push):
            return self._refuse(push.worker, token)
        self._duplicates += 1
        clock, answer = self._answers.get(push.worker, (-1, None))
        if answer is None or clock != push.clock:
            answer = Stepped(self.version, duplicate=True)
        return Answer(token, answer, f"step {push.clock} of worker {push.worker} is done")

    def _refuse(self, worker: int, token: Token) -> Decision:
        why = f"worker {worker} is not among the stepping workers of view {self.gate.epoch}"
        return Answer(token, Failure(("FencedError", why)), why)

    # Rounds: the pushes of one clock, complete when every stepping worker's has come.

    def _join_round(self, entry: _Entry) -> list[Decision]:
        push = entry.push
        self._rounds.setdefault(push.clock, {})[push.worker] = entry
        self._keys_held.add(push.key)
        if len(self._rounds.get(self.gate.floor, ())) < self.gate.slowest:
            return []
        return self._close_rounds()

    def _missing(self) -> list[int]:
        """The workers whose push for the current round has not come."""
        now = self.gate.floor
        come = self._rounds.get(now, {})
        slowest = (w for w in self.gate.active if self.gate.clock(w) == now)
        return sorted(worker for worker in slowest if worker not in come)

    def _close_rounds(self) -> list[Decision]:
        decisions: list[Decision] = []
        while self._rounds and not self._missing():
            now = min(self._rounds)
            entries = [entry for _, entry in sorted(self._rounds.pop(now).items())]
            self._keys_held.difference_update(entry.push.key for entry in entries)
            decisions += self._apply(entries, f"round {now} is complete")
        return decisions

    def _apply(self, entries: list[_Entry], reason: str) -> list[Decision]:
        carrying = [entry for entry in entries if entry.carries]
        stale = {entry.token: self._count(entry.push) for entry in carrying}
        self._updates += len(carrying)
        for entry in entries:
            self._finish(entry)
        tokens = tuple(entry.token for entry in carrying if not entry.push.void)
        if not tokens:
            return []
        self.version += 1
        return [Apply(tokens, reason, tuple(stale[token] for token in tokens))]

    def _count(self, push: Push) -> int:
        """Enter an update that is applied now; returns its staleness in clocks."""
        for key in (push.key, *push.also):
            self._ledger.record(key)
        self._samples += push.samples
        self._voids += push.void
        begun = self._began_with(push)
        if begun is None:
            return 0
        staleness = begun.lead + push.clock - begun.clock
        self._staleness[staleness] += 1
        self._update_lag[self._updates - begun.updates - begun.own] += 1
        for each in self._begun[push.worker]:
            each.own += 1
        return staleness

    def _began_with(self, push: Push) -> _Begun | None:
        """The state of things when the weights were read that this push was made from."""
        begun = self._begun.get(push.worker, [])
        while len(begun) > 1 and (push.read is None or begun[1].clock <= push.read):
            del begun[0]
        return begun[0] if begun else None

    def _finish(self, entry: _Entry) -> None:
        push = entry.push
        self.gate.finish(push.worker, push.clock)
        self.gate.ask(entry.token, _next(push))

    # Starts.

    def _release(self) -> list[Decision]:
        return [self._grant(ready) for ready in self.gate.release()]

    def _grant(self, ready: Ready) -> Decision:
        start, step = ready.start, (ready.start.worker, ready.start.clock - 1)
        begun = self._begun.setdefault(start.worker, [])
        if start.reads and (not begun or begun[-1].clock < start.clock):
            begun.append(_Begun(start.clock, ready.lead, self._updates))
        self._max_gap = max(self._max_gap, ready.lead + start.ahead)
        reply = Stepped(self.version, ready.lead)
        if self._open.get(step) == ready.token:
            del self._open[step]
            self._answers[start.worker] = (step[1], reply)
        return Answer(ready.token, reply, "its turn has come")


def _next(push: Push) -> Start:
    """The start of the step after this push."""
    return Start(push.worker, push.clock + 1, push.pull, push.ahead)
