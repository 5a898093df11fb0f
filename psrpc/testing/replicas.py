"""Simulated servers of one shard: they follow, take over, are deposed, come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from psrpc.core.replication import Backup, Primary, Reign
from psrpc.errors import ProtocolError
from psrpc.messages import Granted, Reply
from psrpc.orders import Closed, Watch
from psrpc.testing.calls import Call, Caller
from psrpc.testing.events import EventHeap
from psrpc.testing.machines import Entry, Machine
from psrpc.testing.ordeal import Moment

BEATS_A_LIFE = 4


class World(Protocol):
    """What surrounds a simulated server."""

    events: EventHeap
    random: Random
    dead_after_s: float

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
    def come_again(self, replica: SimReplica, after_s: float) -> None: ...
    @property
    def over(self) -> bool: ...


class SimLine:
    """From a primary to one that follows it, and back: in order, until one end closes it."""

    def __init__(self, world: World, ends: tuple[SimReplica, SimReplica]) -> None:
        self.cut_until = 0.0
        self._world = world
        self._ends = ends
        self._closed: set[SimReplica] = set()
        self._queues: dict[SimReplica, deque[tuple[Callable[..., None], tuple[Any, ...]]]] = {
            end: deque() for end in ends
        }
        self._due_s = dict.fromkeys(ends, 0.0)

    def send(
        self, to: SimReplica, action: Callable[..., None], *args: Any, takes_s: float = 0.0
    ) -> None:
        """Have `to` do `action(*args)` when what was sent before has come."""
        if not self._closed:
            self._put(to, action, args, takes_s)

    def close(self, end: SimReplica) -> None:
        """One end closes it, or is dead: the other hears of it, after some of what was sent."""
        if end in self._closed:
            return
        first = not self._closed
        self._closed.add(end)
        other = self.other(end)
        if first:
            queue = self._queues[other]
            if self._world.random.random() < 0.5 and queue:
                for _ in range(self._world.random.randint(1, len(queue))):
                    queue.pop()
            self._put(other, other.hung_up, (self,), 0.0)

    def other(self, end: SimReplica) -> SimReplica:
        """Who is at the other end."""
        return self._ends[1] if end is self._ends[0] else self._ends[0]

    def _put(
        self, to: SimReplica, action: Callable[..., None], args: tuple[Any, ...], takes_s: float
    ) -> None:
        now = self._world.events.clock.now()
        self._due_s[to] = max(self._due_s[to], now + self._world.delay()) + takes_s
        self._queues[to].append((action, args))
        self._world.events.after(self._due_s[to] - now, self._arrive, to)

    def _arrive(self, to: SimReplica) -> None:
        now = self._world.events.clock.now()
        until = max(self.cut_until, *(end.cut_until for end in self._ends))
        if until > now:
            self._world.events.after(until - now, self._arrive, to)
        elif self._queues[to] and to not in self._closed:
            action, args = self._queues[to].popleft()
            to.when_awake(action, *args)


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
        self.line: SimLine | None = None
        self.lines: dict[int, SimLine] = {}
        self._world = world
        self._heard_s: dict[SimLine, float] = {}
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
        if self.index and not self._world.over:
            self._asks = self._world.caller_of(self, lambda: self.when_awake(self._watch))
            self._watch()

    def _watch(self) -> None:
        """The coordinator has told of news, or has not been asked: ask for more."""
        if self._asks is None or not self.serves or self._world.over:
            return
        reply = self._question.reply if self._question is not None else None
        self._question = None
        if isinstance(reply, Granted | Closed):
            self._enter(Entry(news=reply.view if isinstance(reply, Granted) else reply), None)
        if isinstance(reply, Closed):
            self._rounds = reply.clock + 1
        if self.serves:
            gate = self.machine.shard.gate
            self._rounds = max(self._rounds, gate.floor)
            self._question = self._asks.ask(0, Watch(self.index, gate.epoch, 0, self._rounds))
            self._asks.wait_for([self._question])

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

    def admit(self, line: SimLine) -> None:
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

    def has(self, line: SimLine, number: int) -> None:
        """One that follows says what it has."""
        follower = line.other(self).number
        if self.primary is None or self.lines.get(follower) is not line:
            return
        self._heard_s[line] = self.now
        self.primary.has(follower, number)
        if not self._sleeps(Moment.SETTLE, self._go_on):
            self._go_on()

    def _drop(self, line: SimLine) -> None:
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

    def copied(self, line: SimLine, epoch: int, number: int, state: dict[str, Any]) -> None:
        """The copy of the state has come."""
        if line is self.line:
            self._heard_s[line] = self.now
            self.machine.load(state)
            self.backup.copied(epoch, number)
            self._say(line)

    def take(self, line: SimLine, epoch: int, number: int, entry: Entry) -> None:
        """An entry has come."""
        if line is not self.line or not self.backup.take(epoch, number):
            return
        self._heard_s[line] = self.now
        if not self._sleeps(Moment.TAKE, self._take, line, entry):
            self._take(line, entry)

    def _take(self, line: SimLine, entry: Entry) -> None:
        self.machine.do(entry)
        self._say(line)

    def beat(self, line: SimLine) -> None:
        """The primary has nothing to say but that it lives."""
        if line is self.line:
            self._heard_s[line] = self.now
            self._say(line)

    def _say(self, line: SimLine) -> None:
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

    def hung_up(self, line: SimLine) -> None:
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
