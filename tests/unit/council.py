"""The coordinator's core beside its own shard's, which knows each view at once."""

from __future__ import annotations

from typing import Any

from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.decisions import Answer, Decision
from psrpc.core.shard import ShardCore
from psrpc.messages import (
    Acquire,
    Bye,
    Failure,
    Granted,
    Idle,
    Lease,
    Leave,
    Push,
    Register,
    Reply,
    Request,
    UpdateKey,
)
from psrpc.modes import Mode

FIRST_PROCESS = 100  # so that no process has its worker's number


class Council:
    """Hands words to the two cores as a shell does. Unless `come` is False all are there."""

    def __init__(self, mode: Mode, workers: int, *, come: bool = True, **options: Any) -> None:
        self.core = CoordinatorCore(mode, workers, **options)
        self.shard = ShardCore(mode)
        if come:
            for rank in range(workers):
                self.say(register(rank), -1 - rank)

    def say(self, word: Request, token: int) -> list[Decision]:
        """A word to the coordinator has come."""
        decide: dict[type[Request], Any] = {
            Register: self.core.register,
            Acquire: self.core.acquire,
            Idle: self.core.idle,
            Leave: self.core.leave,
            Bye: self.core.bye,
        }
        decisions: list[Decision] = decide[type(word)](word, token, self.shard)
        return [*decisions, *self.shard.adopt(self.core.members.view)]

    def lose(self, rank: int, why: str = "it is silent") -> list[Decision]:
        """The first process of `rank` is taken for dead."""
        decisions = self.core.lose(FIRST_PROCESS + rank, why, self.shard)
        return [*decisions, *self.shard.adopt(self.core.members.view)]

    def take(self, worker: int, serial: int, **more: Any) -> Lease:
        """The lease that `worker` is given at once."""
        token = 1000 * (worker + 1) + serial
        lease = granted(self.say(ask(worker, serial, **more), token))[token].lease
        assert lease is not None
        return lease

    def push(self, worker: int, clock: int, key: UpdateKey, **more: Any) -> list[Decision]:
        """An update of `worker` comes to the shard."""
        return self.shard.push(Push(worker, clock, key, 1, **more), 500_000 + 1000 * worker + clock)


def register(rank: int | None, *, serial: int = 0, process: int | None = None) -> Register:
    """The word with which a process comes; by default the first one of `rank`."""
    number = process if process is not None else FIRST_PROCESS + (rank or 0)
    return Register(number, 1, (), rank=rank, serial=serial)


def ask(worker: int, serial: int, *, clock: int = 0, epoch: int = 0, **more: Any) -> Acquire:
    """A worker's request for a lease, of an epoch of 12 samples unless told otherwise."""
    more.setdefault("samples", 12)
    return Acquire(worker, serial, clock, epoch, **more)


def answers(decisions: list[Decision]) -> dict[int, Reply]:
    """The answers, by token."""
    return {d.token: d.reply for d in decisions if isinstance(d, Answer)}


def granted(decisions: list[Decision]) -> dict[int, Granted]:
    """The grants, by token."""
    return {t: reply for t, reply in answers(decisions).items() if isinstance(reply, Granted)}


def refused(decisions: list[Decision]) -> dict[int, str]:
    """The names of the errors that were answered, by token."""
    found = answers(decisions).items()
    return {token: reply.error[0] for token, reply in found if isinstance(reply, Failure)}
