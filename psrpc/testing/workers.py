"""A simulated worker: the real bookkeeping, and a generator that lives its life.

The generator yields what it waits for: seconds, or calls.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from random import Random

from psrpc.core.progress import Progress
from psrpc.messages import (
    Adopt,
    Granted,
    Pull,
    Push,
    Register,
    Request,
    UpdateKey,
    WorkerStats,
)
from psrpc.testing.calls import Call, Caller, CheckError
from psrpc.testing.events import EventHeap
from psrpc.testing.schedule import Manner, Schedule

COORDINATOR = 0

Life = Generator[float | list[Call], None, None]


@dataclass
class _Flight:
    """A push whose answers are not taken yet."""

    key: UpdateKey
    calls: list[Call]
    samples: int
    pull: bool


class SimWorker:
    """One worker of a schedule."""

    def __init__(self, index: int, schedule: Schedule, events: EventHeap, random: Random) -> None:
        self.progress = Progress(index)
        self.steps = 0
        self.samples = 0
        self._gathered = 0
        self._flight: _Flight | None = None
        self._read: int | None = None
        self._ahead = int(schedule.overlap)
        self.finished = False
        self._schedule = schedule
        self._events = events
        self._random = random
        self._life = self._live()
        departure, pause = schedule.departure, schedule.pause
        self._departure = departure if departure and departure.worker == index else None
        self._pause = pause if pause and pause.worker == index else None

    def start(self, caller: Caller) -> None:
        """Begin, a little later; everything else happens in events."""
        self.caller = caller
        self._events.after(self._random.uniform(0.0, 0.1), self.go_on)

    def go_on(self) -> None:
        """Live until there is something to wait for."""
        for wait in self._life:
            if isinstance(wait, float):
                self._events.after(wait, self.go_on)
                return
            if self.caller.wait_for(wait):
                return
        self.finished = True

    # Its life, as a real worker's.

    def _live(self) -> Life:
        progress = self.progress
        yield [self.caller.ask(COORDINATOR, Register(progress.worker, protocol=1, model=()))]
        if self._schedule.own_steps:
            yield from self._feed_itself(self._schedule.own_steps[progress.worker])
        else:
            for epoch in range(self._schedule.epochs):
                progress.epoch = epoch
                yield from self._train_epoch()
                if self._departs():
                    break
        leave = progress.leave(WorkerStats(self.steps, self.samples))
        if self._departs(Manner.FORGETFUL):
            leave = replace(leave, steps_done=0)
        yield [self.caller.ask(COORDINATOR, leave)]

    def _feed_itself(self, steps: int) -> Life:
        call = self.caller.ask(COORDINATOR, self.progress.acquire(None))
        yield from self._take(call)
        for _ in range(steps):
            self._gathered = 1
            yield from self._step()
        yield from self._rest()

    def _train_epoch(self) -> Life:
        call = self._ask_lease()
        while True:
            yield from self._take(call)
            granted = call.reply
            assert isinstance(granted, Granted)
            if granted.lease is None or self._departs():
                break
            if granted.lease.first_step >= granted.lease.steps:
                raise CheckError(f"worker {self.progress.worker} got an empty lease")
            yield from self._settle()
            self.progress.begin(granted.lease)
            for step in range(granted.lease.first_step, granted.lease.steps):
                if self._departs():
                    break
                if step == granted.lease.steps - 1:
                    call = self._ask_lease()
                low, high = granted.lease.batch(step)
                self._gathered += high - low
                if self._random.random() < self._schedule.folds:
                    yield self._seconds()
                    yield from self._settle()
                    self.progress.fold()
                else:
                    yield from self._step()
        if call.open:
            yield from self._take(call)
        yield from self._rest()

    def _ask_lease(self) -> Call:
        words = self.progress.acquire(self._schedule.samples, self._schedule.batch_size)
        return self.caller.ask(COORDINATOR, words)

    def _ask_all(self, request: Callable[[int], Request]) -> list[Call]:
        return [self.caller.ask(s, request(s)) for s in range(self._schedule.servers)]

    def _take(self, call: Call) -> Life:
        """Wait for the coordinator's answer; who begins to step takes weights to start from."""
        yield [call]
        assert isinstance(call.reply, Granted)
        was_active = self.progress.active
        self.progress.granted(call.reply)
        if self.progress.active and not was_active:
            # The first two steps of a worker that overlaps are of these weights.
            yield self._ask_all(
                lambda server: Pull(
                    self.progress.worker,
                    self.progress.clock,
                    self.progress.news_for(server),
                    self._ahead,
                )
            )
            self._read = self.progress.clock

    def _step(self) -> Life:
        read = self._read
        yield self._seconds()
        yield from self._settle()
        samples, self._gathered = self._gathered, 0
        key, void = self.progress.next_key(), self._random.random() < self._schedule.voids
        pull = self._random.random() >= self._schedule.blind
        calls = self._ask_all(
            lambda server: Push(
                self.progress.worker,
                self.progress.clock,
                key,
                samples,
                pull=pull,
                void=void,
                also=self.progress.folded,
                view=self.progress.news_for(server),
                ahead=self._ahead,
                read=read,
            )
        )
        self._flight = _Flight(key, calls, samples, pull)
        self.steps += 1
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
        yield flight.calls
        self.samples += flight.samples
        self.progress.finished(flight.key)
        if flight.pull:
            self._read = self.progress.clock

    def _rest(self) -> Life:
        """Stop stepping, and let every shard know before anything else."""
        yield from self._settle()
        if not self.progress.active:
            return
        call = self.caller.ask(COORDINATOR, self.progress.idle())
        yield from self._take(call)
        calls = []
        for server in range(self._schedule.servers):
            news = self.progress.news_for(server)
            if news is not None:
                calls.append(self.caller.ask(server, Adopt(self.progress.worker, news)))
        yield calls

    # What its schedule says.

    def _departs(self, manner: Manner | None = None) -> bool:
        departure = self._departure
        if departure is None or self.steps < departure.after_steps:
            return False
        return manner is None or departure.manner is manner

    def _seconds(self) -> float:
        seconds = self._schedule.step_s[self.progress.worker] * self._random.uniform(0.5, 1.5)
        if self._pause is not None and self.steps == self._pause.after_steps:
            seconds += self._pause.seconds
        return seconds
