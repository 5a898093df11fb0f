"""Runs jobs whose servers are added and removed, and checks that every promise holds throughout.

The core's own decisions are carried out: who is cut where, who is ready, when a layout is in
force. Rows are not there; a shard is what it has applied. At any moment a new server, the command
or a worker may die, and messages are delayed, repeated and lost, those about layouts included.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.shard import ShardCore
from psrpc.messages import Reply, Request, StreamKind, UpdateKey
from psrpc.moves import (
    Again,
    Agreed,
    AwaitScale,
    Offer,
    Ready,
    Scale,
    Seat,
    Settled,
)
from psrpc.orders import Cut
from psrpc.testing.calls import Call, Caller, CheckError, Trace
from psrpc.testing.moving import MovingServer, MovingWatcher, Phase, Stood
from psrpc.testing.program import replay_command, run, run_seeds
from psrpc.testing.schedule import Reshard, Schedule, draw
from psrpc.testing.servers import SimServer
from psrpc.testing.shard_witness import ShardWitness
from psrpc.testing.simulator import Simulation

_LOOK_S = 0.02
_TAKES_S = 0.1  # that a server takes for its rows, at most
_HELD_S = 5.0  # then a change is given up
_NO_ROWS = "a server gave no rows"
_PROCESS = 1000  # the first number of a process that is no worker


class _Process:
    """A process that says one word after another to the coordinator, until it dies."""

    def __init__(self, job: Resharded, number: int) -> None:
        self.job, self.number = job, number
        self.caller = job.caller(self.go_on)
        self._call: Call | None = None

    def ask(self, request: Request) -> None:
        """Say something, unless nobody works any more; `hear` takes the answer."""
        if self.job.over:
            return
        self._call = self.caller.ask(0, request)
        self.caller.wait_for([self._call])

    def go_on(self) -> None:
        """The answer has come."""
        if self._call is not None and self._call.reply is not None:
            self.hear(self._call.reply)

    def hear(self, reply: Reply) -> None:
        """Take an answer."""


class Spare(_Process):
    """A new server, before it is one."""

    def __init__(self, job: Resharded, number: int, index: int, servers: int) -> None:
        super().__init__(job, number)
        self.index, self._servers = index, servers
        self._attempt = 0
        self._server: MovingServer | None = None
        self.layout = 0
        self.ask(Offer(index, number, servers))

    def serves(self, server: MovingServer) -> bool:
        """Whether this is the process of a server."""
        return self._server is server

    def hear(self, reply: Reply) -> None:
        """See `_Process`."""
        if isinstance(reply, Cut):
            self.layout = reply.layout
            self.job.take(reply, lambda stood: self._take(reply, stood), self.number)
        elif isinstance(reply, Again):
            self._attempt += 1
            self.ask(Offer(self.index, self.number, self._servers, self._attempt))
        elif isinstance(reply, Settled):
            assert self._server is not None
            self._server.shard.heard_of_layout(reply.heard)
            self.job.watch(self._server)

    def _take(self, cut: Cut, stood: list[Stood]) -> None:
        if not stood:
            self.ask(Ready(self.index, cut.layout, error=_NO_ROWS))
            return
        self._server = self.job.new_server(self.index, cut.layout, stood[0])
        seat = _seat(self._server.index)
        self.ask(Ready(self.index, cut.layout, seat, tuple({each.mark for each in stood})))


class Asker(_Process):
    """The command that asks for servers, and starts them."""

    def __init__(self, job: Resharded, number: int, wish: Reshard) -> None:
        super().__init__(job, number)
        self._wish = wish
        self.spares: list[Spare] = []
        self.ask(Scale(number, wish.servers))

    def hear(self, reply: Reply) -> None:
        """See `_Process`."""
        if isinstance(reply, Agreed):
            for index in range(reply.before, reply.servers):
                self.spares.append(self.job.spare(index, reply.servers))
            if self._wish.dies is not None:
                self.job.strike(self, self._wish)
            self.ask(AwaitScale(self.number))


class Resharded(Simulation):
    """One job whose servers change."""

    servers: list[Any]

    def __init__(self, schedule: Schedule, trace: Trace | None) -> None:
        super().__init__(schedule, trace)
        self._watchers = []
        self._others: list[Caller] = []
        self._processes = _PROCESS
        self._since_s = 0.0
        self._checkpoint = 0
        self._gone: set[int] = set()
        self.spares: list[Spare] = []
        self.movers: dict[int, _Process] = {}  # by server
        self._uneven: set[int] = set()  # layouts whose rows would have different updates
        # By layout: what only some rows have, and nobody may push again; who had what of it.
        self._halves: dict[int, tuple[frozenset[UpdateKey], dict[int, frozenset[UpdateKey]]]] = {}
        self._in_force: set[int] = set()
        for server in self.servers:
            self._let_move(server)
            if server.index:
                self.watch(server, start=False)

    def run(self) -> None:
        """See `Simulation`."""
        for wish in self.schedule.reshards:
            self.events.after(wish.at_s, self._wish, wish)
        self._attend()
        super().run()

    def _conclude(self, ended: bool) -> None:
        coordinator = self.servers[0].coordinator
        if coordinator.verdict is not None:
            return
        self._check_ended(ended)
        self._note_present()
        self._check_halves()
        self.witness.job_ended([self.servers[each].shard for each in self.witness.present])

    def _server(self, index: int) -> SimServer:
        mode, coordinator = self.schedule.mode, None
        if index == 0:
            servers = self.schedule.servers
            coordinator = CoordinatorCore(mode, self.schedule.workers, servers=servers)
        shard = ShardCore(mode, follows=index > 0)
        return MovingServer(
            index, index, shard, coordinator, self._network, self.witness, self._trace
        )

    # What processes ask of it.

    def caller(self, wake: Callable[[], None]) -> Caller:
        """What a process that is no worker says its words with."""
        caller = self._caller_of(wake)
        self._others.append(caller)
        return caller

    def watch(self, server: MovingServer, *, start: bool = True) -> None:
        """Let a server hear what the coordinator says."""
        watcher = MovingWatcher(server, self._caller_of)
        self._watchers.append(watcher)
        if start:
            watcher.go_on()

    def spare(self, index: int, servers: int) -> Spare:
        """Start a new server."""
        self._processes += 1
        spare = Spare(self, self._processes, index, servers)
        self.spares.append(spare)
        return spare

    def new_server(self, index: int, layout: int, stood: Stood) -> MovingServer:
        """A server that begins as shard 0 stood at the cut."""
        number = len(self.servers)
        shard: ShardCore = pickle.loads(stood.core)
        shard.settle(fresh=True)
        server = MovingServer(number, index, shard, None, self._network, self.witness, self._trace)
        server.layout = layout
        mine: ShardWitness = pickle.loads(stood.witness)
        mine.settle(number)
        self.witness.shards.append(mine)
        self.servers.append(server)
        self._deliver.append(server.receive)
        self._let_move(server)
        return server

    def take(self, cut: Cut, then: Callable[[list[Stood]], None], process: int = 0) -> None:
        """Take rows of all servers of the present layout, when they stand at the cut.

        Nothing comes of it where one is dead.
        """
        givers = [self.servers[each] for each in self.witness.present]

        def look() -> None:
            if process in self._gone:
                return
            stood = [giver.stood.get(cut.layout) for giver in givers]
            change = self.servers[0].coordinator.resharding
            if all(each is not None for each in stood):
                for giver in givers:
                    giver.comes_to(Phase.GIVE)
            if any(giver.dead for giver in givers):
                then([])
            elif all(each is not None for each in stood):
                self.events.after(self._random.uniform(0.0, _TAKES_S), finish, stood)
            elif not self.over and (change.cutting or process):
                self.events.after(_LOOK_S, look)

        def finish(stood: list[Stood]) -> None:
            self._compare(
                cut, {giver.index: each for giver, each in zip(givers, stood, strict=True)}
            )
            if process not in self._gone:
                then([] if any(giver.dead for giver in givers) else stood)
            for giver in givers:
                giver.comes_to(Phase.GAVE)

        look()

    def _compare(self, cut: Cut, stood: Mapping[int, Stood]) -> None:
        """All rows have the same updates, but for those of workers' own that are gone."""
        assert cut.view is not None
        active = dict(cut.view.active)
        applied = [each.applied for each in stood.values()]
        differing = frozenset.union(*applied) - frozenset.intersection(*applied)
        gone = frozenset(
            key
            for key in differing
            if key.stream.kind is StreamKind.WORKER and key.stream.major not in active
        )
        if differing != gone:
            self._uneven.add(cut.layout)
        self._halves[cut.layout] = gone, {n: each.applied for n, each in stood.items()}

    def _check_halves(self) -> None:
        """What some rows of a layout lack, nobody adds to the others a second time."""
        for layout in self._in_force & self._halves.keys():
            halves, had = self._halves[layout]
            for server in self.witness.present:
                before = had.get(server, had[0])  # a new one is as shard 0 was
                if again := self.witness.shards[server].applied & halves - before:
                    raise CheckError(f"server {server} has {again} in some of its rows twice")

    def strike(self, asker: Asker, wish: Reshard) -> None:
        """Let a new server or the command die, unless the layout is in force by then."""

        def die(process: _Process) -> None:
            if isinstance(process, Spare) and 0 < process.layout <= self._layout:
                return
            process.caller.abandon()
            self._gone.add(process.number)
            self.servers[0].lose(process.number, "its connection was closed")

        if wish.dies == -1:
            self.events.after(wish.dies_after_s, die, asker)
            return
        for spare in asker.spares:
            if spare.index == wish.dies:
                self.events.after(wish.dies_after_s, die, spare)

    # What the coordinator's shell does.

    @property
    def _layout(self) -> int:
        layout: int = self.servers[0].coordinator.resharding.layout
        return layout

    @property
    def over(self) -> bool:
        """Whether nobody works any more."""
        ended = not self._to_come and all(worker.finished for worker in self.workers)
        return self.servers[0].coordinator.members.finished or (bool(self.workers) and ended)

    def _wish(self, wish: Reshard) -> None:
        if not self.over:
            self._processes += 1
            Asker(self, self._processes, wish)

    def _let_move(self, server: MovingServer) -> None:
        mover = self.movers[server.index] = _Process(self, -server.index)

        def ready(cut: Cut, stood: list[Stood]) -> None:
            if server.dead or not server.stands_at(cut.number):
                return
            if not stood:
                mover.ask(Ready(server.shard_index, cut.layout, error=_NO_ROWS))
                return
            server.next_layout = cut.layout
            marks = tuple({each.mark for each in stood})
            mover.ask(Ready(server.shard_index, cut.layout, _seat(server.index), marks))
            server.comes_to(Phase.READY)

        server.takes = lambda cut: self.take(cut, lambda stood: ready(cut, stood))

    def _attend(self) -> None:
        """See a change through, as `Reshaper` does."""
        coordinator = self.servers[0].coordinator
        if self.over:
            return
        change, now_s = coordinator.resharding, self.clock.now()
        if not change.under_way:
            self._since_s = now_s
        elif change.may_cut and self.witness.made(self._checkpoint):
            self._note_present()
            self._since_s = now_s
            self.witness.halted(0, True)
            self.servers[0].about(lambda: change.begin(self.servers[0].shard, "giver") or [])
        elif now_s - self._since_s > _HELD_S:
            self.servers[0].about(lambda: change.give_up("it takes too long"))
        self._note_present()
        self.events.after(_LOOK_S, self._attend)

    def _note_present(self) -> None:
        seats = self.servers[0].coordinator.resharding.seats
        if self._layout in self._uneven:
            raise CheckError(f"the rows of layout {self._layout} have different updates")
        self._in_force.add(self._layout)
        if seats:
            self.witness.present = [seat.number for seat in seats]

    def _cut(self, number: int) -> None:
        coordinator = self.servers[0].coordinator
        if number <= self._checkpoint:
            return  # a later one came first
        if coordinator.resharding.cutting:
            if not self.over:
                self.events.after(_LOOK_S, self._cut, number)
            return
        self._note_present()
        self._checkpoint = number
        super()._cut(number)

    def _ended(self) -> None:
        super()._ended()
        if not self._to_come and all(worker.finished for worker in self.workers):
            for caller in self._others:
                caller.abandon()


def _seat(number: int) -> Seat:
    return Seat(f"server{number}", number, "", "", "")


def simulate(
    mode: str, seed: int, *, churn: bool = False, trace: bool = False, optimizer: str | None = None
) -> list[str]:
    """Draw a job whose servers change, run it and check it; returns its trace, if asked for.

    Raises SimulationError.
    """
    schedule = draw(mode, seed, churn=churn, reshards=True)
    lines: list[str] = []
    job = Resharded(schedule, lines.append if trace else None)
    run(job, lines, replay_command("resharding", mode, seed, churn=churn))
    layout = job.servers[0].coordinator.resharding.layout
    return [*lines, f"{mode} {seed}: layout {layout}, {job.events.events_run} events"]


def main(arguments: list[str] | None = None) -> int:
    """See `run_seeds`."""
    return run_seeds("resharding", simulate, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
