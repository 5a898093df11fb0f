"""Runs jobs whose servers have no backups: when one dies, all go back to a checkpoint.

As `failover` does with pairs: a whole job is drawn from a seed, servers die at every point of
it, in the midst of a checkpoint and of a new life too, and at the end every sample is in every
shard's weights once, in the history that led to them, and the weights are, bit for bit, what
one process computes from that history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.decisions import Image
from psrpc.core.shard import ShardCore
from psrpc.messages import Lease, Reply, StreamKind, View
from psrpc.orders import Watch
from psrpc.replication.lives import NUMBERS_A_LIFE
from psrpc.testing.aging import Book, Fall, Folder, Saved, Tale, draw_tale, part_of
from psrpc.testing.calls import Call, Caller, CheckError
from psrpc.testing.machines import Entry, Machine, replay
from psrpc.testing.program import replay_command, run, run_seeds
from psrpc.testing.schedule import Fate, Mishap
from psrpc.testing.servers import SimServer, SimWatcher
from psrpc.testing.simulator import Simulation
from psrpc.testing.workers import SimWorker

_LOOK_S = 0.05
_SEES_S = 0.25  # within which a server sees that its life is over
_STARTS_S = 0.5
_WRITES_S = 0.05


class Lives(Simulation):
    """One job without backups, in one life after another."""

    def __init__(self, tale: Tale, trace: Callable[[str], None] | None) -> None:
        self.tale = tale
        self.life = 1
        self.serving: list[Machine | None] = []
        self.folder = Folder(tale.schedule.servers)
        self.died: list[Fall] = []
        self._falls = {death: death.after for death in tale.deaths}
        self._chosen: dict[int, Saved | None] = {1: None}
        self._life_of: dict[Machine, int] = {}
        self._had_work = True
        super().__init__(tale.schedule, trace)
        self.serving = [*self.servers]  # type: ignore[list-item]

    def run(self) -> None:
        """Live the whole job; raises AssertionError where a promise is broken."""
        self.events.after(self._random.uniform(0.0, 0.2), self._make_checkpoint)
        super().run()

    @property
    def over(self) -> bool:
        """Whether all workers' lives have ended."""
        begun = bool(self.workers)
        return begun and not self._to_come and all(worker.finished for worker in self.workers)

    # Servers.

    def _server(self, index: int) -> SimServer:
        return self._machine(index)

    def _machine(self, index: int) -> Machine:
        mode, servers = self.schedule.mode, self.schedule.servers
        coordinator = None
        if index == 0:
            coordinator = CoordinatorCore(mode, self.schedule.workers, servers=servers)
        machine = Machine(
            index,
            ShardCore(mode, follows=index > 0),
            coordinator,
            self._network,
            Book(self._first),  # type: ignore[arg-type]
            self.tale.optimizer,
            self._trace,
        )
        machine.speak()
        machine.keep = lambda call, reply: self._answer(machine, call, reply)
        machine.pictured = lambda image: self._picture(machine, image)
        self._life_of[machine] = self.life
        return machine

    @property
    def _first(self) -> int:
        return (self.life - 1) * NUMBERS_A_LIFE

    def _lives(self, machine: Machine) -> bool:
        return self.serving[machine.index] is machine

    def _answer(self, machine: Machine, call: Call, reply: Reply) -> None:
        if self._lives(machine) and not call.cut():
            self._network.send(call.answered, call, reply)

    def _caller_of(
        self, wake: Callable[[], None], cut: Callable[[int], bool] = lambda server: False
    ) -> Caller:
        deliver = [self._to_shard(index) for index in range(self.schedule.servers)]
        retry_s = self.schedule.retry_s
        return Caller(deliver, self._network, self.events, retry_s, wake, self._trace, cut)

    def _to_shard(self, index: int) -> Callable[[Call], None]:
        def deliver(call: Call) -> None:
            machine = self.serving[index]
            if machine is None or (isinstance(call.request, Watch) and call.abandoned):
                return  # nobody is there, or it was said to a server of an earlier life
            if self._falls_now(machine, Fall.RECEIVE):
                return
            dies = self._due(machine, Fall.APPLY)
            if dies:
                self._die(machine, Fall.APPLY)  # what it still does, nobody hears of
            machine.receive(call)
            if not dies:
                self._falls_now(machine, Fall.REPLY)

        return deliver

    # Their deaths, and the next life.

    def _due(self, machine: Machine, fall: Fall) -> bool:
        for death in list(self._falls):
            if (death.shard, death.fall) != (machine.index, fall):
                continue
            self._falls[death] -= 1
            if self._falls[death] <= 0 and self.folder.newest is not None and not self.over:
                del self._falls[death]
                return True
        return False

    def _falls_now(self, machine: Machine, fall: Fall) -> bool:
        if self._lives(machine) and self._due(machine, fall):
            self._die(machine, fall)
            return True
        return False

    def _die(self, machine: Machine, fall: Fall) -> None:
        self._note(f"server {machine.index} dies: {fall.value}")
        self.died.append(fall)
        self._stop(machine)
        after_s = self._random.uniform(0.0, _STARTS_S)
        self.events.after(after_s, self._return, machine.index, self._life_of[machine])

    def _stop(self, machine: Machine) -> None:
        if self._lives(machine):
            self.serving[machine.index] = None
            for watcher in self._watchers:
                if watcher.watches(machine):
                    watcher.caller.abandon()

    def _return(self, index: int, served: int) -> None:
        """A server's next process comes; the life in which the last one served is over."""
        if self.over:
            return
        if served == self.life:
            self.life += 1
            self._note(f"life {self.life} begins")
            for machine in self.serving:
                if machine is not None:
                    self.events.after(self._random.uniform(0.0, _SEES_S), self._pass, machine)
        self._set_out(index, self.life)

    def _pass(self, machine: Machine) -> None:
        """A server has seen that its life is over: it ends, and is started again."""
        if self._lives(machine):
            self._stop(machine)
            after_s = self._random.uniform(0.0, _STARTS_S)
            self.events.after(after_s, self._return, machine.index, self._life_of[machine])

    def _set_out(self, index: int, life: int) -> None:
        """Serve in a life as soon as that may be; if it is over before, in the next one."""
        if self.over:
            return
        if life != self.life:
            after_s = self._random.uniform(0.0, _STARTS_S)
            self.events.after(after_s, self._return, index, life)
            return
        if not index:
            self._chosen.setdefault(life, self.folder.newest)
        others = (self.serving[other] for other in range(1, self.schedule.servers))
        there = all(m is not None and self._life_of[m] == life for m in others)
        if life not in self._chosen or not (index or there):
            self.events.after(_LOOK_S, self._set_out, index, life)
            return
        self._serve(index, life)

    def _serve(self, index: int, life: int) -> None:
        machine, saved = self._machine(index), self._chosen[life]
        assert saved is not None, "nobody dies before the first checkpoint"
        saved.restore(machine)
        self.serving[index] = machine
        machine.adopt(View(self._first))
        if machine.coordinator is not None:
            machine.coordinator.incarnation = saved.incarnation + 1
            machine.coordinator.leases.restore(saved.epochs, saved.ledgers)
            machine.coordinator.go_back(self._first)
            self._had_work = any(self._has_work(worker) for worker in self.workers)
            self._watchers = [
                SimWatcher(each, self._caller_of) for each in self.serving[1:] if each is not None
            ]
            for watcher in self._watchers:
                watcher.go_on()
        self._falls_now(machine, Fall.COME)

    # Checkpoints.

    def _make_checkpoint(self) -> None:
        """Begin one, and give up the one before if it is not made yet."""
        if self.over:
            return
        self.events.after(self._random.uniform(0.05, 0.6), self._make_checkpoint)
        machine = self.serving[0]
        if machine is None or machine.coordinator is None or machine.coordinator.over:
            return
        latest = machine.shard.latest_cut
        if latest is not None and not self.folder.made(latest):
            machine.do(Entry(wanted=latest, given_up=True))
        machine.do(Entry(wanted=self.folder.begin()))

    def _picture(self, machine: Machine, image: Image) -> None:
        part = part_of(machine, image)
        if self._falls_now(machine, Fall.IMAGE):
            return

        def write() -> None:
            if self._lives(machine) and self.folder.put(image.cut.number, machine.index, part):
                self.events.after(self._random.uniform(0.0, _WRITES_S), finish)

        def finish() -> None:
            coordinator = self.serving[0]
            # In the same life: its parts have one server each.
            if coordinator is not None and self._life_of[coordinator] == self._life_of[machine]:
                assert coordinator.coordinator is not None
                self.folder.finish(image.cut.number, coordinator.coordinator)

        self.events.after(self._random.uniform(0.0, _WRITES_S), write)

    def _cut(self, number: int) -> None:
        """Those of the schedule are too few."""

    # Workers.

    def _has_work(self, worker: SimWorker) -> bool:
        unfinished = not worker.finished and worker._epoch < self.schedule.epochs
        return unfinished and not worker._departs()

    def _start(self, rank: int | None) -> None:
        super()._start(rank)
        self._had_work = True

    def _befall(self, worker: SimWorker, mishap: Mishap) -> None:
        self._note(f"process {worker.process}: {mishap.fate.value} for {mishap.seconds:.2f} s")
        if mishap.fate is Fate.KILL:
            if mishap.returns:
                self._start_later(worker.rank, mishap.seconds)
            worker.die()
            self.events.after(self._random.uniform(0.0, 0.05), self._lose, worker, True)
            return
        if mishap.fate is Fate.CUT:
            until = max(worker.cut_until[mishap.server], self.clock.now() + mishap.seconds)
            worker.cut_until[mishap.server] = until
            if mishap.server:
                return
        if mishap.seconds > self.schedule.dead_after_s:
            self.events.after(self.schedule.dead_after_s, self._lose, worker, False)

    def _lose(self, worker: SimWorker, dead: bool) -> None:
        """Tell the coordinator; of the dead again, for the next one may hear from one of them."""
        if self.over:
            return
        machine = self.serving[0]
        coordinator = None if machine is None else machine.coordinator
        if machine and coordinator and coordinator.worker_of(worker.process) is not None:
            machine.lose(worker.process, "it is gone")
        if dead or machine is None:
            self.events.after(2 * _LOOK_S, self._lose, worker, dead)

    def _ended(self) -> None:
        if self.over:
            for watcher in self._watchers:
                watcher.caller.abandon()

    def _note(self, text: str) -> None:
        if self._trace is not None:
            self._trace(text)

    # At the end.

    def _conclude(self, ended: bool) -> None:
        machines = [machine for machine in self.serving if machine is not None]
        verdicts = [m.coordinator.verdict for m in machines if m.coordinator is not None]
        if any(verdict is not None for verdict in verdicts):
            return
        self._check_ended(ended)
        if len(machines) < self.schedule.servers or {self._life_of[m] for m in machines} != {
            self.life
        }:
            return  # a server died when all work was done: such a job ends with an error
        for machine in machines:
            keys = [key for step in machine.history for key, _ in step]
            if doubled := [key for key, times in Counter(keys).items() if times > 1]:
                raise CheckError(f"shard {machine.index} has {doubled[0]} twice in its weights")
            for key in keys:
                own = key.stream.kind is StreamKind.WORKER
                if own and key.stream.major < self._first:
                    continue  # of a worker of an earlier life, who is refused
                if key not in machine.shard.ledger:
                    raise CheckError(f"shard {machine.index} does not know of {key}")
            self._check_samples(machine, machines[0])
            self._check_weights(machine)

    def _check_samples(self, machine: Machine, coordinator: Machine) -> None:
        assert coordinator.coordinator is not None
        if self.schedule.own_steps:
            return  # those are not made again
        if not self._had_work or self._nobody_left:
            return
        ledger, ends = machine.shard.ledger, Counter[int]()
        for epoch in coordinator.coordinator.leases.export():
            for index, stop in enumerate(epoch.stops):
                start, ends[epoch.epoch] = ends[epoch.epoch], stop
                lease = Lease(epoch.epoch, index, start, stop, self.schedule.batch_size)
                if ledger.steps_in(lease) != lease.steps:
                    raise CheckError(f"shard {machine.index} lacks some of {lease}")
        if ends != dict.fromkeys(range(self.schedule.epochs), self.schedule.samples):
            raise CheckError(f"the epochs' leases end at {ends}")

    @property
    def _nobody_left(self) -> bool:
        return self.schedule.departure is not None and self.schedule.workers == 1

    def _check_weights(self, machine: Machine) -> None:
        optimizer = self.tale.optimizer
        if machine.weights is None or optimizer is None:
            return
        if machine.weights.values() != replay(optimizer, machine.history):
            raise CheckError(f"shard {machine.index} has other weights than one process")


def relive(
    mode: str,
    seed: int,
    *,
    churn: bool = False,
    optimizer: str | None = None,
    trace: bool = False,
) -> tuple[Lives, list[str]]:
    """Draw a job whose servers die, run it and check it; with its trace. Raises SimulationError."""
    tale = draw_tale(mode, seed, churn=churn, optimizer=optimizer)
    lines: list[str] = []
    job = Lives(tale, lines.append if trace else None)
    run(job, lines, replay_command("lives", mode, seed, churn=churn, optimizer=optimizer))
    return job, lines


def main(arguments: list[str] | None = None) -> int:
    """See `run_seeds`."""
    deaths = lives = 0

    def simulate(mode: str, seed: int, **options: Any) -> list[str]:
        nonlocal deaths, lives
        job, lines = relive(mode, seed, **options)
        deaths, lives = deaths + len(job.died), lives + job.life
        return lines

    def summary() -> str:
        return f"{deaths} servers died in {lives} lives"

    return run_seeds("lives", simulate, arguments, summary, computes=True)


if __name__ == "__main__":
    raise SystemExit(main())
