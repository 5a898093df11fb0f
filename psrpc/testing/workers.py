"""A simulated worker: the real bookkeeping, and a generator that lives its life.

The generator yields what it waits for: seconds, or calls.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator
from dataclasses import dataclass
from random import Random

from psrpc.core.progress import Progress
from psrpc.counts import WorkerStats
from psrpc.messages import (
    Adopt,
    Granted,
    Lease,
    Pull,
    Push,
    Register,
    Request,
    UpdateKey,
    Welcome,
)
from psrpc.moves import Arrived, FindServers, Servers
from psrpc.testing.calls import (
    Call,
    Caller,
    CheckError,
    ElsewhereError,
    NoJobError,
    TakenForDeadError,
    heed,
)
from psrpc.testing.events import EventHeap
from psrpc.testing.schedule import Fate, Manner, Mishap, Point, Schedule

COORDINATOR = 0

Life = Generator[float | list[Call], None, None]


@dataclass
class _Flight:
    """A push whose answers are not taken yet."""

    key: UpdateKey
    request: Callable[[int], Push]
    calls: list[Call]
    samples: int
    pull: bool


class SimWorker:
    """One process that works. `mishaps` are those of its rank that have not happened."""

    def __init__(
        self,
        process: int,
        rank: int | None,
        schedule: Schedule,
        events: EventHeap,
        random: Random,
        mishaps: list[Mishap],
        befall: Callable[[SimWorker, Mishap], None],
    ) -> None:
        self.process = process
        self.rank = rank
        self.progress = Progress(process)
        self.steps = 0
        self.samples = 0
        self.layout = 0
        self.seats = list(range(schedule.servers))  # the servers by their shards
        # By server; None: from all of them.
        self.cut_until: defaultdict[int | None, float] = defaultdict(float)
        self.finished = False
        self.ended: Callable[[], None] = lambda: None
        self.stranded: Callable[[], None] = self._astray
        self._gathered = 0
        self._flight: _Flight | None = None
        self._read: int | None = None
        self._ahead = int(schedule.overlap)
        self._schedule = schedule
        self._events = events
        self._random = random
        self._mishaps = mishaps
        self._befall = befall
        self._comings = 0
        self._epoch = 0
        self._life = self._live()
        departure, pause = schedule.departure, schedule.pause
        self._departure = departure if departure and departure.worker == process else None
        self._pause = pause if pause and pause.worker == process else None

    def start(self, caller: Caller) -> None:
        """Begin, a little later; everything else happens in events."""
        self.caller = caller
        self._events.after(self._random.uniform(0.0, 0.1), self.go_on)

    def go_on(self) -> None:
        """Live until there is something to wait for."""
        if self.finished:
            return
        for wait in self._life:
            if isinstance(wait, float):
                self._events.after(wait, self.go_on)
                return
            if self.caller.wait_for(wait):
                return
        self.finished = True
        self.ended()

    def die(self) -> None:
        """Be gone at once."""
        self.finished = True
        self.caller.abandon()
        self.ended()

    def _astray(self) -> None:
        raise CheckError(f"a worker was sent on from layout {self.layout}")

    # Its life, as a real worker's.

    def _live(self) -> Life:
        while True:
            try:
                yield from self._come()
                yield from self._work()
                return
            except NoJobError:
                return
            except TakenForDeadError:
                self._flight, self._gathered = None, 0

    def _come(self) -> Life:
        rank = self.rank if self._comings == 0 else None
        if self._schedule.reshards:
            yield from self._find()
        words = Register(self.process, 1, (), rank=rank, serial=self._comings, layout=self.layout)
        self._comings += 1
        call = self.caller.ask(COORDINATOR, words)
        yield from self._hear([call])
        if isinstance(call.reply, Welcome):
            self.progress.begin_anew(call.reply.worker)

    def _work(self) -> Life:
        progress = self.progress
        if self._schedule.own_steps:
            yield from self._feed_itself(self._schedule.own_steps[self.process])
        else:
            while self._epoch < self._schedule.epochs:
                progress.epoch = self._epoch
                yield from self._train_epoch()
                if self._departs():
                    break
                self._epoch += 1
        settled = not self._departs(Manner.ABRUPT)
        stats = WorkerStats(self.steps, self.samples)
        leave = progress.leave(stats, early=self._departs(), settled=settled)
        yield from self._hear([self.caller.ask(COORDINATOR, leave)])

    def _hear(self, calls: list[Call]) -> Life:
        """Wait for answers; one may say that this worker is taken for dead."""
        yield calls
        heed(calls)

    def _through(self, request: Callable[[int], Request], calls: list[Call]) -> Life:
        """Wait for all shards' answers, those of a new layout if these send it on: in `calls`."""
        while True:
            try:
                yield from self._hear(calls)
                return
            except ElsewhereError as why:
                for call in calls:
                    call.abandoned = True
                yield from self._follow(lost=why.lost)
                calls[:] = self._ask_all(request)

    def _find(self, *, lost: bool = False) -> Life:
        call = self.caller.ask(COORDINATOR, FindServers(self.progress.worker, lost))
        yield from self._hear([call])
        assert isinstance(call.reply, Servers)
        self.layout = call.reply.layout
        if self.layout:
            self.seats = [seat.number for seat in call.reply.seats]
        self.progress.tell_anew()

    def _follow(self, *, lost: bool) -> Life:
        before = self.layout
        yield from self._find(lost=lost)
        if self.layout <= before:
            self.stranded()
            raise NoJobError
        arrived = self.caller.ask(COORDINATOR, Arrived(self.progress.worker, self.layout))
        yield from self._hear([arrived])

    def _feed_itself(self, steps: int) -> Life:
        call = self.caller.ask(COORDINATOR, self.progress.acquire(None))
        yield from self._take(call)
        for _ in range(steps):
            self._gathered = 1
            yield from self._step()
        yield from self._rest()

    def _train_epoch(self) -> Life:
        """Train until the epoch is over: what others leave undone included."""
        while not self._departs():
            call = self._ask_lease()
            yield from self._take(call)
            lease = _lease_in(call)
            if lease is None:
                break
            yield from self._train(lease)
            yield from self._rest()

    def _train(self, lease: Lease | None) -> Life:
        """Train on leases while there are any; the next one is asked for ahead."""
        while lease is not None and not self._departs():
            if lease.first_step >= lease.end:
                raise CheckError(f"worker {self.progress.worker} got an empty lease")
            call: Call | None = None
            for step in range(lease.first_step, lease.end):
                if self._departs():
                    break
                yield from self._reach(lease, step)
                if self._departs():
                    break  # that was its last update
                if step == lease.end - 1:
                    call = self._ask_lease()
                low, high = lease.batch(step)
                self._gathered += high - low
                if self._random.random() < self._schedule.folds:
                    yield self._seconds()
                else:
                    yield from self._step()
            if call is None:
                break
            yield from self._take(call)
            lease = _lease_in(call)
        if self._gathered and not self._departs():
            yield from self._step()

    def _reach(self, lease: Lease, step: int) -> Life:
        """Come to a batch; one before it that has no update yet goes into its update."""
        if self._gathered:
            yield from self._settle()
            if self.progress.may_fold(lease):
                self.progress.fold()
            else:
                yield from self._step()
        if step == lease.first_step:
            yield from self._settle()
            self.progress.begin(lease)

    def _ask_lease(self) -> Call:
        words = self.progress.acquire(self._schedule.samples, self._schedule.batch_size)
        return self.caller.ask(COORDINATOR, words)

    def _ask_all(self, request: Callable[[int], Request]) -> list[Call]:
        return [self.caller.ask(seat, request(s)) for s, seat in enumerate(self.seats)]

    def _take(self, call: Call) -> Life:
        """Wait for the coordinator's answer; who begins to step takes weights to start from."""
        yield from self._hear([call])
        assert isinstance(call.reply, Granted)
        was_active = self.progress.active
        self.progress.granted(call.reply)
        if self.progress.active and not was_active:
            # The first two steps of a worker that overlaps are of these weights.
            yield from self._pull()
            while self.progress.apart:
                yield from self._pull()
            self._read = self.progress.clock

    def _pull(self) -> Life:
        """Ask for weights; all must be of one round, and one shard may have begun the next."""
        progress = self.progress

        def request(server: int) -> Pull:
            news = progress.news_for(server)
            return Pull(progress.worker, progress.clock, news, self._ahead, self.layout)

        calls = self._ask_all(request)
        yield from self._through(request, calls)
        progress.pulled([call.reply for call in calls])

    def _step(self) -> Life:
        read = self._read
        yield self._seconds()
        yield from self._settle()
        yield from self._suffer(Point.BEFORE)
        samples, self._gathered = self._gathered, 0
        key, void = self.progress.next_key(), self._random.random() < self._schedule.voids
        pull = self._random.random() >= self._schedule.blind
        also = self.progress.folded

        def request(server: int) -> Push:
            return Push(
                self.progress.worker,
                self.progress.clock,
                key,
                samples,
                pull=pull,
                void=void,
                also=also,
                view=self.progress.news_for(server),
                ahead=self._ahead,
                read=read,
                layout=self.layout,
            )

        calls: list[Call] = []
        servers = len(self.seats)
        for server, seat in enumerate(self.seats):
            if server and server == servers // 2 + 1 - servers % 2:
                yield from self._suffer(Point.BETWEEN)
            calls.append(self.caller.ask(seat, request(server)))
        self._flight = _Flight(key, request, calls, samples, pull)
        self.steps += 1
        yield from self._suffer(Point.AFTER)
        if self._departs(Manner.ABRUPT):
            yield self._random.uniform(0.0, 4.0) * self._schedule.weather.delay_s
            for call in calls:
                call.abandoned = True
            self._flight = None
        elif not self._schedule.overlap:
            yield from self._settle()

    def _settle(self) -> Life:
        """Take the answers to the push that is on its way."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        yield from self._through(flight.request, flight.calls)
        late = self.progress.answered(flight.key, [call.reply for call in flight.calls])
        self.samples += 0 if late else flight.samples
        while self.progress.apart:
            yield from self._pull()
        if flight.pull:
            self._read = self.progress.clock

    def _rest(self) -> Life:
        """Stop stepping, and let every shard know before anything else."""
        yield from self._settle()
        if not self.progress.active:
            return
        call = self.caller.ask(COORDINATOR, self.progress.idle())
        yield from self._take(call)
        while True:
            calls = []
            for server, seat in enumerate(self.seats):
                news = self.progress.news_for(server)
                if news is not None:
                    adopt = Adopt(self.progress.worker, news, self.layout)
                    calls.append(self.caller.ask(seat, adopt))
            try:
                yield from self._hear(calls)
                return
            except ElsewhereError as why:
                yield from self._follow(lost=why.lost)

    # What its schedule says.

    def _suffer(self, point: Point) -> Life:
        """What happens to its process here, if anything does."""
        for mishap in self._mishaps:
            if mishap.point is point and self.steps >= mishap.after_steps:
                self._mishaps.remove(mishap)
                if point is Point.AFTER:
                    yield self._random.uniform(0.0, 4.0) * self._schedule.weather.delay_s
                self._befall(self, mishap)
                if mishap.fate is not Fate.CUT:
                    yield mishap.seconds
                return

    def _departs(self, manner: Manner | None = None) -> bool:
        departure = self._departure
        if departure is None or self.steps < departure.after_steps:
            return False
        return manner is None or departure.manner is manner

    def _seconds(self) -> float:
        index = self.process % len(self._schedule.step_s)
        seconds = self._schedule.step_s[index] * self._random.uniform(0.5, 1.5)
        if self._pause is not None and self.steps == self._pause.after_steps:
            seconds += self._pause.seconds
        return seconds


def _lease_in(call: Call) -> Lease | None:
    assert isinstance(call.reply, Granted)
    return call.reply.lease
