"""A server that goes from layout to layout, alone, and one that takes another's place meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from psrpc.errors import JobFailedError, PsrpcError
from psrpc.job import Job
from psrpc.messages import Reply, Request, View
from psrpc.modes import Asynchronous
from psrpc.mover import Mover
from psrpc.moves import Ready, Retire, Seat, Settled
from psrpc.orders import Closed, Cut, Halt
from psrpc.secret import Secret
from psrpc.server import ParameterServer
from psrpc.store.blueprint import Blueprint, draw
from psrpc.store.shard import ShardStore
from psrpc.watcher import Watcher

PATIENCE_S = 20.0
BEFORE, AFTER = 2, 3  # servers
CUT = Cut(-1, layout=1, servers=AFTER, givers=("nowhere:1", "nowhere:2"))


class Door:
    """Where workers come in; `shut` is set when they cannot any more."""

    seat = Seat("server1", 1, "", "", "")

    def __init__(self) -> None:
        self.shut = threading.Event()

    def close(self) -> None:
        self.shut.set()


class Shard:
    """Server 1 of two, with what moves it, if it has that: `doors` are by how many servers."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 30)
        self.job = Job(1, BEFORE, Asynchronous())
        self.blueprint: Blueprint = draw(self.model, partial(torch.optim.Adam, lr=0.1))
        self.server = ParameterServer(self.job, 1, self.blueprint, self.store(BEFORE))
        self.doors: dict[int, Door] = {}
        self.told: list[Ready] = []

    def store(self, servers: int) -> ShardStore:
        layout = self.blueprint.layouts(servers)[1]
        return ShardStore(self.blueprint, layout, self.model, self.job.reduction)

    def open(self, servers: int) -> Door:
        door = self.doors[servers] = Door()
        return door

    def mover(self) -> Mover:
        parts, at = (self.server, self.blueprint, self.model), ("127.0.0.1", Secret(b"of tests"))
        return Mover(*parts, at, self.open, self.told.append, self.open(BEFORE))


def test_an_heir_that_was_told_nowhere_to_give_rows_takes_none_and_goes_on() -> None:
    """The one before had halted, and died before it heard where the cut is."""
    shard = Shard()
    shard.server.obey(Halt(-1, 1))
    shard.mover()
    shard.server.obey(CUT)
    assert shard.server.core.moving == 1
    shard.server.obey(Cut(-1))
    assert shard.server.core.moving == 0
    assert not shard.told


def test_a_change_that_comes_to_nothing_leaves_no_rows() -> None:
    """With a mover, as a primary is, and without, as its backup."""
    for moved in (True, False):
        shard = Shard()
        if moved:
            shard.mover()
        shard.server.obey(Halt(-1, 1))
        shard.server.prepare(1, AFTER, shard.store(AFTER))
        shard.server.obey(Cut(5))  # another one's
        assert shard.server.next is not None
        shard.server.obey(Cut(-1))
        assert shard.server.next is None


def test_rows_that_come_when_their_layout_was_given_up_are_not_kept() -> None:
    shard = Shard()
    shard.server.obey(Halt(-1, 1))
    shard.server.obey(Cut(-1))
    shard.server.prepare(1, AFTER, shard.store(AFTER))
    assert shard.server.next is None


def test_an_heir_shuts_the_doors_of_a_layout_that_is_given_up_and_no_others() -> None:
    shard = Shard()
    shard.server.obey(Halt(-1, 1))
    shard.server.prepare(1, AFTER, shard.store(AFTER))
    mover = shard.mover()
    mover.reopen()
    shard.server.obey(Cut(0))  # a checkpoint's
    assert not shard.doors[AFTER].shut.is_set()
    shard.server.obey(Cut(-1))
    assert shard.doors[AFTER].shut.wait(PATIENCE_S)
    assert not shard.doors[BEFORE].shut.is_set()


def test_rows_of_another_layout_are_not_those_of_the_one_in_force() -> None:
    shard = Shard()
    shard.server.obey(Halt(-1, 1))
    shard.server.prepare(1, AFTER, shard.store(AFTER))
    with pytest.raises(JobFailedError, match="layout 2 is in force, and its rows have not come"):
        shard.server.obey(Settled(2, AFTER))
    shard.server.obey(Settled(1, AFTER))
    assert (shard.server.layout, shard.server.servers) == (1, AFTER)


class Words:
    """A `Link` to a coordinator that says these words."""

    def __init__(self, *words: Reply) -> None:
        self._words = list(words)

    def call(self, request: Request, tensors: Sequence[torch.Tensor] = ()) -> Words:
        return self

    def wait(self, timeout_s: float | None = None) -> tuple[Reply, list[torch.Tensor]]:
        return self._words.pop(0), []


class Clumsy:
    """A `Listener` that can take nothing in."""

    def __init__(self) -> None:
        self.failure: list[PsrpcError] = []
        self.failed = threading.Event()

    def adopt(self, view: View) -> None:
        raise AssertionError

    def tell(self, closed: Closed) -> None:
        raise AssertionError

    def obey(self, word: Halt | Cut | Settled | Retire) -> None:
        raise AssertionError("no such word")

    def fail(self, error: PsrpcError) -> None:
        self.failure.append(error)
        self.failed.set()


def test_a_word_that_a_server_cannot_take_in_ends_the_job() -> None:
    clumsy: Any = Clumsy()
    link: Any = Words(Halt(-1, 1))
    Watcher(link, Shard().server, clumsy).start()
    assert clumsy.failed.wait(PATIENCE_S)
    (error,) = clumsy.failure
    assert isinstance(error, JobFailedError)
    assert str(error) == "server 1: AssertionError: no such word"
