"""Runs the real core through jobs on a simulated network, and checks every promise.

`simulate` draws a whole job from a seed (sizes, speeds, a network that loses,
repeats and reorders, a worker that leaves, one that pauses), runs it on a manual
clock, and raises `SimulationError` where the core breaks a promise. The message
names the command that replays that job, event by event.

The method is FoundationDB's deterministic simulation (Zhou et al., SIGMOD 2021).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.shard import ShardCore
from psrpc.counts import ShardStats
from psrpc.testing.calls import Call, Caller, CheckError, Trace, describe
from psrpc.testing.clock import ManualClock
from psrpc.testing.events import EventHeap
from psrpc.testing.network import Network
from psrpc.testing.schedule import MODES, Fate, Mishap, Schedule, draw
from psrpc.testing.servers import SimServer, SimWatcher
from psrpc.testing.witness import Witness
from psrpc.testing.workers import SimWorker

LIMIT_S = 2000.0
LIMIT_EVENTS = 200_000


class SimulationError(AssertionError):
    """A simulated job broke a promise; says which job, and how to see it again."""


@dataclass(frozen=True)
class SimReport:
    """What one simulated job did. `trace` has a line for each event, if asked for."""

    schedule: Schedule
    steps: int
    events: int
    virtual_s: float
    holds: int
    stats: tuple[ShardStats, ...]
    ledger_sizes: tuple[int, ...]
    trace: tuple[str, ...] = ()


class Simulation:
    """One job: its nodes, its network, its witness."""

    def __init__(self, schedule: Schedule, trace: Trace | None) -> None:
        self.schedule = schedule
        self.clock = ManualClock()
        self.events = EventHeap(self.clock)
        self.witness = Witness(schedule)
        self._random = Random(f"run {schedule.name} {schedule.seed}")
        self._network = Network(schedule.weather, self._random, self.events)
        self._trace = None if trace is None else self._timed(trace)
        self.servers = [self._server(s) for s in range(schedule.servers)]
        self._deliver: list[Callable[[Call], None]] = [s.receive for s in self.servers]
        self._watchers = [SimWatcher(s, self._caller_of) for s in self.servers[1:]]
        self.workers: list[SimWorker] = []
        self._mishaps = {
            rank: [each for each in schedule.mishaps if each.rank == rank]
            for rank in range(schedule.workers)
        }
        self._to_come = 0

    def run(self) -> None:
        """Live the whole job; raises AssertionError where a promise is broken."""
        for watcher in self._watchers:
            watcher.go_on()
        for rank in range(self.schedule.workers):
            self._start(rank)
        for at_s in self.schedule.joins:
            self._start_later(None, at_s)
        for number, at_s in enumerate(sorted(self.schedule.checkpoints), 1):
            self.events.after(at_s, self._cut, number)
        self._conclude(self.events.run(LIMIT_S, LIMIT_EVENTS))

    def _conclude(self, ended: bool) -> None:
        """Look at what is left; `ended` says that nothing is on its way any more."""
        coordinator = self.servers[0].coordinator
        if coordinator is not None and coordinator.verdict is not None:
            return
        self._check_ended(ended)
        self.witness.job_ended([server.shard for server in self.servers])

    def _check_ended(self, ended: bool) -> None:
        if not ended or not all(worker.finished for worker in self.workers):
            raise CheckError("\n".join(["the job does not end:", *self._who_waits()]))

    def report(self, trace: list[str]) -> SimReport:
        """What came of it."""
        shards = [server.shard for server in self.servers]
        return SimReport(
            schedule=self.schedule,
            steps=sum(worker.steps for worker in self.workers),
            events=self.events.events_run,
            virtual_s=self.clock.now(),
            holds=sum(shard.holds for shard in self.witness.shards),
            stats=tuple(shard.stats() for shard in shards),
            ledger_sizes=tuple(shard.ledger.size for shard in shards),
            trace=tuple(trace),
        )

    def _server(self, index: int) -> SimServer:
        mode = self.schedule.mode
        coordinator = None
        if index == 0:
            servers = self.schedule.servers
            coordinator = CoordinatorCore(mode, self.schedule.workers, servers=servers)
        shard = ShardCore(mode, follows=index > 0)
        return SimServer(index, shard, coordinator, self._network, self.witness, self._trace)

    def _start(self, rank: int | None) -> None:
        """A process begins that wants to be a worker; each has a number of its own."""
        mishaps = self._mishaps.get(rank, []) if rank is not None else []
        worker = SimWorker(
            len(self.workers), rank, self.schedule, self.events, self._random, mishaps, self._befall
        )
        self.workers.append(worker)
        worker.ended = self._ended

        def cut(server: int) -> bool:
            return self.clock.now() < max(worker.cut_until[None], worker.cut_until[server])

        worker.start(self._caller_of(worker.go_on, cut))

    def _cut(self, number: int) -> None:
        """Begin a checkpoint; the one before is given up if it is not made yet."""
        core = self.servers[0].coordinator
        assert core is not None
        if core.over:
            return
        if not self.witness.made(number - 1):
            self.servers[0].give_up_cut(number - 1)
        self.witness.cut_begun(number)
        self.servers[0].begin_cut(number)

    def _start_later(self, rank: int | None, after_s: float) -> None:
        self._to_come += 1

        def come() -> None:
            self._to_come -= 1
            self._start(rank)

        self.events.after(after_s, come)

    def _befall(self, worker: SimWorker, mishap: Mishap) -> None:
        """Something happens to a worker's process; the coordinator notices, sooner or later."""
        if self._trace is not None:
            whom = "" if mishap.server is None else f" from server {mishap.server}"
            what = f"{mishap.fate.value}{whom} for {mishap.seconds:.2f} s"
            self._trace(f"process {worker.process}: {what}")
        lose = self.servers[0].lose
        if mishap.fate is Fate.KILL:
            if mishap.returns:
                self._start_later(worker.rank, mishap.seconds)
            worker.die()
            soon_s = self._random.uniform(0.0, 0.05)
            self.events.after(soon_s, lose, worker.process, "its connection was closed")
            return
        if mishap.fate is Fate.CUT:
            until = max(worker.cut_until[mishap.server], self.clock.now() + mishap.seconds)
            worker.cut_until[mishap.server] = until
            if mishap.server:
                return  # the coordinator hears it as before
        if mishap.seconds > self.schedule.dead_after_s:
            self.events.after(self.schedule.dead_after_s, lose, worker.process, "it is silent")

    def _caller_of(
        self, wake: Callable[[], None], cut: Callable[[int], bool] = lambda server: False
    ) -> Caller:
        retry_s = self.schedule.retry_s
        return Caller(self._deliver, self._network, self.events, retry_s, wake, self._trace, cut)

    def _ended(self) -> None:
        """A worker's life has ended; with the last one's, servers stop watching."""
        if not self._to_come and all(worker.finished for worker in self.workers):
            for watcher in self._watchers:
                watcher.caller.abandon()

    def _timed(self, trace: Trace) -> Trace:
        return lambda line: trace(f"{self.clock.now():10.4f}  {line}")

    def _who_waits(self) -> list[str]:
        return [
            f"  worker {worker.progress.worker} waits for server {call.server}: "
            f"{describe(call.request)}: {call.reason}"
            for worker in self.workers
            for call in worker.caller.waits_for
        ]


