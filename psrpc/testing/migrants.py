"""Simulated servers in pairs that go from layout to layout: both of a pair at the same entries.

A primary takes the rows of its shard of a new layout, which then are an entry, as everything is
that it takes in. It says that it is ready when its backup has that entry.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.decisions import Decision, Image
from psrpc.core.replication import Reign
from psrpc.core.shard import ShardCore
from psrpc.messages import Done, Failure, Reply, Request
from psrpc.moves import Again, Moved, Offer, Ready, Retire, Seat, Settled
from psrpc.orders import Cut, Halt, Watch
from psrpc.store.image import ShardImage
from psrpc.testing.calls import Call, Caller, CheckError, Trace
from psrpc.testing.machines import Entry, Machine, Step
from psrpc.testing.moving import MovingServer, Stood
from psrpc.testing.network import Network
from psrpc.testing.ordeal import Moment
from psrpc.testing.replicas import SimReplica, World
from psrpc.testing.shard_witness import ShardWitness
from psrpc.testing.witness import Witness

_PROCESS = 10_000  # that many more than its own is the number by which the coordinator knows one


class Begin(NamedTuple):
    """The servers are to be cut; the coordinator's own gives its rows away at `giver`."""

    giver: str


class GiveUp(NamedTuple):
    """The change under way comes to nothing."""

    why: str


class Rows(NamedTuple):
    """What a shard of `layout` begins with; a new one begins as shard 0 stood at the cut."""

    layout: int
    stood: Standing | None


class Standing(NamedTuple):
    """What a server has at a cut, beside its decisions: its weights, and how they came about."""

    stood: Stood
    history: list[Step]
    weights: ShardImage | None


@dataclass(eq=False, slots=True)
class Own(Call):
    """An entry of the server's own; it hears when its backup has it."""


class MovingMachine(MovingServer, Machine):
    """One server's state, in one layout after another. `fresh` until it is in one.

    `moving` is the layout for which it has halted.
    """

    def __init__(
        self,
        place: int,
        index: int,
        shard: ShardCore,
        coordinator: CoordinatorCore | None,
        network: Network,
        witness: Witness,
        optimizer: str | None,
        trace: Trace | None,
    ) -> None:
        Machine.__init__(self, place, shard, coordinator, network, witness, optimizer, trace)
        self.be_shard(index)
        self._next_token = place * 1_000_000  # a new one's witness knows those of shard 0
        self.fresh = False
        self.moving = 0
        self.retired = False
        self.standing: dict[int, Standing] = {}
        self.strikes: Callable[[Moment], None] = lambda moment: None

    @property
    def listens(self) -> bool:  # type: ignore[override]
        """See `Machine`."""
        return not self.fresh and not self.retired

    def watch(self, rounds: int, number: int) -> Watch:
        """See `Machine`."""
        watch = self.shard.watches(self.shard_index, rounds)
        return replace(watch, layout=self.layout, giver=str(number) if self.moving else "")

    def do(self, entry: Entry, call: Call | None = None) -> None:
        """See `Machine`."""
        news, about = entry.news, entry.layout
        if self.left is not None and isinstance(news, Halt | Cut | Settled | Retire):
            self.shard.heard_of_layout()
            self.retired = isinstance(news, Retire) and news.layout >= self.left
        elif isinstance(news, Settled | Retire):
            self._hear_of(news)
        elif isinstance(about, Begin):
            self._begin(about)
        elif isinstance(about, GiveUp):
            assert self.coordinator is not None
            change = self.coordinator.resharding
            self.about(lambda: change.give_up(about.why))
        elif isinstance(about, Rows):
            assert call is None or isinstance(call, Own)
            self._take_rows(about)
            if call is not None:
                self.keep(call, Done())
        else:
            super().do(entry, call)

    def _hear_of(self, news: Settled | Retire) -> None:
        if self.fresh and isinstance(news, Settled):
            self.fresh, self.moving = False, 0
            self.shard.heard_of_layout(news.heard)
            return
        self.hear(news)
        self.shard.heard_of_layout()

    def _begin(self, begin: Begin) -> None:
        assert self.coordinator is not None
        change = self.coordinator.resharding
        if change.may_cut:
            self._witness.halted(0, True)
            self.moving = change.next_layout
            change.begin(self.shard, begin.giver)
            self.about(list)
            self.strikes(Moment.HALT)

    def halt(self, number: int) -> None:
        """See `MovingServer`."""
        if number < 0:
            self.moving = -number
        super().halt(number)
        if number < 0:
            self.strikes(Moment.HALT)

    def cut(self, cut: Cut) -> None:
        """See `MovingServer`."""
        if cut.given_up and cut.number == -self.moving:
            self.moving = 0
        super().cut(cut)

    def settle(self, layout: int, *, stays: bool) -> None:
        """See `MovingServer`."""
        if layout != self.layout and stays and self.next_layout != layout:
            raise CheckError(f"server {self.index} has no rows of layout {layout}, in force")
        super().settle(layout, stays=stays)
        self.moving = 0
        self.strikes(Moment.COMMIT)

    def _take_rows(self, rows: Rows) -> None:
        if self.fresh and rows.stood is not None:
            self.moving = rows.layout
            self._begin_as(rows.stood)
            self.layout = rows.layout
        elif self.moving == rows.layout:
            self.next_layout = rows.layout
        self.strikes(Moment.ROWS)

    def _begin_as(self, standing: Standing) -> None:
        stood, self.history, image = standing
        self.history = [*self.history]
        self.shard = pickle.loads(stood.core)
        self.shard.settle(fresh=True)
        mine: ShardWitness = pickle.loads(stood.witness)
        mine.settle(self.index)
        self._witness.shards[self.index] = mine
        if self.weights is not None and image is not None:
            self.weights.restore(image)

    def copied(self) -> dict[str, Any]:
        """See `Machine`."""
        places = (self.layout, self.next_layout, self.left, self.fresh, self.moving, self.retired)
        standing = copy.copy(self.standing), self.stood.copy(), self._at
        return {**super().copied(), "places": places, "standing": standing}

    def load(self, state: dict[str, Any]) -> None:
        """See `Machine`."""
        super().load(state)
        (
            self.layout,
            self.next_layout,
            self.left,
            self.fresh,
            self.moving,
            self.retired,
        ) = state["places"]
        self.standing, self.stood, self._at = state["standing"]

    def _send_on(self, call: Call) -> None:
        self.keep(call, Moved(self.layout))

    def _carry_out(self, decision: Decision) -> None:
        super()._carry_out(decision)
        if isinstance(decision, Image) and decision.cut.layout:
            layout = decision.cut.layout
            image = self.weights.image() if self.weights is not None else None
            self.standing[layout] = Standing(self.stood[layout], [*self.history], image)
            self.strikes(Moment.STAND)


