"""Runs jobs whose servers are added and removed, without backups, and lets servers die meanwhile.

As `resharding` does, with deaths at every point of a change and between changes. A server that
keeps rows takes the job with it: then everybody ends, and nobody waits for ever. One that keeps
none any more is missed by nobody: the job goes on, and every promise is held to the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from psrpc.errors import JobFailedError, encode
from psrpc.messages import Failure
from psrpc.moves import Seat
from psrpc.testing.calls import Call, CheckError, Lost, Trace
from psrpc.testing.moving import MovingServer, Phase
from psrpc.testing.program import replay_command, run, run_seeds
from psrpc.testing.resharding import Resharded
from psrpc.testing.schedule import Mishap, Schedule, draw
from psrpc.testing.workers import SimWorker

_HELD_S = 5.0  # then a checkpoint is given up
_SEES_S = 0.1  # within which the coordinator hears of a process's death, and looks after servers


@dataclass(frozen=True)
class Loss:
    """The server of shard `index` (None: any) dies when it comes to `phase` the `after`th time.

    With `leaves` only one that keeps no rows any more, or is to keep none.
    """

    phase: Phase
    after: int
    index: int | None
    leaves: bool


def draw_losses(mode: str, seed: int, *, churn: bool) -> tuple[Loss, ...]:
    """What happens to the servers of a job; the same for the same arguments."""
    random = Random(f"losses {mode} {seed} {churn}")
    drawn = []
    for _ in range(random.randint(1, 4)):
        phase, leaves = random.choice(tuple(Phase)), random.random() < 0.8
        after = random.choice((1, 1, 2, 3 if leaves else random.randint(1, 40)))
        index = None if leaves else random.choice((None, 0, 1, 2, 3))
        drawn.append(Loss(phase, after, index, leaves))
    return tuple(drawn)


class Losing(Resharded):
    """One job whose servers change, and die. `failed` is whether that has ended it."""

    def __init__(self, schedule: Schedule, losses: tuple[Loss, ...], trace: Trace | None) -> None:
        self._losses = {loss: loss.after for loss in losses}
        self.failed = False
        self.lost: list[tuple[Phase, bool]] = []  # with whether that server keeps rows
        super().__init__(schedule, trace)
        self._deliver[:] = [self._to(number) for number in range(len(self.servers))]

    # Servers.

    def new_server(self, *place: object) -> MovingServer:
        """See `Resharded`."""
        server = super().new_server(*place)  # type: ignore[arg-type]
        self._deliver[server.index] = self._to(server.index)
        return server

    def _let_move(self, server: MovingServer) -> None:
        super()._let_move(server)
        server.comes_to = lambda phase: self._come_to(server, phase)

    def _to(self, number: int) -> Callable[[Call], None]:
        def deliver(call: Call) -> None:
            server: MovingServer = self.servers[number]
            server.comes_to(Phase.RECEIVE)
            if self.failed or self.servers[0].dead:
                self._network.send(call.answered, call, _ENDED)
            elif server.dead:
                self._network.send(call.answered, call, Lost())
            else:
                server.receive(call)

        return deliver

    def _keeps(self, server: MovingServer) -> bool:
        """Whether a server has rows of the present layout."""
        seats: tuple[Seat, ...] = self.servers[0].coordinator.resharding.seats
        if not seats:
            return server.index < self.schedule.servers
        return any(seat.number == server.index for seat in seats)

    def _come_to(self, server: MovingServer, phase: Phase) -> None:
        for loss in list(self._losses):
            if server.dead or loss.phase is not phase:
                continue
            if loss.index not in (None, server.shard_index):
                continue
            if loss.leaves and not self._leaves(server):
                continue
            self._losses[loss] -= 1
            if self._losses[loss] <= 0:
                del self._losses[loss]
                self._die(server, phase)

    def _leaves(self, server: MovingServer) -> bool:
        """Whether a server keeps no rows any more, or is to keep none."""
        change = self.servers[0].coordinator.resharding._change
        has_left = not self._keeps(server) and server.layout <= self._layout
        return has_left or (change is not None and server.shard_index >= change.servers)

    def _die(self, server: MovingServer, phase: Phase) -> None:
        if self._trace is not None:
            self._trace(f"server {server.index} dies: {phase.value}")
        self.lost.append((phase, self._keeps(server)))
        server.dead = True
        self.movers[server.index].caller.abandon()
        for watcher in self._watchers:
            if watcher.watches(server):
                watcher.caller.abandon()
        for worker in self.workers:
            for call in worker.caller.waits_for:
                if call.server == server.index and call.server:
                    self.events.after(self._network.delay(), call.answered, call, Lost())
        for spare in self.spares:
            if spare.serves(server):
                spare.caller.abandon()
                self._gone.add(spare.number)
                self._tell_soon(spare.number)

    def _tell_soon(self, process: int) -> None:
        soon_s = self._random.uniform(0.0, _SEES_S)
        self.events.after(soon_s, self._tell, process, "its connection was closed")

    def _tell(self, process: int, why: str) -> None:
        if not self.servers[0].dead:
            self.servers[0].lose(process, why)

    # What the coordinator's shell does, and what others do that have lost a server.

    def _start(self, rank: int | None) -> None:
        super()._start(rank)
        worker = self.workers[-1]
        worker.stranded = lambda: self._look_soon(worker)

    def _look_soon(self, worker: SimWorker) -> None:
        """A worker gives up, as a server is gone: then the job is over, or the worker was wrong."""
        if all(not server.dead or not self._keeps(server) for server in self.servers):
            raise CheckError(f"process {worker.process} gives up, and all servers live")
        self.events.after(self._random.uniform(0.0, _SEES_S), self._fail)

    def _fail(self) -> None:
        self.failed = True

    def _attend(self) -> None:
        if self.failed or self.servers[0].dead:
            return
        change = self.servers[0].coordinator.resharding
        present = [server for server in self.servers if self._keeps(server)]
        if change.doubted and any(server.dead for server in present):
            self.servers[0].about(lambda: change.give_up("a server is lost"))
        super()._attend()

    def _cut(self, number: int) -> None:
        if self.failed or self.servers[0].dead:
            return
        super()._cut(number)
        self.events.after(_HELD_S, self._give_up_cut, number)

    def _give_up_cut(self, number: int) -> None:
        """Of a checkpoint that is not made nothing comes, as of one that another one replaces."""
        made = number != self._checkpoint or self.witness.made(number)
        if not made and not self.failed and not self.servers[0].dead:
            self._checkpoint = 0
            self.servers[0].give_up_cut(number)

    def _befall(self, worker: SimWorker, mishap: Mishap) -> None:
        if not self.servers[0].dead:
            super()._befall(worker, mishap)

    def _conclude(self, ended: bool) -> None:
        if not self.failed and not self.servers[0].dead:
            super()._conclude(ended)
        elif not ended or not all(worker.finished for worker in self.workers):
            raise CheckError("\n".join(["the job does not end:", *self._who_waits()]))


_ENDED = Failure(encode(JobFailedError("a server is dead")))


def lose_servers(
    mode: str, seed: int, *, churn: bool = False, trace: bool = False
) -> tuple[Losing, list[str]]:
    """Draw a job whose servers change and die, run it and check it; with its trace, if asked for.

    Raises SimulationError.
    """
    schedule = draw(mode, seed, churn=churn, reshards=True)
    losses = draw_losses(mode, seed, churn=churn)
    lines: list[str] = []
    job = Losing(schedule, losses, lines.append if trace else None)
    run(job, lines, replay_command("losing", mode, seed, churn=churn))
    return job, lines


def main(arguments: list[str] | None = None) -> int:
    """See `run_seeds`."""
    counts: Counter[str] = Counter()

    def simulate(mode: str, seed: int, **options: Any) -> list[str]:
        job, lines = lose_servers(mode, seed, **options)
        counts.update("kept rows" if keeps else "kept none" for _, keeps in job.lost)
        counts["jobs"] += 1
        counts["jobs ended with a server"] += job.failed or job.servers[0].dead
        return lines

    def summary() -> str:
        return ", ".join(f"{what}: {count}" for what, count in sorted(counts.items()))

    return run_seeds("losing", simulate, arguments, summary)


if __name__ == "__main__":
    raise SystemExit(main())
