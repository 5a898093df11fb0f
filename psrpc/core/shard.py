"""What one shard does with a push or a pull: apply, answer, hold, or drop as a duplicate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psrpc.core.consistency import Ready, Start
from psrpc.core.decisions import (
    Answer,
    Apply,
    Decision,
    Hold,
    Image,
    Made,
    Same,
    Token,
    some_workers,
)
from psrpc.core.ledger import Ledger
from psrpc.core.quick import QuickShard
from psrpc.core.rounds import Entry
from psrpc.counts import ShardStats
from psrpc.messages import Failure, Lease, LeaseId, Pull, Push, Stepped, UpdateKey, View
from psrpc.modes import Mode
from psrpc.orders import Cut, Watch


class ShardCore(QuickShard):
    """Decides for one shard; the same state and the same events give the same decisions.

    `follows` is whether it is another than shard 0, which decides for all what a round is made
    of where a mode has backup workers. Without `explains`, what a held push waits for is not put
    into words, which takes longer than the decision.
    """

    def __init__(self, mode: Mode, *, follows: bool = False, explains: bool = True) -> None:
        super().__init__(mode, follows)
        self._explains = explains
        self.dropped: list[tuple[int, UpdateKey]] = []  # that came too late, and are to be redone
        self.eventful = False  # a round was closed or an update dropped, and nobody was told
        self._heard: dict[int, int] = {}  # of each worker the clock of its latest push
        self._late: dict[Token, int] = {}  # pushes that came too late, with their clocks
        self._open: dict[tuple[int, int], Token] = {}

    def adopt(self, view: View | None) -> list[Decision]:
        """Take a newer view: those it leaves out are waited for no longer."""
        if view is None or not self.gate.adopt(view):
            return []
        self._told.view = view
        self.books.counting.keep(self.gate.active)
        dropped = self._drop_absent()
        return [*dropped, *self._close_rounds(), *self._release(), *self._try_cut()]

    def push(self, push: Push, token: Token) -> list[Decision]:
        """A worker's gradients have come."""
        decisions = self._hear(push)
        is_open = (push.worker, push.clock) in self._open
        if push.worker not in self.gate.active or is_open:
            return [*decisions, self._repeat(push, token)]
        if self._seen(push):
            return [*decisions, *self._again(push, token)]
        if self._cutting.holds(push):
            self._open[push.worker, push.clock] = token
            self._cutting.park(push, token)
            why = f"checkpoint {self._cutting.number} comes before it"
            return [*decisions, Hold(token, why)]
        decisions += [*self._accept(push, token), *self._try_cut()]
        if (push.worker, push.clock) in self._open:
            decisions.append(Hold(token, self._why_held(push) if self._explains else ""))
        return decisions

    def wants(self, push: Push) -> bool:
        """Whether a push is new here, so that its gradients are needed."""
        step = (push.worker, push.clock)
        return push.worker in self.gate.active and step not in self._open and not self._seen(push)

    def gather(self, pushes: Sequence[Push]) -> list[tuple[Push, bool]] | None:
        """See `Rounds.gather`; of the pushes that are wanted now."""
        new = [push for push in pushes if self.wants(push) and not self._cutting.holds(push)]
        return self._rounds.gather(new, self.ledger) if self._cutting.lets_close() else None

    def halt(self, number: int) -> tuple[tuple[int, int], ...]:
        """Take no new step until `cut`; returns the clocks of the workers that are stepping."""
        return self._cutting.halt(number)

    def cut(self, cut: Cut) -> list[Decision]:
        """Make an image when all steps before the cut are made; later ones wait for it.

        For a new layout the shard then stands still, until that is in force (`settle`) or given up.
        """
        self._cutting.hear()
        if cut.given_up:
            return self._go_on() if self._cutting.number == cut.number else []
        decisions = self.adopt(cut.view)
        for push, token in self._cutting.begin(cut):
            decisions += self._accept(push, token)
        return [*decisions, *self._close_rounds(), *self._release(), *self._try_cut()]

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps of these decisions, as a value for JSON."""
        return {
            "ledger": self.ledger.to_json(),
            "floor": self.gate.floor,
            "version": self.version,
            **self.books.counting.record(),
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Go on, before the first request, from what `record` gave; its workers are all gone."""
        self.ledger = self.books.ledger = Ledger.from_json(record["ledger"]).only_of(())
        self.gate.raise_to(int(record["floor"]))
        self.version = int(record["version"])
        self.books.counting.restore(record)

    def heard_of_layout(self, words: int | None = None) -> None:
        """The coordinator has said a word about layouts; or, to a new shard, so many before."""
        self._cutting.hear(words)

    @property
    def latest_cut(self) -> int | None:
        """The number of the latest checkpoint that it has halted for, made or not."""
        return self._cutting.latest

    @property
    def moving(self) -> int:
        """See `Cutting`."""
        return self._cutting.moving

    def watches(self, server: int, rounds: int) -> Watch:
        """What this shard, of `server`, asks the coordinator: what does it not know yet?"""
        return Watch(server, self.gate.epoch, self._cutting.heard, rounds, *self._cutting.census)

    def _try_cut(self) -> list[Decision]:
        cut = self._cutting.due()
        if cut is None:
            return []
        # The record first: what was parked is applied after the image.
        image = Image(cut, self.record(), "all steps before it are made")
        if cut.layout:
            self._cutting.frozen = True
            return [image]
        return [image, *self._go_on()]

    def settle(self, *, fresh: bool = False) -> None:
        """Go on as a shard of a new layout, from the cut at which it stands; or its like stood, of
        which a `fresh` one is a copy. Whoever waits for an answer here will ask again.
        """
        self._cutting.end()
        self.gate.dismiss()
        self._open.clear()
        self._late.clear()
        self._rounds.clear()
        # What no round has taken comes again, and is as new.
        for worker, clock in self._heard.items():
            self._heard[worker] = min(clock, self.gate.clock(worker) - 1)
        if fresh:
            self._rounds.follow()
            self.books.counting.duplicates = 0
            self.dropped, self.eventful = [], False

    def _go_on(self) -> list[Decision]:
        decisions: list[Decision] = []
        for push, token in self._cutting.end():
            decisions += self._accept(push, token)
        return [*decisions, *self._close_rounds(), *self._release()]

    def pull(self, pull: Pull, token: Token) -> list[Decision]:
        """A worker wants weights to start a step from."""
        decisions = self._hear(pull)
        if pull.worker not in self.gate.active:
            return [*decisions, self._refuse(pull.worker, token)]
        start = Start(pull.worker, pull.clock, ahead=pull.ahead)
        self.gate.ask(token, start)
        return [*decisions, *(self._release() or [Hold(token, self._obstacle(start))])]

    def _hear(self, request: Push | Pull) -> list[Decision]:
        """Take in the view that a worker brings, and note that it knows it."""
        self._told.heard(request)
        return self.adopt(request.view)

    def stats(self) -> ShardStats:
        """The counters since the start."""
        return self.books.counting.stats(self.version, self.ledger.coverage())

    def steps_done(self, lease: Lease, worker: int, *, settled: bool) -> int:
        """How many of a lease's updates are on all shards; see `Fronts`."""
        return self.books.fronts.steps_done(lease, worker, settled=settled)

    def forget(self, worker: int, leases: Sequence[LeaseId]) -> None:
        """Nobody will ask about these leases of `worker` again."""
        self.books.fronts.forget(worker, leases)

    @property
    def closed(self) -> Mapping[int, tuple[int, ...]]:
        """The latest rounds, by clock, with the workers whose pushes they are made of."""
        return self._rounds.closed

    def tell(self, clock: int, workers: Sequence[int]) -> list[Decision]:
        """Shard 0 says what the round of `clock` is made of."""
        self._rounds.tell(clock, workers)
        return [*self._close_rounds(), *self._release(), *self._try_cut()]

    def _drop_absent(self) -> list[Decision]:
        """Forget what the workers wanted that the view leaves out.

        Their gradients that no round has taken yet are made again by others.
        """
        absent = [step for step in self._open if step[0] not in self.gate.active]
        decisions: list[Decision] = []
        for worker, clock in absent:
            self._rounds.drop(worker, clock)
            token = self._open.pop((worker, clock))
            self.gate.withdraw(token)
            decisions.append(self._refuse(worker, token))
            self._late.pop(token, None)
        decisions += [self._refuse(worker, token) for token, worker in self.gate.expel()]
        self._cutting.keep(self.gate.active)
        return decisions

    # A push that is new, and one that is not.

    def _seen(self, push: Push) -> bool:
        if self._rounds.has(push.worker, push.clock):
            return True
        return self.gate.finished(push.worker, push.clock) and not self._is_late(push)

    def _is_late(self, push: Push) -> bool:
        """Whether the round of a push that comes for the first time was closed without it."""
        if not self._rounds.backups or push.clock <= self._heard.get(push.worker, -1):
            return False
        return self.gate.finished(push.worker, push.clock)

    def _accept(self, push: Push, token: Token) -> list[Decision]:
        self.books.fronts.note(push, self.ledger.closed)
        late = self._is_late(push)
        self._heard[push.worker] = push.clock
        self._open[push.worker, push.clock] = token
        decisions = self._drop_late(push, token) if late else self._take_in(push, token)
        return [*decisions, *self._release()]

    def _take_in(self, push: Push, token: Token) -> list[Decision]:
        carries = push.key not in self.ledger and not self._rounds.waits(push.key)
        self.books.counting.duplicates += not carries
        entry = Entry(token, push, carries)
        if self._alone:
            applied = self._apply([entry], "it is applied as it comes")
            return applied or [Made(push.clock, (push.worker,), "there is nothing to apply")]
        return self._close_rounds() if self._rounds.join(entry) else []

    def _drop_late(self, push: Push, token: Token) -> list[Decision]:
        """Its round went on without it: its worker goes on where the others are."""
        self.books.counting.dropped_late += 1
        if not self._rounds.follows:
            self.dropped += [(push.worker, key) for key in (push.key, *push.also)]
            self.eventful = True
        self._late[token] = push.clock
        clock = self.gate.clock(push.worker)
        self.gate.ask(token, Start(push.worker, clock, push.pull, push.ahead))
        return []

    def _why_held(self, push: Push) -> str:
        rounds = self._rounds
        if rounds.has(push.worker, push.clock):
            count = rounds.still_to_come()
            return f"round {push.clock} waits for {some_workers(count, rounds.missing)}"
        return self._obstacle(Start.after(push))

    def _obstacle(self, start: Start) -> str:
        return self.gate.obstacle(start) or "the shard stands still for a new layout"

    def _repeat(self, push: Push, token: Token) -> Decision:
        first = self._open.get((push.worker, push.clock))
        if first is not None:
            self.books.counting.duplicates += 1
            return Same(token, first, f"worker {push.worker} sent step {push.clock} again")
        if not self._seen(push):
            return self._refuse(push.worker, token)
        self.books.counting.duplicates += 1
        clock, answer = self.books.answers.get(push.worker, (-1, None))
        if answer is None or clock != push.clock:
            answer = Stepped(self.version, duplicate=True)
        return Answer(token, answer, f"step {push.clock} of worker {push.worker} is done")

    def _again(self, push: Push, token: Token) -> list[Decision]:
        """A push that is dealt with has come again."""
        known = self.books.answers.get(push.worker, (-1, None))[0] >= push.clock
        if known or self.gate.clock(push.worker) != push.clock + 1:
            return [self._repeat(push, token)]
        # Its worker was not answered before it had to ask servers of a new layout.
        self._open[push.worker, push.clock] = token
        self.gate.ask(token, Start.after(push))
        return self._release() or [Hold(token, self._why_held(push))]

    def _refuse(self, worker: int, token: Token) -> Decision:
        why = f"worker {worker} is not among the stepping workers of view {self.gate.epoch}"
        return Answer(token, Failure(("FencedError", why)), why)

    def _close_rounds(self) -> list[Decision]:
        decisions: list[Decision] = []
        while self._cutting.lets_close() and (round_ := self._rounds.take()) is not None:
            now = round_.clock
            decisions += self._apply(round_.entries, f"round {now} is complete")
            for worker in (*round_.absent, *(entry.push.worker for entry in round_.late)):
                self.gate.finish(worker, now)
            for entry in round_.late:
                self._drop_late(entry.push, entry.token)
            self.eventful |= self._rounds.decides
            workers = tuple(entry.push.worker for entry in round_.entries)
            decisions.append(Made(now, workers, "all go on from here"))
        return decisions

    def _apply(self, entries: list[Entry], reason: str) -> list[Decision]:
        carrying = [entry for entry in entries if entry.carries]
        stale = {entry.token: self._enter(entry.push) for entry in carrying}
        self.books.counting.applied(len(carrying))
        for entry in entries:
            self._finish(entry)
        tokens = tuple(entry.token for entry in carrying if not entry.push.void)
        if not tokens:
            return []
        self.version += 1
        return [Apply(tokens, reason, tuple(stale[token] for token in tokens))]

    def _enter(self, push: Push) -> int:
        """Note that an update is applied; returns its staleness in clocks."""
        for key in (push.key, *push.also):
            self.ledger.record(key)
        return self.books.counting.count(push)

    def _finish(self, entry: Entry) -> None:
        push = entry.push
        self.gate.finish(push.worker, push.clock)
        self.gate.ask(entry.token, Start.after(push))

    # Starts.

    def _release(self) -> list[Decision]:
        if self._cutting.frozen:
            return []
        return [self._grant(ready) for ready in self.gate.release()]

    def _grant(self, ready: Ready) -> Decision:
        start, token = ready.start, ready.token
        worker, lead = start.worker, ready.lead
        clock = start.clock
        if self._rounds.backups and clock < self.gate.clock(worker) == self.gate.floor:
            clock, lead = self.gate.floor, 0  # others have gone on without it
        self.books.counting.begins(worker, clock, lead, ahead=start.ahead, reads=start.reads)
        late = self._late.pop(token, None)
        moved = clock if late is not None or clock > start.clock else None
        step = start.clock - 1 if late is None else late
        # A new view, for all shards to know of a new worker before its first round.
        news = None if self._alone else self._told.news_for(worker)
        reply = Stepped(self.version, lead, late=late is not None, clock=moved, view=news)
        if self._open.get((worker, step)) == token:
            del self._open[worker, step]
            self.books.answers[worker] = (step, reply)
        return Answer(token, reply, "its turn has come" if late is None else "it came too late")
