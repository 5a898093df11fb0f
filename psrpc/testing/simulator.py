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
from psrpc.messages import ShardStats
from psrpc.testing.calls import Call, Caller, CheckError, Trace, describe
from psrpc.testing.clock import ManualClock
from psrpc.testing.events import EventHeap
from psrpc.testing.network import Network
from psrpc.testing.schedule import MODES, Schedule, draw
from psrpc.testing.servers import SimServer
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
        self.workers = [
            SimWorker(w, schedule, self.events, self._random) for w in range(schedule.workers)
        ]

    def run(self) -> None:
        """Live the whole job; raises AssertionError where a promise is broken."""
        for worker in self.workers:
            worker.start(self._caller(worker))
        ended = self.events.run(LIMIT_S, LIMIT_EVENTS)
        if not ended or not all(worker.finished for worker in self.workers):
            raise CheckError("\n".join(["the job does not end:", *self._who_waits()]))
        unpushed = [key for worker in self.workers for key in worker.progress.folded]
        self.witness.job_ended([server.shard for server in self.servers], unpushed)

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
            ledger_sizes=tuple(shard.ledger_size for shard in shards),
            trace=tuple(trace),
        )

    def _server(self, index: int) -> SimServer:
        mode = self.schedule.mode
        coordinator = None if index else CoordinatorCore(mode, self.schedule.workers)
        return SimServer(
            index, ShardCore(mode), coordinator, self._network, self.witness, self._trace
        )

    def _caller(self, worker: SimWorker) -> Caller:
        deliver: list[Callable[[Call], None]] = [server.receive for server in self.servers]
        retry_s = self.schedule.retry_s
        return Caller(deliver, self._network, self.events, retry_s, worker.go_on, self._trace)

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
    trace: bool = False,
) -> SimReport:
    """Draw a job for `mode` (sync, bounded or async) from `seed`, run it and check it.

    Sizes that are not given are drawn. The same arguments always give the same
    run. Raises SimulationError where the core breaks a promise.
    """
    schedule = draw(mode, seed, workers=workers, servers=servers, epochs=epochs)
    lines: list[str] = []
    simulation = Simulation(schedule, lines.append if trace else None)
    try:
        simulation.run()
    except Exception as error:
        command = replay_command(mode, seed, workers, servers, epochs)
        text = "\n".join([*lines, f"{type(error).__name__}: {error}", f"replay with: {command}"])
        raise SimulationError(text) from error
    return simulation.report(lines)


def replay_command(
    mode: str, seed: int, workers: int | None, servers: int | None, epochs: int
) -> str:
    """The command that shows one job event by event."""
    sizes = {"--workers": workers, "--servers": servers, "--epochs": epochs}
    given = [f" {option} {size}" for option, size in sizes.items() if size is not None]
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