class MovingWorld(World, Protocol):
    """What surrounds a server whose layout changes."""

    def take(self, replica: MovingReplica, cut: Cut) -> None: ...
    def comes_to_nothing(self, place: int) -> None: ...


class MovingReplica(SimReplica):
    """One server process of a pair that goes from layout to layout."""

    machine: MovingMachine
    _world: MovingWorld

    def __init__(self, number: int, world: MovingWorld, machine: MovingMachine) -> None:
        super().__init__(number, world, machine)
        self._mover: Caller | None = None
        self._word: Call | None = None
        self._attempt = 0
        self._servers = 0
        self._heir = False  # of one that has reigned before
        self._inherited = 0  # the layout for which that one had halted

    def reign(self, reign: Reign, last: int) -> None:
        """See `SimReplica`. What the one before was about, others are told, comes to nothing."""
        machine = self.machine
        machine.strikes = lambda moment: self._world.strike(self, moment)
        machine.takes = self._begin_to_take
        self._mover = self._world.caller_of(self, lambda: self.when_awake(self._hear))
        super().reign(reign, last)
        self._heir = reign.epoch > 1
        self._inherited = machine.moving
        if not self._heir or self.dead:
            return
        coordinator = machine.coordinator
        if coordinator is not None and coordinator.resharding.cutting:
            self.about_layout(GiveUp("its server has died"))
        elif machine.fresh and not machine.moving:
            self._world.comes_to_nothing(self.index)
        elif machine.moving and coordinator is None:
            self.say_ready(machine.moving, (), "its server has died")

    def rest(self) -> None:
        """See `SimReplica`."""
        super().rest()
        if self._mover is not None:
            self._mover.abandon()

    @property
    def paired(self) -> bool:
        """Whether it reigns, and has a backup."""
        return self.serves and self.primary is not None and self.primary.reign.backup is not None

    @property
    def process(self) -> int:
        """By which the coordinator knows it."""
        return _PROCESS + self.number

    def about_layout(self, about: Begin | GiveUp) -> None:
        """The coordinator's shell wants something."""
        if self.serves:
            self._enter(Entry(layout=about), None)

    # A change's phases.

    def offer(self, servers: int) -> None:
        """Want to be one of `servers`."""
        self._servers = servers
        self._tell(Offer(self.machine.shard_index, self.process, servers, self._attempt))

    def _begin_to_take(self, cut: Cut) -> None:
        if cut.layout != self._inherited:
            self._world.take(self, cut)

    def take_rows(self, cut: Cut, standing: list[Standing]) -> None:
        """The rows are here (or not: no `standing`)."""
        if not self.serves:
            return
        if not standing:
            self.say_ready(cut.layout, (), "a server gave no rows")
            return
        marks = tuple({each.stood.mark for each in standing})

        def has_it(call: Call, reply: Reply) -> None:
            self.when_awake(self.say_ready, cut.layout, marks, "")

        first = standing[0] if self.machine.fresh else None
        call = Own(self.index, Request(0), has_it, lambda: False)
        self._enter(Entry(layout=Rows(cut.layout, first)), call)

    def say_ready(self, layout: int, marks: tuple[str, ...], error: str) -> None:
        """Tell the coordinator, whoever it is, that it may count on this server, or not."""
        seat = Seat("", self.index, "", "", "")
        self._tell(Ready(self.machine.shard_index, layout, seat, marks, error))
        self._world.strike(self, Moment.READY)

    def _tell(self, word: Offer | Ready) -> None:
        if self.serves and self._mover is not None and not self._world.over:
            self._word = self._mover.ask(0, word)
            self._mover.wait_for([self._word])

    def _hear(self) -> None:
        reply = self._word.reply if self._word is not None else None
        self._word = None
        if not self.serves or not self.machine.fresh:
            return
        if isinstance(reply, Cut):
            self._world.take(self, reply)
        elif isinstance(reply, Again) and not self._heir:
            self._attempt += 1
            self.offer(self._servers)
        elif isinstance(reply, Again | Failure):
            self._world.comes_to_nothing(self.index)
        elif isinstance(reply, Settled):
            self._enter(Entry(news=reply), None)
            self.when_awake(self.listen)
