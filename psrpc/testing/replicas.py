"""Simulated servers of one shard: they follow, take over, are deposed, come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from psrpc.core.replication import Backup, Primary, Reign
from psrpc.errors import ProtocolError
from psrpc.messages import Granted, Reply
from psrpc.moves import Retire, Settled
from psrpc.orders import Closed, Cut, Halt
from psrpc.testing.calls import Call, Caller
from psrpc.testing.cuts import Cuts
from psrpc.testing.events import EventHeap
from psrpc.testing.lines import SimLine
from psrpc.testing.machines import Entry, Machine
from psrpc.testing.ordeal import Moment

BEATS_A_LIFE = 4


class World(Protocol):
    """What surrounds a simulated server."""

    events: EventHeap
    random: Random
    dead_after_s: float
    cuts: Cuts

    def delay(self) -> float: ...
    def strike(self, replica: SimReplica, moment: Moment) -> None: ...
    def look(self, replica: SimReplica, then: Callable[[Reign], None]) -> None: ...
    def change(
        self, replica: SimReplica, expected: Reign, wanted: Reign, then: Callable[[Reign], None]
    ) -> None: ...
    def send(self, replica: SimReplica, call: Call, reply: Reply) -> None: ...
    def caller_of(self, replica: SimReplica, wake: Callable[[], None]) -> Caller: ...
    def replica(self, number: int) -> SimReplica: ...
    def reigns_now(self, replica: SimReplica) -> bool: ...
    def cut_soon(self) -> None: ...
    def come_again(self, replica: SimReplica, after_s: float) -> None: ...
    @property
    def over(self) -> bool: ...


class SimReplica:
    """One server process. It follows until it is named, and serves when it reigns."""

    def __init__(self, number: int, world: World, machine: Machine) -> None:
        self.number = number
        self.machine = machine
        self.index = machine.index
        self.dead = False
        self.stopped_until = 0.0
        self.cut_until = 0.0
        self.primary: Primary[tuple[Call, Reply]] | None = None
        self.backup = Backup(number)
        self.line: SimLine[SimReplica] | None = None
        self.lines: dict[int, SimLine[SimReplica]] = {}
        self._world = world
        self._heard_s: dict[SimLine[SimReplica], float] = {}
        self._asking = False
        self._alarm = False
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._asks: Caller | None = None  # what it asks the coordinator with, its question
        self._question: Call | None = None
        self._rounds = 0

    @property
    def now(self) -> float:
        """The time."""
        return self._world.events.clock.now()

    @property
    def serves(self) -> bool:
        """Whether it takes requests."""
        return not self.dead and self.primary is not None and not self.primary.deposed

    def when_awake(self, action: Callable[..., None], *args: Any) -> None:
        """Do something as soon as the process runs, after all that came before."""
        if self.dead:
            return
        if self._inbox or self.now < self.stopped_until:
            self._inbox.append((action, args))
            self._wake_later()
        else:
            action(*args)

    def _sleeps(self, moment: Moment, action: Callable[..., None], *args: Any) -> bool:
        """Whether it is struck here; one that only stands still goes on with `action` later."""
        self._world.strike(self, moment)
        if not self.dead and self.now < self.stopped_until:
            self._inbox.appendleft((action, args))
            self._wake_later()
            return True
        return self.dead

    def _wake_later(self) -> None:
        if not self._alarm:
            self._alarm = True
            self._world.events.after(max(self.stopped_until - self.now, 0.0), self._wake)

    def _wake(self) -> None:
        self._alarm = False
        while self._inbox and not self.dead and self.now >= self.stopped_until:
            action, args = self._inbox.popleft()
            action(*args)
        if self._inbox and not self.dead:
            self._wake_later()

    def die(self) -> None:
        """Be gone at once."""
        self.dead = True
        for line in (*self.lines.values(), *([self.line] if self.line else [])):
            line.close(self)
        self.rest()

    def rest(self) -> None:
        """Ask no other server for anything more."""
        if self._asks is not None:
            self._asks.abandon()

    def _restart(self) -> None:
        """End, for there is nothing to be done under this number, and come again."""
        self.die()
        self._world.come_again(self, self._world.random.uniform(0.0, 0.2))

    # A primary's life.

    def reign(self, reign: Reign, last: int) -> None:
        """Be primary."""
        self.primary = Primary(self.number, reign, last)
        self.machine.keep = lambda call, reply: self.primary.keep((call, reply))  # type: ignore[union-attr]
        self.machine.speak()
        self.machine.pictured = lambda image: self._world.cuts.pictured(self.index, image, self)
        latest = self.machine.shard.latest_cut
        if latest is not None and not self._world.cuts.written(latest, self.index):
            self._world.cut_soon()  # nobody else writes what the one before has not
        if latest is not None and not self.index:
            self._enter(Entry(wanted=latest, given_up=True), None)
        if self.index and self.machine.listens:
            self.listen()

    def listen(self) -> None:
        """Begin to hear what the coordinator says."""
        if not self._world.over:
            self._asks = self._world.caller_of(self, lambda: self.when_awake(self._watch))
            self._watch()

    def _watch(self) -> None:
        """The coordinator has told of news, or has not been asked: ask for more."""
        if self._asks is None or not self.serves or self._world.over:
            return
        reply = self._question.reply if self._question is not None else None
        self._question = None
        if isinstance(reply, Granted | Closed | Halt | Cut | Settled | Retire):
            self._enter(Entry(news=reply.view if isinstance(reply, Granted) else reply), None)
        if isinstance(reply, Closed):
            self._rounds = reply.clock + 1
        # When that is taken in: one that stands still in the midst of it asks nothing.
        self.when_awake(self._ask_for_news)

    def _ask_for_news(self) -> None:
        if self._asks is not None and self._listens:
            self._rounds = max(self._rounds, self.machine.shard.gate.floor)
            watch = self.machine.watch(self._rounds, self.number)
            self._question = self._asks.ask(0, watch)
            self._asks.wait_for([self._question])

    @property
    def _listens(self) -> bool:
        return self.serves and self.machine.listens and not self._world.over

    def begin_cut(self) -> None:
        """A checkpoint is due; the one before is given up if it is not made yet."""
        cuts, latest = self._world.cuts, self.machine.shard.latest_cut
        if self.serves and latest is not None and not cuts.whole(latest):
            self._enter(Entry(wanted=latest, given_up=True), None)
        if self.serves:
            self._enter(Entry(wanted=cuts.begin()), None)

    def lose(self, process: int, why: str) -> None:
        """The coordinator has noticed that a process is dead."""
        if self.serves:
            self._enter(Entry(lost=(process, why)), None)

    def receive(self, call: Call) -> None:
        """A request has come."""
        if self.serves and not self._sleeps(Moment.RECEIVE, self.receive, call):
            self._enter(Entry(call.request), call)

    def _enter(self, entry: Entry, call: Call | None) -> None:
        assert self.primary is not None
        number, epoch = self.primary.append(), self.primary.reign.epoch
        for line in self.lines.values():
            line.send(line.other(self), line.other(self).take, line, epoch, number, entry)
        if not self._sleeps(Moment.FORWARD, self._take_in, entry, call):
            self._take_in(entry, call)

    def _take_in(self, entry: Entry, call: Call | None) -> None:
        try:
            self.machine.do(entry, call)
        except Exception:
            if self._world.reigns_now(self):
                raise
            # What comes to one that was deposed, and does not know it yet, follows on what came
            # to others. Nobody ever hears of it.
            self._restart()
            return
        if not self._sleeps(Moment.APPLY, self._go_on):
            self._go_on()

    def _go_on(self) -> None:
        """Send the answers that may be sent, and ask for what is wanted."""
        assert self.primary is not None
        answers = self.primary.release()
        while answers:
            self._world.send(self, *answers.pop(0))
            self._world.strike(self, Moment.REPLY)
            if self.dead:
                return
        wanted = self.primary.claim()
        if wanted is None or self._asking:
            return
        self._asking = True
        self._world.change(self, self.primary.reign, wanted, self._ruled)
        if wanted.backup is not None:
            self._world.strike(self, Moment.NAME)

    def _ruled(self, reign: Reign) -> None:
        assert self.primary is not None
        self._asking = False
        self.primary.ruled(reign)
        if self.primary.deposed:
            self._restart()
        else:
            self._go_on()

    def admit(self, line: SimLine[SimReplica]) -> None:
        """One that wants to follow is there."""
        newcomer = line.other(self)
        if not self.serves or self.primary is None:
            line.close(self)
            return
        try:
            self.primary.follow(newcomer.number, self.primary.last)
        except ProtocolError:
            line.close(self)
            return
        self.lines[newcomer.number] = line
        self._heard_s[line] = self.now
        state = self.machine.copied()
        takes_s = self._world.random.choice((0.0, 0.0, 0.5)) * self._world.dead_after_s
        place = (line, self.primary.reign.epoch, self.primary.last, state)
        line.send(newcomer, newcomer.copied, *place, takes_s=takes_s)
        self._world.strike(self, Moment.COPY)

    def has(self, line: SimLine[SimReplica], number: int) -> None:
        """One that follows says what it has."""
        follower = line.other(self).number
        if self.primary is None or self.lines.get(follower) is not line:
            return
        self._heard_s[line] = self.now
        self.primary.has(follower, number)
        if not self._sleeps(Moment.SETTLE, self._go_on):
            self._go_on()

    def _drop(self, line: SimLine[SimReplica]) -> None:
        follower = line.other(self).number
        if self.primary is not None and self.lines.get(follower) is line:
            line.close(self)
            del self.lines[follower]
            self.primary.lose(follower)
            self._go_on()

    # A follower's life.

    def join(self) -> None:
        """Look for the shard's primary, and follow it."""
        self._world.look(self, self._join)

    def _join(self, reign: Reign) -> None:
        primary = self._world.replica(reign.primary)
        self.line = SimLine(self._world, (primary, self))
        self._heard_s[self.line] = self.now
        if primary.dead:
            self.line.close(primary)
        else:
            self.line.send(primary, primary.admit, self.line)

    def copied(
        self, line: SimLine[SimReplica], epoch: int, number: int, state: dict[str, Any]
    ) -> None:
        """The copy of the state has come."""
        if line is self.line:
            self._heard_s[line] = self.now
            self.machine.load(state)
            self.backup.copied(epoch, number)
            self._say(line)

    def take(self, line: SimLine[SimReplica], epoch: int, number: int, entry: Entry) -> None:
        """An entry has come."""
        if line is not self.line or not self.backup.take(epoch, number):
            return
        self._heard_s[line] = self.now
        if not self._sleeps(Moment.TAKE, self._take, line, entry):
            self._take(line, entry)

    def _take(self, line: SimLine[SimReplica], entry: Entry) -> None:
        self.machine.do(entry)
        self._say(line)

    def beat(self, line: SimLine[SimReplica]) -> None:
        """The primary has nothing to say but that it lives."""
        if line is self.line:
            self._heard_s[line] = self.now
            self._say(line)

    def _say(self, line: SimLine[SimReplica]) -> None:
        primary = line.other(self)
        line.send(primary, primary.has, line, self.backup.last)
        self._world.strike(self, Moment.ACK)

    def _miss(self) -> None:
        """The primary is gone, or silent."""
        assert self.line is not None
        self.line.close(self)
        self.line = None
        self._world.look(self, self._claim)

    def _claim(self, seen: Reign) -> None:
        wanted = self.backup.claim(seen)
        if wanted is None:
            self._restart()
            return
        self._world.change(self, seen, wanted, self._judged)
        self._world.strike(self, Moment.CLAIM)

    def _judged(self, reign: Reign) -> None:
        if not self.backup.promoted(reign):
            self._restart()
            return
        self.reign(reign, self.backup.last)
        self._world.strike(self, Moment.PROMOTE)

    # Both.

    def hung_up(self, line: SimLine[SimReplica]) -> None:
        """The other end has closed a line."""
        if line is self.line:
            self._miss()
        else:
            self._drop(line)

    def tick(self) -> None:
        """Say that it lives, and see who does not."""
        if self.dead or self._world.over:
            return
        self._world.events.after(
            self._world.dead_after_s / BEATS_A_LIFE, self.when_awake, self.tick
        )
        silent = [
            line
            for line in (*self.lines.values(), *([self.line] if self.line else []))
            if self.now - self._heard_s[line] > self._world.dead_after_s
        ]
        for line in silent:
            self.hung_up(line)
        for line in self.lines.values():
            line.send(line.other(self), line.other(self).beat, line)
