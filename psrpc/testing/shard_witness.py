"""Watches one simulated shard: its own clocks, its own list of what is applied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from psrpc.core.decisions import Answer, Apply, Decision, Hold, Image, Made, Same, Token
from psrpc.core.shard import ShardCore
from psrpc.messages import Adopt, Failure, Pull, Push, Reply, Request, Stepped, UpdateKey, View
from psrpc.modes import Aggregation
from psrpc.moves import ABOUT_SERVERS
from psrpc.orders import Watch
from psrpc.testing.calls import CheckError
from psrpc.testing.schedule import Schedule

_Step = tuple[int, int]  # worker, clock


class ShardWitness:
    """The checks of one shard."""

    def __init__(self, index: int, schedule: Schedule) -> None:
        self.index = index
        self.schedule = schedule
        self.applied: set[UpdateKey] = set()
        self.rounds: dict[int, frozenset[int]] = {}  # the workers of each clock's
        self.images: dict[int, Image] = {}
        self.halted = False
        self.holds = 0
        self._in_rounds = schedule.mode.aggregation is Aggregation.ROUND
        self._bound = schedule.mode.bound
        self._backups = schedule.mode.backups
        self._applying: list[Push] = []  # of the round that is about to be closed
        self._late: set[_Step] = set()
        self.late: Counter[int] = Counter()  # the pushes of each worker that came too late
        self._view = View()
        self._active: dict[int, int] = {}
        self._clocks: dict[int, int] = {}
        self._open: dict[Token, Request] = {}
        self._first: dict[_Step, Token] = {}
        self._pushes: dict[Token, Push] = {}
        self._replies: dict[_Step, Reply] = {}
        self._latest: dict[int, int] = {}
        self._same: dict[Token, list[Token]] = {}
        self._keys_held: set[UpdateKey] = set()
        # Starts with weights: (clock, lead, others' updates), the latest last.
        self._begun: dict[int, list[tuple[int, int, int]]] = {}
        self._updates = 0
        self._own: Counter[int] = Counter()
        self._samples = 0
        self._steps = 0
        self._duplicates = 0
        self._during_halt: set[_Step] = set()  # pushes that came during a halt
        self._not_looked_at: set[_Step] = set()  # those of them that are repeated updates
        self._unsure = 0  # of these, late or dropped with their worker: counted, or never looked at
        self._max_lead = 0
        self._staleness: Counter[int] = Counter()
        self._lag: Counter[int] = Counter()
        self._told_later: set[_Step] = set()  # made in an earlier layout, and not answered there
        self._counts_duplicates = True

    def received(self, token: Token, request: Request) -> None:
        """A request has come."""
        self._open[token] = request
        view: View | None = getattr(request, "view", None)
        if view is not None and view.epoch > self._view.epoch:
            self._adopt(view)
        if isinstance(request, Push):
            self._pushes[token] = request
            step = (request.worker, request.clock)
            if step in self._first:
                self._duplicates += 1
                self._unsure += step in self._during_halt and request.worker not in self._active
            elif step in self._told_later and request.worker in self._active:
                self._first[step] = token
                self._told_later.discard(step)
            elif request.worker in self._active:
                self._first[step] = token
                if self.halted:
                    self._during_halt.add(step)
                if self._backups and request.clock < self._clocks[request.worker]:
                    self._late.add(step)
                else:
                    self._note_key(step, request)

    def decided(self, token: Token, decisions: list[Decision], core: ShardCore) -> None:
        """The shard has decided about what it received last."""
        self._check_decided_once(token, decisions)
        for decision in decisions:
            self._check(decision)
        if core.gate.floor != self._floor():
            raise self._error(f"the floor is {core.gate.floor}, not {self._floor()}")

    def convened(self, token: Token | None, decisions: list[Decision]) -> None:
        """The coordinator beside this shard has decided about workers' and servers' words."""
        if token is not None:
            self._check_decided_once(token, decisions)
        for decision in decisions:
            if isinstance(decision, Answer):
                if self._open.pop(decision.token, None) is None:
                    raise self._error(f"token {decision.token} is answered twice")
                for again in self._same.pop(decision.token, ()):
                    del self._open[again]
            elif isinstance(decision, Same):
                self._check_same(decision)

    def adopted(self, view: View, decisions: list[Decision], core: ShardCore) -> None:
        """A view has come from the coordinator."""
        if view.epoch > self._view.epoch:
            self._adopt(view)
        for decision in decisions:
            self._check(decision)
        if core.gate.floor != self._floor():
            raise self._error(f"the floor is {core.gate.floor}, not {self._floor()}")

    def _check(self, decision: Decision) -> None:
        match decision:
            case Apply():
                self._check_apply(decision)
            case Made():
                self._check_made(decision)
            case Image():
                self._check_image(decision)
            case Answer():
                self._check_answer(decision)
            case Hold():
                self._check_hold(decision)
            case Same():
                self._check_same(decision)

    def _check_image(self, image: Image) -> None:
        """The shard is copied as it is now; for a new layout it stands still from then on."""
        self.halted = image.cut.layout > 0
        if image.record["updates"] != self._updates or image.record["version"] != self._steps:
            raise self._error(f"checkpoint {image.cut.number} has not what is applied")
        if image.cut.number in self.images:
            raise self._error(f"checkpoint {image.cut.number} is made twice")
        self.images[image.cut.number] = image

    def settle(self, index: int | None = None) -> None:
        """The shard goes on in another layout; `index`: as a new one, which is as this one was."""
        self.halted, self._counts_duplicates = False, False
        mine = Push | Pull | Adopt
        self._open = {t: r for t, r in self._open.items() if not isinstance(r, mine)}
        if index is not None:
            self.index, self._open = index, {}
        self._same = {t: again for t, again in self._same.items() if t in self._open}
        self._keys_held.clear()
        for step in [step for step in self._first if step not in self._replies]:
            del self._first[step]  # it comes again
            late = step in self._late
            if not late and self._clocks.get(step[0], 0) > step[1]:
                self._told_later.add(step)

    def ended(self, core: ShardCore) -> None:
        """Nothing is on its way any more."""
        stats = core.stats()
        wanted = {
            "updates_applied": self._updates,
            "duplicates_dropped": min(
                max(stats.duplicates_dropped, self._duplicates - self._unsure), self._duplicates
            ),
            "optimizer_steps": self._steps,
            "samples": self._samples,
            "max_clock_gap": self._max_lead,
            "dropped_late": self.late.total(),
            "staleness": tuple(sorted(self._staleness.items())),
            "update_lag": tuple(sorted(self._lag.items())),
        }
        if not self._counts_duplicates:
            del wanted["duplicates_dropped"]
        for name, value in wanted.items():
            if getattr(stats, name) != value:
                raise self._error(f"{name} is {getattr(stats, name)}, not {value}")
        unanswered = [r for r in self._open.values() if type(r) not in (Watch, *ABOUT_SERVERS)]
        if core.moving:
            # Until it goes on, a shard that stands still tells nothing to those who have left, and
            # whose question came twice.
            unanswered = [r for r in unanswered if r.worker in core.gate.active]
        if unanswered:
            raise self._error(f"never answered: {unanswered[0]}")
        if core.ledger.size > self._ledger_bound():
            raise self._error(f"the ledger has {core.ledger.size} ranges")

    def _ledger_bound(self) -> int:
        """One range for each worker's stream and each epoch, and a few around a leaver's lease."""
        churn = len(self.schedule.mishaps) + len(self.schedule.joins)
        return self.schedule.workers + 4 * (self.schedule.epochs + churn)

    # What comes in.

    def _adopt(self, view: View) -> None:
        self._view, self._active = view, dict(view.active)
        for worker, clock in view.active:
            self._clocks[worker] = max(self._clocks.get(worker, 0), clock)
        for worker in self._begun.keys() - self._active.keys():
            del self._begun[worker]
        for step in [step for step in self._first if step[0] not in self._active]:
            if step[1] >= self._clocks.get(step[0], 0):
                # Not applied, and now it never is: somebody else makes that update.
                self._keys_held.discard(self._pushes[self._first.pop(step)].key)
                self._unsure += step in self._not_looked_at

    def _note_key(self, step: _Step, push: Push) -> None:
        if push.key in self.applied or push.key in self._keys_held:
            self._duplicates += 1
            if self.halted:
                self._not_looked_at.add(step)
        self._keys_held.add(push.key)

    # What is decided.

    def _check_decided_once(self, token: Token, decisions: list[Decision]) -> None:
        unnamed = Apply | Image | Made
        about = [d for d in decisions if not isinstance(d, unnamed) and d.token == token]
        if len(about) != 1:
            raise self._error(f"{len(about)} decisions about {self._open[token]}")

    def _check_apply(self, apply: Apply) -> None:
        pushes = [self._pushes[token] for token in apply.tokens]
        for token, push in zip(apply.tokens, pushes, strict=True):
            if token not in self._open or self._first.get((push.worker, push.clock)) != token:
                raise self._error(f"gradients are applied that are not held: {push}")
            if push.key in self.applied:
                raise self._error(f"{push.key} is applied twice")
        self._steps += 1
        if self._in_rounds:
            self._applying = pushes
            return
        if len(pushes) != 1:
            raise self._error(f"{len(pushes)} pushes in one optimizer step")
        self._finish(pushes)

    def _note_round(self, clock: int, pushes: list[Push]) -> None:
        if len({push.key.stream.major for push in pushes}) > 1 and not self.schedule.own_steps:
            raise self._error(f"round {clock} mixes epochs")
        self.rounds[clock] = frozenset(push.worker for push in pushes)

    def _check_made(self, made: Made) -> None:
        """A round is over, or a push that carries nothing: who takes part, who is left behind."""
        clock, pushes = made.clock, []
        for worker in made.workers:
            token = self._first.get((worker, clock))
            if token is None:
                raise self._error(f"step {clock} is made without a push of worker {worker}")
            pushes.append(self._pushes[token])
        applying, self._applying = self._applying, []
        carrying = {p.key for p in pushes if not p.void and p.key not in self.applied}
        if {push.key for push in applying} != carrying:
            raise self._error(f"step {clock} is of {carrying}, and {applying} are applied")
        if self._in_rounds:
            self._note_round(clock, pushes)
            self._leave_behind(clock, made.workers)
        self._finish(pushes)

    def _leave_behind(self, clock: int, workers: Sequence[int]) -> None:
        """A round is of `workers`; as many others as there are backup workers go on without."""
        standing = {worker for worker in self._active if self._clocks[worker] == clock}
        if clock != self._floor() or not standing.issuperset(workers):
            raise self._error(f"round {clock} is of {workers}, and {standing} are there")
        told = self._backups and self.index  # by shard 0
        if not told and len(workers) < max(len(standing) - self._backups, 1):
            raise self._error(f"round {clock} is of workers {workers}, not {standing}")
        for worker in standing.difference(workers):
            self._clocks[worker] += 1
            if (worker, clock) in self._first:
                self._late.add((worker, clock))
                self._unsure += (worker, clock) in self._not_looked_at
                self._keys_held.discard(self._pushes[self._first[worker, clock]].key)

    def _finish(self, pushes: list[Push]) -> None:
        before = self._updates
        for push in pushes:
            if self._clocks[push.worker] != push.clock:
                raise self._error(f"clock {self._clocks[push.worker]} of {push}")
            self._clocks[push.worker] += 1
            self._keys_held.discard(push.key)
            if push.key not in self.applied:
                self._enter(push, before)

    def _enter(self, push: Push, updates_before: int) -> None:
        keys = {push.key, *push.also}
        if self.applied & keys:
            raise self._error(f"{self.applied & keys} are applied twice")
        self.applied |= keys
        self._updates += 1
        self._samples += push.samples
        if self._begun.get(push.worker):
            clock, lead, others = self._read_for(push)
            self._staleness[lead + push.clock - clock] += 1
            self._lag[updates_before - self._own[push.worker] - others] += 1
        self._own[push.worker] += 1

    def _read_for(self, push: Push) -> tuple[int, int, int]:
        """The start that gave the weights from which this push was made."""
        begun = self._begun[push.worker]
        wanted = begun[-1][0] if push.read is None else push.read
        if wanted not in (start[0] for start in begun):
            raise self._error(f"{push} is made from weights of clock {wanted}, which nobody gave")
        return next(start for start in begun if start[0] == wanted)

    def _check_answer(self, answer: Answer) -> None:
        request = self._open.pop(answer.token, None)
        if request is None:
            raise self._error(f"token {answer.token} is answered twice")
        for token in self._same.pop(answer.token, ()):
            del self._open[token]
        if isinstance(answer.reply, Failure):
            if request.worker in self._active:
                raise self._error(f"{request} is refused: {answer.reason}")
            return
        if isinstance(request, Pull):
            self._check_start(request, request.clock, answer.reply, reads=True)
        elif isinstance(request, Push):
            self._check_push_answer(request, answer)

    def _check_push_answer(self, push: Push, answer: Answer) -> None:
        step = (push.worker, push.clock)
        if self._first.get(step) != answer.token:
            again = self._latest.get(push.worker) != push.clock
            first = self._replies.get(step)
            if answer.reply != first and not (again and getattr(answer.reply, "duplicate", False)):
                raise self._error(f"{push} is answered {answer.reply}, at first {first}")
            return
        self._replies[step] = answer.reply
        self._latest[push.worker] = push.clock
        self._check_start(push, push.clock + 1, answer.reply, reads=push.pull)

    def _check_start(self, request: Push | Pull, clock: int, reply: Reply, *, reads: bool) -> None:
        worker = request.worker
        late = (worker, clock - 1) in self._late and isinstance(request, Push)
        usual = clock
        if self._backups and clock < self._clocks[worker] == self._floor():
            clock = self._floor()
        lead = clock - self._floor() if worker in self._active else 0
        if self._bound is not None and lead and lead + request.ahead > self._bound:
            raise self._error(f"worker {worker} may start {lead} + {request.ahead} clocks ahead")
        if self._clocks.get(worker, 0) < clock:
            raise self._error(f"worker {worker} may start step {clock} before its own last")
        self.late[worker] += late
        moved = clock if late or clock > usual else None
        expected = Stepped(self._steps, lead, late=late, clock=moved)
        if not isinstance(reply, Stepped) or replace(reply, view=None) != expected:
            raise self._error(f"{reply} should be {expected}")
        self._max_lead = max(self._max_lead, lead + request.ahead)
        begun = self._begun.setdefault(worker, [])
        if reads and (not begun or begun[-1][0] < clock):
            begun.append((clock, lead, self._updates - self._own[worker]))

    def _check_hold(self, hold: Hold) -> None:
        self.holds += 1
        if self.halted:
            return
        if self._bound is None and isinstance(self._open[hold.token], Push):
            raise self._error(f"an asynchronous push is held: {hold.reason}")

    def _check_same(self, same: Same) -> None:
        request, first = self._open[same.token], self._open.get(same.first)
        if request != first:
            raise self._error(f"{request} is taken for {first}")
        self._same.setdefault(same.first, []).append(same.token)

    def _floor(self) -> int:
        if self._active:
            return min(self._clocks[worker] for worker in self._active)
        return max(self._clocks.values(), default=0)

    def _error(self, what: str) -> CheckError:
        return CheckError(f"shard {self.index}: {what}")