def simulate(
    mode: str,
    seed: int,
    *,
    workers: int | None = None,
    servers: int | None = None,
    epochs: int = 2,
    churn: bool = False,
    trace: bool = False,
) -> SimReport:
    """Draw a job for `mode` (sync, bounded or async) from `seed`, run it and check it.

    With `churn` workers die, stand still, are cut off, come back, join. Sizes that are not
    given are drawn. The same arguments always give the same run. Raises SimulationError where
    the core breaks a promise.
    """
    schedule = draw(mode, seed, workers=workers, servers=servers, epochs=epochs, churn=churn)
    lines: list[str] = []
    simulation = Simulation(schedule, lines.append if trace else None)
    try:
        simulation.run()
    except Exception as error:
        command = replay_command(mode, seed, workers, servers, epochs, churn=churn)
        text = "\n".join([*lines, f"{type(error).__name__}: {error}", f"replay with: {command}"])
        raise SimulationError(text) from error
    return simulation.report(lines)


def replay_command(
    mode: str,
    seed: int,
    workers: int | None,
    servers: int | None,
    epochs: int,
    *,
    churn: bool = False,
) -> str:
    """The command that shows one job event by event."""
    sizes = {"--workers": workers, "--servers": servers, "--epochs": epochs}
    given = [f" {option} {size}" for option, size in sizes.items() if size is not None]
    given += [" --churn"] if churn else []
    return f"python -m psrpc.testing.simulator --mode {mode} --seed {seed}{''.join(given)} --trace"


def main(arguments: list[str] | None = None) -> int:
    """Run one job, or `--seeds` of them; exit code 1 where one fails."""
    parser = argparse.ArgumentParser(prog="python -m psrpc.testing.simulator")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--servers", type=int)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--churn", action="store_true", help="workers die, return and join")
    parser.add_argument("--trace", action="store_true", help="print every event with its reason")
    options = parser.parse_args(arguments)
    for seed in range(options.seed, options.seed + options.seeds):
        try:
            report = simulate(
                options.mode,
                seed,
                workers=options.workers,
                servers=options.servers,
                epochs=options.epochs,
                churn=options.churn,
                trace=options.trace,
            )
        except SimulationError as error:
            print(error)
            return 1
        print(*report.trace, sep="\n", end="\n" if report.trace else "")
        print(
            f"seed {seed}: {report.schedule.mode} held its promises over {report.steps} steps, "
            f"{report.events} events, {report.virtual_s:.1f} s of its own time"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
