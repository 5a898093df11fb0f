"""What happens to servers that have no backups, and what is left of them: checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Any

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.decisions import Apply, Decision, Image, Token
from psrpc.core.ledger import Ledger
from psrpc.core.shard import ShardCore
from psrpc.counts import EpochLeases
from psrpc.messages import Push, Request, UpdateKey, View
from psrpc.store.image import ShardImage
from psrpc.testing.calls import CheckError
from psrpc.testing.machines import Machine, Step
from psrpc.testing.schedule import Schedule, draw


class Fall(Enum):
    """Where a server dies."""

    RECEIVE = "a request has come"
    APPLY = "a request is taken in, and answered to nobody"
    REPLY = "an answer is sent"
    IMAGE = "an image is made for a checkpoint, and not written"
    COME = "it has come anew"


@dataclass(frozen=True)
class Death:
    """The server of `shard` dies when `fall` comes for the `after`th time, or soon after that.

    Nobody dies before the job's first checkpoint: that ends it.
    """

    shard: int
    fall: Fall
    after: int
    number: int


@dataclass(frozen=True)
class Tale:
    """A job, and the deaths of its servers."""

    schedule: Schedule
    deaths: tuple[Death, ...]
    optimizer: str | None = None


def draw_tale(
    mode: str, seed: int, *, churn: bool, optimizer: str | None = None, epochs: int = 2
) -> Tale:
    """Draw a job for `mode`; with `churn` workers die as well."""
    schedule = draw(mode, seed, epochs=epochs, churn=churn)
    random = Random(f"lives {mode} {seed} {churn}")
    deaths = tuple(
        Death(
            shard=random.randrange(schedule.servers),
            fall=random.choice(tuple(Fall)),
            after=random.choice((1, 1, 2, random.randint(1, 60))),
            number=number,
        )
        for number in range(random.randint(1, 4))
    )
    return Tale(schedule, deaths, optimizer)


class Book:
    """A witness of one life of one server: each update is applied once, and of this life."""

    def __init__(self, first: int) -> None:
        self.applied: set[UpdateKey] = set()
        self.names: dict[UpdateKey, frozenset[UpdateKey]] = {}  # of each update: all its batches
        self._first = first
        self._pushes: dict[Token, Push] = {}

    def received(self, server: int, token: Token, request: Request) -> None:
        """See `Witness`."""
        if isinstance(request, Push):
            self._pushes[token] = request

    def decided(
        self, server: int, token: Token, decisions: Sequence[Decision], core: ShardCore
    ) -> None:
        """See `Witness`."""
        self._look(server, decisions)

    def adopted(
        self, server: int, view: View, decisions: Sequence[Decision], core: ShardCore
    ) -> None:
        """See `Witness`."""
        self._look(server, decisions)

    def convened(self, token: Token | None, decisions: Sequence[Decision]) -> None:
        """See `Witness`."""
        self._look(0, decisions)

    def dropped(self, worker: int, key: UpdateKey) -> None:
        """See `Witness`."""

    def halted(self, server: int, halted: bool) -> None:
        """See `Witness`."""

    def lost(self, worker: int) -> None:
        """See `Witness`."""

    def _look(self, server: int, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            for token in decision.tokens if isinstance(decision, Apply) else ():
                push = self._pushes[token]
                if push.worker < self._first:
                    raise CheckError(f"shard {server} applies {push.key} of an earlier life")
                keys = self.names[push.key] = frozenset((push.key, *push.also))
                if again := self.applied & keys:
                    raise CheckError(f"shard {server} has {again} in its weights already")
                self.applied |= keys


@dataclass(frozen=True)
class Part:
    """A server's part of a checkpoint: what it decides by, its history so far, its weights."""

    record: dict[str, Any]
    history: tuple[Step, ...]
    names: dict[UpdateKey, frozenset[UpdateKey]]
    image: ShardImage | None


def part_of(machine: Machine, image: Image) -> Part:
    """A server's part, as it is now."""
    weights = None if machine.weights is None else machine.weights.image()
    names = machine.witness.names  # type: ignore[attr-defined]
    mine = {key: names[key] for step in machine.history for key, _ in step}
    return Part(image.record, tuple(machine.history), mine, weights)


@dataclass
class Saved:
    """One checkpoint: every server's part, and what the coordinator knew when all were there."""

    parts: dict[int, Part] = field(default_factory=dict)
    epochs: tuple[EpochLeases, ...] = ()
    incarnation: int = 0
    made: bool = False

    @property
    def ledgers(self) -> list[Ledger]:
        """Those of all shards."""
        return [Ledger.from_json(part.record["ledger"]) for part in self.parts.values()]

    def restore(self, machine: Machine) -> None:
        """Let a new server go on from here."""
        part = self.parts[machine.index]
        machine.shard.restore(part.record)
        machine.history = list(part.history)
        machine.witness.names = dict(part.names)  # type: ignore[attr-defined]
        machine.witness.applied = set().union(*part.names.values())  # type: ignore[attr-defined]
        if machine.weights is not None and part.image is not None:
            machine.weights.restore(part.image)


class Folder:
    """The checkpoints of a job."""

    def __init__(self, servers: int) -> None:
        self._servers = servers
        self._saved: list[Saved] = []  # by number, from 1 on

    def begin(self) -> int:
        """The number of one more."""
        self._saved.append(Saved())
        return len(self._saved)

    def put(self, number: int, server: int, part: Part) -> bool:
        """A server's part is written; returns whether that was the last one."""
        parts = self._saved[number - 1].parts
        parts[server] = part
        return len(parts) == self._servers

    def finish(self, number: int, coordinator: CoordinatorCore) -> None:
        """All parts are there; they are good together as the checkpointer compares them."""
        saved, leases = self._saved[number - 1], coordinator.leases
        workers = coordinator.members.live
        if len({ledger.digest(workers, leases.unsettled) for ledger in saved.ledgers}) == 1:
            saved.epochs, saved.incarnation = coordinator.leases.export(), coordinator.incarnation
            saved.made = True

    def made(self, number: int) -> bool:
        """Whether a checkpoint is whole."""
        return self._saved[number - 1].made

    @property
    def newest(self) -> Saved | None:
        """The newest one that is whole."""
        return next((saved for saved in reversed(self._saved) if saved.made), None)
