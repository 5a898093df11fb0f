"""A coordinator beside its shard, as servers keep them: the shard knows each new view at once."""

from __future__ import annotations

from typing import Any

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.decisions import Answer, Decision, Token
from psrpc.core.shard import ShardCore
from psrpc.messages import (
    Acquire,
    Bye,
    Failure,
    Granted,
    Idle,
    Lease,
    Leave,
    Left,
    Pull,
    Push,
    Register,
    Reply,
    UpdateKey,
    Welcome,
)
from psrpc.modes import Mode
from psrpc.orders import Watch


class Office:
    """Takes words of workers and of servers, each under a token that the test chooses."""

    def __init__(self, mode: Mode, workers: int, **options: Any) -> None:
        self.core = CoordinatorCore(mode, workers, **options)
        self.shard = ShardCore(mode)
        self.clocks: dict[int, int] = {}

    def register(
        self, process: int, token: Token, *, serial: int = 0, rank: int | None = None
    ) -> list[Decision]:
        words = Register(process, 1, (), serial=serial, rank=rank)
        return self._told(self.core.register(words, token, self.shard))

    def acquire(self, request: Acquire, token: Token) -> list[Decision]:
        return self._told(self.core.acquire(request, token, self.shard))

    def idle(self, request: Idle, token: Token) -> list[Decision]:
        return self._told(self.core.idle(request, token, self.shard))

    def leave(self, request: Leave, token: Token) -> list[Decision]:
        return self._told(self.core.leave(request, token, self.shard))

    def bye(self, request: Bye, token: Token) -> list[Decision]:
        return self._told(self.core.bye(request, token, self.shard))

    def lose(self, process: int, why: str = "it is silent") -> list[Decision]:
        return self._told(self.core.lose(process, why, self.shard))

    def watch(self, server: int, epoch: int, token: Token) -> list[Decision]:
        return self.core.watch(Watch(server, epoch), token, self.shard)

    def push(self, worker: int, key: UpdateKey, token: Token = -50) -> list[Decision]:
        """A worker's next push arrives at the coordinator's shard."""
        clock = max(self.clocks.get(worker, 0), self.shard.gate.clock(worker))
        self.clocks[worker] = clock + 1
        return self.shard.push(Push(worker, clock, key, samples=1), token)

    def pull(self, worker: int, clock: int, token: Token) -> list[Decision]:
        return self.shard.pull(Pull(worker, clock), token)

    def _told(self, decisions: list[Decision]) -> list[Decision]:
        self.shard.adopt(self.core.members.view)
        return decisions


def full_office(mode: Mode, workers: int, **options: Any) -> Office:
    """One to which all workers have come: process, rank and number of each are the same."""
    office = Office(mode, workers, **options)
    for process in range(workers):
        office.register(process, -1 - process, rank=process)
    return office


def ask(worker: int, serial: int, *, clock: int = 0, epoch: int = 0, **more: Any) -> Acquire:
    """A request for work: 12 samples, one a batch, unless told otherwise."""
    more.setdefault("samples", 12)
    return Acquire(worker, serial, clock, epoch, **more)


def answers(decisions: list[Decision]) -> dict[Token, Reply]:
    """What is answered to whom, by token."""
    return {d.token: d.reply for d in decisions if isinstance(d, Answer)}


def granted(decisions: list[Decision]) -> dict[Token, Granted]:
    """The grants, by token."""
    return {t: r for t, r in answers(decisions).items() if isinstance(r, Granted)}


def lease_of(decisions: list[Decision], token: Token) -> Lease:
    """The lease that is granted to a token."""
    lease = granted(decisions)[token].lease
    assert lease is not None
    return lease


def refused(decisions: list[Decision]) -> dict[Token, str]:
    """The names of the errors that are answered, by token."""
    return {t: r.error[0] for t, r in answers(decisions).items() if isinstance(r, Failure)}


def welcomed(decisions: list[Decision]) -> dict[Token, tuple[int, int]]:
    """The (number, rank) that are given, by token."""
    found = answers(decisions).items()
    return {t: (r.worker, r.rank) for t, r in found if isinstance(r, Welcome)}


def left(decisions: list[Decision]) -> dict[Token, bool]:
    """Who has left, by token, and whether it is the main one."""
    return {t: r.main for t, r in answers(decisions).items() if isinstance(r, Left)}
