"""Runs jobs whose shards are on two servers each while servers are added and removed.

As `failover` does, with every blow at every point, those of a change included. What is promised:
a change is made, or comes to nothing, by one word of the coordinator, whoever that is then; no
server that has rows of the layout in force is without them; and all that `failover` promises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.replication import Reign
from psrpc.core.shard import ShardCore
from psrpc.messages import Failure, Reply
from psrpc.moves import Agreed, AwaitScale, Scale
from psrpc.orders import Cut
from psrpc.testing.calls import Call, Caller, CheckError
from psrpc.testing.failover import Failover
from psrpc.testing.machines import replay
from psrpc.testing.migrants import Begin, GiveUp, MovingMachine, MovingReplica, Own
from psrpc.testing.ordeal import Moment, Ordeal, draw_ordeal
from psrpc.testing.program import replay_command, run, run_seeds
from psrpc.testing.replicas import BEATS_A_LIFE, SimReplica
from psrpc.testing.schedule import Manner, Reshard
from psrpc.testing.shard_witness import ShardWitness
from psrpc.testing.witness import Witness

_LOOK_S = 0.02
_TELL_S = 0.1
_TAKES_S = 0.1  # that a server takes for its rows, at most
_HELD_S = 5.0  # then a change is given up
_ASKERS = 1_000_000  # the first number of a command


class Asker:
    """The command that asks for servers, and starts them."""

    def __init__(self, job: Migrating, number: int, wish: Reshard) -> None:
        self.number = number
        self.dead = False
        self._job, self._wish = job, wish
        self.places: list[int] = []
        self.caller = job.caller(self._go_on)
        self._call: Call | None = None
        self._ask(Scale(number, wish.servers))

    def _ask(self, word: Scale | AwaitScale) -> None:
        self._call = self.caller.ask(0, word)
        self.caller.wait_for([self._call])

    def _go_on(self) -> None:
        reply = self._call.reply if self._call is not None else None
        if isinstance(reply, Agreed):
            for index in range(reply.before, reply.servers):
                self.places.append(self._job.pair(index, reply.servers))
            if self._wish.dies is not None:
                self._job.events.after(self._wish.dies_after_s, self._job.ends, self)
            self._ask(AwaitScale(self.number))
        elif isinstance(reply, Failure):
            for place in self.places:
                self._job.comes_to_nothing(place)


class Migrating(Failover):
    """One job with its servers in pairs, more and fewer of them. A pair is a place.

    `changes` counts what became of the changes.
    """

    replicas: list[Any]

    def __init__(self, ordeal: Ordeal, trace: Callable[[str], None] | None) -> None:
        self._index_of = list(range(ordeal.schedule.servers))  # by place, its shard
        self._nothing: set[int] = set()  # places that come to nothing
        self._askers: list[Asker] = []
        self._others: list[Caller] = []
        self._since_s = 0.0
        self._doors = [self._to_shard(index) for index in self._index_of]
        super().__init__(replace(ordeal, schedule=replace(ordeal.schedule, checkpoints=())), trace)

    def run(self) -> None:
        """See `Failover`."""
        for wish in self.schedule.reshards:
            self.events.after(wish.at_s, self._wish, wish)
        self._attend()
        super().run()

    # Servers.

    def _come(self, index: int) -> MovingReplica:
        """One more process of a place."""
        mode, shard = self.schedule.mode, self._index_of[index]
        coordinator = None
        if index == 0:
            servers = self.schedule.servers
            coordinator = CoordinatorCore(mode, self.schedule.workers, servers=servers)
        witness = Witness(self.schedule)
        for other in range(len(witness.shards), index + 1):
            witness.shards.append(ShardWitness(other, self.schedule))
        machine = MovingMachine(
            index,
            shard,
            ShardCore(mode, follows=shard > 0),
            coordinator,
            self._network,
            witness,
            self.ordeal.optimizer,
            self._trace,
        )
        machine.fresh = index >= self.schedule.servers
        replica = MovingReplica(len(self.replicas), self, machine)
        self.replicas.append(replica)
        self.events.after(self.dead_after_s / BEATS_A_LIFE, replica.when_awake, replica.tick)
        return replica

    def pair(self, index: int, servers: int) -> int:
        """Start a new pair, which offers itself when it is one; returns its place."""
        place = len(self._index_of)
        self._index_of.append(index)
        self._doors.append(self._to_shard(place))
        first = self._come(place)
        self.reigns.append(Reign(1, first.number))
        first.reign(self.reigns[place], 0)
        self._come(place).join()

        def look() -> None:
            if first.dead or self.over:
                return
            if first.paired:
                first.when_awake(first.offer, servers)
            else:
                self.events.after(_LOOK_S, look)

        look()
        self.events.after(_TELL_S, self._tell_of, first)
        return place

    def _tell_of(self, replica: MovingReplica) -> None:
        """Tell the coordinator of a new server's death, as long as that may be of use."""
        if self.over or replica.index in self._nothing:
            return
        coordinator = self._coordinating()
        if replica.dead and coordinator is not None:
            change = self._core_of(coordinator).resharding._change
            offers = change.offers.values() if change is not None else ()
            if any(offer.process == replica.process for offer, _ in offers):
                coordinator.lose(replica.process, "its connection was closed")
        self.events.after(_TELL_S, self._tell_of, replica)

    def comes_to_nothing(self, place: int) -> None:
        """A new pair ends, if it is no server yet."""
        ours = [replica for replica in self.replicas if replica.index == place]
        if any(not replica.machine.fresh for replica in ours) or place in self._nothing:
            return
        self._nothing.add(place)
        for replica in ours:
            if not replica.dead:
                replica.die()

    def come_again(self, replica: SimReplica, after_s: float) -> None:
        """See `Failover`; what is no server yet does not come again."""

        def come() -> None:
            present = self.replicas[self.reigns[replica.index].primary]
            if replica.index not in self._nothing and not present.machine.fresh and not self.over:
                self._come(replica.index).join()

        self.events.after(after_s, come)

    def send(self, replica: SimReplica, call: Call, reply: Reply) -> None:
        """See `Failover`; a server hears of its own entries at once."""
        if isinstance(call, Own):
            call.answered(call, reply)
        else:
            super().send(replica, call, reply)

    def _caller_of(
        self, wake: Callable[[], None], cut: Callable[[int], bool] = lambda server: False
    ) -> Caller:
        retry_s = self.schedule.retry_s
        return Caller(self._doors, self._network, self.events, retry_s, wake, self._trace, cut)

    def take(self, replica: MovingReplica, cut: Cut) -> None:
        """Let a server take its rows, when all that give some stand at the cut."""
        givers: list[MovingReplica] = [self.replicas[int(giver)] for giver in cut.givers]

        def lost() -> bool:
            return any(not giver.serves for giver in givers)

        def goes_on() -> bool:
            wanted = replica.machine.fresh or replica.machine.moving == cut.layout
            return replica.serves and wanted and not self.over

        def look() -> None:
            if not goes_on():
                return
            now = self.clock.now()
            awake = all(now >= max(giver.stopped_until, giver.cut_until) for giver in givers)
            standing = [giver.machine.standing.get(cut.layout) for giver in givers]
            if awake and all(standing):
                for giver in givers:
                    self.strike(giver, Moment.GIVE)
            if lost():
                replica.when_awake(replica.take_rows, cut, [])
            elif awake and all(standing):
                self.events.after(self._random.uniform(0.0, _TAKES_S), finish, standing)
            else:
                self.events.after(_LOOK_S, look)

        def finish(standing: list[Any]) -> None:
            if goes_on():
                replica.when_awake(replica.take_rows, cut, [] if lost() else standing)

        look()

    # What the coordinator's shell does, and the commands.

    def caller(self, wake: Callable[[], None]) -> Caller:
        """What a command says its words with."""
        caller = self._caller_of(wake)
        self._others.append(caller)
        return caller

    def _coordinating(self) -> MovingReplica | None:
        """Who coordinates, if somebody does."""
        replica: MovingReplica = self.replicas[self.reigns[0].primary]
        return replica if replica.serves and self.clock.now() >= replica.stopped_until else None

    def _wish(self, wish: Reshard) -> None:
        if not self.over:
            self._askers.append(Asker(self, _ASKERS + len(self._askers), wish))

    def ends(self, asker: Asker) -> None:
        """A command dies; its servers too, for they end with it."""
        replica = self._coordinating()
        if asker.dead or self.over:
            return
        if replica is None:
            self.events.after(_TELL_S, self.ends, asker)
            return
        change = self._core_of(replica).resharding._change
        if change is None or change.asker != asker.number:
            return  # it is done
        self._note(f"the command {asker.number} dies")
        asker.dead = True
        asker.caller.abandon()
        replica.lose(asker.number, "its connection was closed")

    def _attend(self) -> None:
        """See a change through, as `Reshaper` does."""
        if self.over:
            return
        replica = self._coordinating()
        if replica is not None:
            change, now_s = self._core_of(replica).resharding, self.clock.now()
            if not change.under_way:
                self._since_s = now_s
            elif change.may_cut:
                self._since_s = now_s
                replica.about_layout(Begin(str(replica.number)))
            elif now_s - self._since_s > _HELD_S:
                replica.about_layout(GiveUp("it takes too long"))
                self._since_s = now_s
        self.events.after(_LOOK_S, self._attend)

    def _ended(self) -> None:
        super()._ended()
        if self.over:
            for caller in self._others:
                caller.abandon()

    @staticmethod
    def _core_of(replica: MovingReplica) -> CoordinatorCore:
        core = replica.machine.coordinator
        assert core is not None
        return core

    # At the end.

    def _conclude(self, ended: bool) -> None:
        coordinator = self._core_of(self.replicas[self._last(0).number])
        if coordinator.verdict is not None:
            return
        self._check_ended(ended)
        seats = coordinator.resharding.seats
        present = [seat.number for seat in seats] or list(range(self.schedule.servers))
        last = {place: self._last(place) for place in present}
        witness = self._last(0).machine.witness
        for other in range(len(witness.shards), len(self._index_of)):
            witness.shards.append(ShardWitness(other, self.schedule))
        for place, replica in last.items():
            witness.shards[place] = replica.machine.witness.shards[place]
        witness.present = present
        witness.job_ended([replica.machine.shard for replica in last.values()])
        departure = self.schedule.departure
        # Nobody does again what the last worker did not wait for.
        waited = departure is None or departure.manner is not Manner.ABRUPT
        for place, replica in last.items():
            told = {key for index, key in self.oath.applied if waited or index == place}
            if lost := [key for key in told if key not in replica.machine.shard.ledger]:
                raise CheckError(f"place {place} has lost {lost[0]}, which a worker was told of")
            self._check_weights(place, replica)

    def _check_weights(self, place: int, replica: Any) -> None:
        weights, optimizer = replica.machine.weights, self.ordeal.optimizer
        if weights is None or optimizer is None:
            return
        if weights.values() != replay(optimizer, replica.machine.history):
            raise CheckError(f"place {place} has other weights than one process")


