"""Runs jobs whose shards are on two servers each, and lets servers die at every point.

As `simulator` does with workers: a whole job is drawn from a seed, run on a manual clock, and
checked. What is promised beyond that: what a worker was told to be applied stays applied, no two
servers answer in one reign, and at the end every shard's weights are, bit for bit, what one
process computes from the same updates in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.replication import Reign
from psrpc.core.shard import ShardCore
from psrpc.messages import Push, Reply, Stepped, UpdateKey
from psrpc.testing.calls import Call, Caller, CheckError
from psrpc.testing.cuts import Cuts
from psrpc.testing.machines import Machine, replay
from psrpc.testing.ordeal import Blow, Moment, Ordeal, Strike, draw_ordeal
from psrpc.testing.program import replay_command, run, run_seeds
from psrpc.testing.replicas import BEATS_A_LIFE, SimReplica
from psrpc.testing.schedule import Fate, Mishap
from psrpc.testing.simulator import Simulation
from psrpc.testing.witness import Witness
from psrpc.testing.workers import SimWorker

_LOOK_AGAIN_S = 0.1


@dataclass
class Oath:
    """What workers were told, and by whom."""

    told: dict[tuple[int, int], int] = field(default_factory=dict)
    applied: set[tuple[int, UpdateKey]] = field(default_factory=set)
    late: set[tuple[int, int, int]] = field(default_factory=set)  # shard, worker, clock

    def answers(self, replica: SimReplica, call: Call, reply: Reply) -> None:
        """A server answers."""
        assert replica.primary is not None
        reign = (replica.index, replica.primary.reign.epoch)
        if self.told.setdefault(reign, replica.number) != replica.number:
            raise CheckError(f"two servers answer in reign {reign[1]} of shard {reign[0]}")
        if isinstance(call.request, Push) and isinstance(reply, Stepped):
            push = call.request
            step = (replica.index, push.worker, push.clock)
            if reply.late:
                self.late.add(step)
            elif step not in self.late:  # else a repeat of what the worker was told before
                self.applied.update((replica.index, key) for key in (push.key, *push.also))


class Failover(Simulation):
    """One job with its servers in pairs."""

    def __init__(self, ordeal: Ordeal, trace: Callable[[str], None] | None) -> None:
        super().__init__(ordeal.schedule, trace)
        self.ordeal = ordeal
        self.random = self._random
        self.dead_after_s = ordeal.dead_after_s
        self.oath = Oath()
        self.cuts = Cuts(self.schedule.servers, self.events, self._random)
        self.reigns: list[Reign] = []
        self.replicas: list[SimReplica] = []
        self.struck: list[Strike] = []
        self.trace: list[str] = []
        self._asking: set[SimReplica] = set()
        self._told: set[tuple[int, int]] = set()
        self._strikes = {strike: strike.after for strike in ordeal.strikes}
        self._watchers = []
        for index in range(self.schedule.servers):
            first = self._come(index)
            self.reigns.append(Reign(1, first.number))
            first.reign(self.reigns[index], 0)
        for index in range(self.schedule.servers):
            self._come(index).join()

    @property
    def over(self) -> bool:
        """Whether all workers' lives have ended."""
        begun = bool(self.workers)
        return begun and not self._to_come and all(worker.finished for worker in self.workers)

    def _conclude(self, ended: bool) -> None:
        last = [self._last(index) for index in range(self.schedule.servers)]
        coordinator = last[0].machine.coordinator
        if coordinator is not None and coordinator.verdict is not None:
            return
        self._check_ended(ended)
        witness = last[0].machine.witness
        witness.shards = [r.machine.witness.shards[r.index] for r in last]
        witness.job_ended([replica.machine.shard for replica in last])
        if not (self.struck or self.schedule.mishaps or self.schedule.departure):
            self.cuts.check_even()
        for index, key in self.oath.applied:
            if key not in last[index].machine.shard.ledger:
                raise CheckError(f"shard {index} has lost {key}, which a worker was told of")
        for replica in last:
            weights = replica.machine.weights
            optimizer = self.ordeal.optimizer
            if weights is None or optimizer is None:
                continue
            if weights.values() != replay(optimizer, replica.machine.history):
                raise CheckError(f"shard {replica.index} has other weights than one process")

    # What surrounds a server.

    def delay(self) -> float:
        """How long a message takes."""
        return self._network.delay()

    def replica(self, number: int) -> SimReplica:
        """A server process by its number."""
        return self.replicas[number]

    def reigns_now(self, replica: SimReplica) -> bool:
        """Whether the authority has this one for primary."""
        return self.reigns[replica.index].primary == replica.number

    def send(self, replica: SimReplica, call: Call, reply: Reply) -> None:
        """A server answers a caller."""
        self.oath.answers(replica, call, reply)
        if not call.cut() and not self._is_cut(replica):
            self._network.send(call.answered, call, reply)

    def caller_of(self, replica: SimReplica, wake: Callable[[], None]) -> Caller:
        """What a server calls other shards with."""
        return self._caller_of(wake, lambda shard: self._is_cut(replica))

    def look(self, replica: SimReplica, then: Callable[[Reign], None]) -> None:
        """A server wants to know who reigns."""
        self._ask(replica, lambda: self.reigns[replica.index], then)

    def change(
        self, replica: SimReplica, expected: Reign, wanted: Reign, then: Callable[[Reign], None]
    ) -> None:
        """A server wants another reign."""
        self._asking.add(replica)

        def compare_and_set() -> Reign:
            if self.reigns[replica.index] == expected:
                self.reigns[replica.index] = wanted
                self._note(f"authority: shard {replica.index} has {wanted}")
            return self.reigns[replica.index]

        self._ask(replica, compare_and_set, then)

    def _ask(
        self, replica: SimReplica, decide: Callable[[], Reign], then: Callable[[Reign], None]
    ) -> None:
        """Ask the authority, again and again until there is an answer."""
        answered = False

        def answer(reign: Reign) -> None:
            nonlocal answered
            if not answered and not self._is_cut(replica):
                answered = True
                self._asking.discard(replica)
                replica.when_awake(then, reign)

        def ask() -> None:
            if answered or replica.dead or self.over:
                return
            if not self._is_cut(replica):
                self._network.send(lambda: self._network.send(answer, decide()))
            self.events.after(self.schedule.retry_s, replica.when_awake, ask)

        ask()

    def cut_soon(self) -> None:
        """A checkpoint has come to nothing, and is made again."""
        self.events.after(self.schedule.retry_s, self._cut, 0)

    def _cut(self, number: int) -> None:
        """A checkpoint is due: whoever coordinates begins it, when somebody does."""
        coordinator = self.replicas[self.reigns[0].primary]
        if self.over or not self.workers:
            return
        if coordinator.serves:
            coordinator.when_awake(coordinator.begin_cut)
        else:
            self.cut_soon()

    # What happens to servers.

    def strike(self, replica: SimReplica, moment: Moment) -> None:
        """A moment has come for a server, at which something may happen."""
        for strike in list(self._strikes):
            if (strike.shard, strike.moment) != (replica.machine.shard_index, moment):
                continue
            self._strikes[strike] -= 1
            if self._strikes[strike] > 0:
                continue
            victim = self._other(replica) if strike.other else replica
            if victim is not None and self._hit(strike, victim):
                del self._strikes[strike]
                self.struck.append(strike)

    def _hit(self, strike: Strike, victim: SimReplica) -> bool:
        now = self.clock.now()
        if strike.blow is Blow.KILL and not self._may_die(victim):
            return False
        self._note(f"server {victim.index}.{victim.number}: {strike.blow.value}, {strike.moment}")
        if strike.blow is Blow.KILL:
            victim.die()
            if strike.returns:
                self.come_again(victim, strike.seconds)
        elif strike.blow is Blow.STOP:
            victim.stopped_until = max(victim.stopped_until, now + strike.seconds)
        elif strike.blow is Blow.CUT:
            victim.cut_until = max(victim.cut_until, now + strike.seconds)
        else:
            for line in (*victim.lines.values(), *([victim.line] if victim.line else [])):
                line.cut_until = now + strike.seconds
        return True

    def _may_die(self, victim: SimReplica) -> bool:
        """Whether one of those that have it all is left: more than one death is not promised.

        One that asks for the reign, because it misses the other, counts as the only one left.
        """
        reign = self.reigns[victim.index]
        members = [n for n in (reign.primary, reign.backup) if n is not None]
        alive = [n for n in members if not self.replicas[n].dead]
        needed = victim.number in members and (len(alive) < 2 or victim in self._asking)
        return not victim.dead and not needed

    def _other(self, replica: SimReplica) -> SimReplica | None:
        alive = [r for r in self.replicas if r.index == replica.index and not r.dead]
        return next((r for r in reversed(alive) if r is not replica), None)

    def come_again(self, replica: SimReplica, after_s: float) -> None:
        """A server's process comes anew."""

        def come() -> None:
            if not self.over:
                self._come(replica.index).join()

        self.events.after(after_s, come)

    def _come(self, index: int) -> SimReplica:
        mode, servers = self.schedule.mode, self.schedule.servers
        coordinator = None
        if index == 0:
            coordinator = CoordinatorCore(mode, self.schedule.workers, servers=servers)
        machine = Machine(
            index,
            ShardCore(mode, follows=index > 0),
            coordinator,
            self._network,
            Witness(self.schedule),
            self.ordeal.optimizer,
            self._trace,
        )
        replica = SimReplica(len(self.replicas), self, machine)
        self.replicas.append(replica)
        self.events.after(self.dead_after_s / BEATS_A_LIFE, replica.when_awake, replica.tick)
        return replica

    def _last(self, index: int) -> SimReplica:
        """Who has a shard in the end."""
        reign = self.reigns[index]
        primary = self.replicas[reign.primary]
        if primary.dead and reign.backup is not None:
            return self.replicas[reign.backup]
        return primary

    def _is_cut(self, replica: SimReplica) -> bool:
        return self.clock.now() < replica.cut_until

    def _note(self, text: str) -> None:
        if self._trace is not None:
            self._trace(text)

    # What the simulation of workers asks of its servers.

    def _ended(self) -> None:
        if self.over:
            for replica in self.replicas:
                replica.rest()

    def _caller_of(
        self, wake: Callable[[], None], cut: Callable[[int], bool] = lambda server: False
    ) -> Caller:
        deliver = [self._to_shard(index) for index in range(self.schedule.servers)]
        retry_s = self.schedule.retry_s
        return Caller(deliver, self._network, self.events, retry_s, wake, self._trace, cut)

    def _to_shard(self, index: int) -> Callable[[Call], None]:
        """Callers look for the primary, and some have not heard yet who that is."""

        def deliver(call: Call) -> None:
            replica = self.replicas[self.reigns[index].primary]
            if self._random.random() < 0.15:
                replica = self._random.choice([r for r in self.replicas if r.index == index])
            if not self._is_cut(replica):
                replica.when_awake(replica.receive, call)

        return deliver

    def _befall(self, worker: SimWorker, mishap: Mishap) -> None:
        """Something happens to a worker; whoever coordinates notices, sooner or later."""
        whom = "" if mishap.server is None else f" from server {mishap.server}"
        what = f"{mishap.fate.value}{whom} for {mishap.seconds:.2f} s"
        self._note(f"process {worker.process}: {what}")
        if mishap.fate is Fate.KILL:
            if mishap.returns:
                self._start_later(worker.rank, mishap.seconds)
            worker.die()
            soon_s = self._random.uniform(0.0, 0.05)
            self.events.after(soon_s, self._lose, worker, "its connection was closed", True)
            return
        if mishap.fate is Fate.CUT:
            until = max(worker.cut_until[mishap.server], self.clock.now() + mishap.seconds)
            worker.cut_until[mishap.server] = until
            if mishap.server:
                return  # the coordinator hears it as before
        if mishap.seconds > self.schedule.dead_after_s:
            wait_s = self.schedule.dead_after_s
            self.events.after(wait_s, self._lose, worker, "it is silent", False)

    def _lose(self, worker: SimWorker, why: str, dead: bool) -> None:
        """Tell the coordinator; of the dead again, if a new one may not have heard of it."""
        if self.over:
            return
        replica = self.replicas[self.reigns[0].primary]
        awake = self.clock.now() >= replica.stopped_until and replica.serves
        if awake:
            coordinator = replica.machine.coordinator
            assert coordinator is not None
            told = (replica.number, worker.process) in self._told
            if not told or coordinator.worker_of(worker.process) is not None:
                self._told.add((replica.number, worker.process))
                replica.lose(worker.process, why)
        if dead or not awake:
            self.events.after(_LOOK_AGAIN_S, self._lose, worker, why, dead)


def endure(
    mode: str,
    seed: int,
    *,
    churn: bool = False,
    optimizer: str | None = None,
    trace: bool = False,
) -> Failover:
    """Draw a job whose servers die, run it and check it. Raises SimulationError."""
    ordeal = draw_ordeal(mode, seed, churn=churn, optimizer=optimizer)
    lines: list[str] = []
    job = Failover(ordeal, lines.append if trace else None)
    run(job, lines, replay_command("failover", mode, seed, churn=churn, optimizer=optimizer))
    job.trace = lines
    return job


def main(arguments: list[str] | None = None) -> int:
    """See `run_seeds`."""
    struck = 0

    def simulate(mode: str, seed: int, **options: Any) -> list[str]:
        nonlocal struck
        job = endure(mode, seed, **options)
        struck += len(job.struck)
        return job.trace

    def summary() -> str:
        return f"{struck} times a server was struck"

    return run_seeds("failover", simulate, arguments, summary, computes=True)


if __name__ == "__main__":
    raise SystemExit(main())