def migrate(
    mode: str,
    seed: int,
    *,
    churn: bool = False,
    optimizer: str | None = None,
    trace: bool = False,
) -> tuple[Migrating, list[str]]:
    """Draw a job whose servers change and die, run it and check it. Raises SimulationError."""
    ordeal = draw_ordeal(mode, seed, churn=churn, optimizer=optimizer, reshards=True)
    lines: list[str] = []
    job = Migrating(ordeal, lines.append if trace else None)
    run(job, lines, replay_command("migrating", mode, seed, churn=churn, optimizer=optimizer))
    return job, lines


def main(arguments: list[str] | None = None) -> int:
    """See `run_seeds`."""
    struck: Counter[str] = Counter()
    layouts = 0

    def simulate(mode: str, seed: int, **options: Any) -> list[str]:
        nonlocal layouts
        job, lines = migrate(mode, seed, **options)
        struck.update(strike.moment.name for strike in job.struck)
        layouts += job.replicas[job.reigns[0].primary].machine.layout > 0
        return lines

    def summary() -> str:
        times = f"{struck.total()} times a server was struck {dict(sorted(struck.items()))}"
        return f"{times}; {layouts} jobs had a new layout"

    return run_seeds("migrating", simulate, arguments, summary, computes=True)


if __name__ == "__main__":
    raise SystemExit(main())
