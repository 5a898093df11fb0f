"""Servers that die, hang or are late, over the planes that leave the process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from psrpc.errors import PeerLostError
from psrpc.job import Job
from psrpc.messages import Ping, Pull, Push, Request, Stepped
from psrpc.modes import Synchronous
from psrpc.planes.base import Pending
from psrpc.planes.conductor import Enter
from psrpc.planes.rpc import Asked, Patience, RpcLink
from tests.contract.fleet import Dock, Plan, ServerProcess, until
from tests.contract.hand import Hand

PLANES = ["rpc", "stream", "shm", "collective"]
# Far below the minute after which whoever gets no answer asks whether the server lives.
SOON_S = 5.0
PLAN = Plan(Job(2, mode=Synchronous()))


@contextmanager
def soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON_S


class Waiting:
    """A thread that waits for an answer, without a time limit."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self.error: Exception | None = None
        self.reply: object = None
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(30.0)
        assert not self._thread.is_alive(), "it still waits"

    def _wait(self) -> None:
        try:
            self.reply = self._pending.wait()[0]
        except Exception as error:
            self.error = error


@dataclass(frozen=True)
class Held:
    """A server that holds an exchange and a call of each hand, one on each plane."""

    process: ServerProcess
    hands: list[Hand]
    pending: list[Pending]


@contextmanager
def holding(dock: Dock, process: ServerProcess, patience: Patience) -> Iterator[Held]:
    workers = len(PLANES) + 1
    fleet = dock.fleet_of([process], "rpc", Plan(Job(workers, mode=Synchronous())), patience)
    hands = [Hand(fleet, worker, plane) for worker, plane in enumerate(PLANES)]
    pending = []
    for hand in hands:
        hand.begin(workers=workers)
        pending.append(hand.link.exchange(hand.push(), send=True, land=True))
        pending.append(hand.link.call(Pull(hand.worker, 1)))
        hand.link.call(Ping(0)).wait(30.0)
    assert not any(each.done() for each in pending)
    yield Held(process, hands, pending)
    fleet.close()


def be_patient(held: Held, patience: Patience) -> None:
    """Let all links have another patience, with which a busy server may have lost them before."""
    for hand in held.hands:
        getattr(hand.link, "control", hand.link).patience = patience


def all_lost(waiting: list[Waiting]) -> bool:
    with soon():
        for each in waiting:
            each.join()
    return all(type(each.error) is PeerLostError for each in waiting)


def assert_lost(call: Callable[[], object]) -> None:
    with soon(), pytest.raises(PeerLostError, match=r"server\d+ .*(died or left|is closed)"):
        call()


def test_a_killed_server_is_noticed_by_all_calls(dock: Dock) -> None:
    with holding(dock, dock.process(), Patience()) as held:
        waiting = [Waiting(each) for each in held.pending]
        held.process.kill()
        assert all_lost(waiting)
        for each in held.pending:
            assert each.done()
            assert_lost(partial(each.wait, SOON_S))
        for hand in held.hands:
            assert_lost(lambda hand=hand: hand.link.call(Ping(0)).wait())
            assert_lost(
                lambda hand=hand: hand.link.exchange(hand.push(), send=True, land=True).wait()
            )
        assert_lost(RpcLink(dock.agent, held.process.address).connect)


def test_a_server_that_hangs_is_given_up(dock: Dock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, it keeps its sockets open and says nothing: it is asked, and does not answer."""
    monkeypatch.setattr("psrpc.planes.shm._ASK_AFTER_S", 0.5)
    with holding(dock, dock.process(), Patience(attempt_s=0.5)) as held:
        os.kill(held.process.pid, signal.SIGSTOP)
        be_patient(held, Patience(attempt_s=0.5, ping_s=1.0))
        assert all_lost([Waiting(each) for each in held.pending])
        held.process.kill()


def test_a_server_that_is_silent_for_a_while_is_waited_for(
    dock: Dock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psrpc.planes.shm._ASK_AFTER_S", 0.2)
    with holding(dock, dock.process(), Patience(attempt_s=0.2)) as held:
        be_patient(held, Patience(attempt_s=0.2, ping_s=0.2, silent_s=60.0))
        pings = counted(monkeypatch, Ping)
        os.kill(held.process.pid, signal.SIGSTOP)
        waiting = [Waiting(each) for each in held.pending]
        until(lambda: len(pings) >= 4 * len(waiting))
        os.kill(held.process.pid, signal.SIGCONT)
        held.hands[0].link.call(Ping(0)).wait(30.0)
        assert [each.error for each in waiting] == [None] * len(waiting)
        held.process.kill()
        assert all_lost(waiting)


def counted(monkeypatch: pytest.MonkeyPatch, *kinds: type[Request]) -> list[Request]:
    """The requests of these kinds that links send from now on."""
    sent: list[Request] = []
    ask = RpcLink._ask

    def counting(self: RpcLink, request: Request, *rest: Any) -> Asked:
        if isinstance(request, kinds):
            sent.append(request)
        return ask(self, request, *rest)

    monkeypatch.setattr(RpcLink, "_ask", counting)
    return sent


def test_a_server_that_no_longer_serves_is_lost(dock: Dock) -> None:
    fleet = dock.fleet("rpc", PLAN)
    hand, other = Hand(fleet), Hand(fleet, 1, "shm")
    hand.begin(workers=2)
    held = other.link.exchange(other.push(), send=True, land=True)
    dock.processes[0].order(None)
    assert_lost(held.wait)
    assert_lost(lambda: hand.link.call(Ping(0)).wait())
    assert_lost(lambda: other.link.exchange(other.push(), send=True, land=True).wait())
    with pytest.raises(PeerLostError, match="is not serving"):
        RpcLink(dock.agent, dock.processes[0].address).connect()
    fleet.close()


# A late answer: the call is sent again, and applied once.


@pytest.fixture(params=["rpc", "collective"])
def impatient(request: pytest.FixtureRequest, dock: Dock) -> Iterator[tuple[Hand, Hand]]:
    fleet = dock.fleet(request.param, PLAN, Patience(attempt_s=0.2))
    hands = Hand(fleet, 0), Hand(fleet, 1)
    for hand in hands:
        hand.begin(workers=2)
    yield hands
    fleet.close()


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The pushes that were sent."""
    return counted(monkeypatch, Push, Enter)


def test_a_held_call_is_sent_again_and_applied_once(
    impatient: tuple[Hand, Hand], pushes: list[Request]
) -> None:
    hand, other = impatient
    before = hand.flats.weights[0].clone()
    hand.flats.gradients[0].fill_(2.0)
    held = hand.link.exchange(hand.push(), send=True, land=True)
    waiting = Waiting(held)
    until(lambda: len(pushes) > 3)
    assert waiting.reply is None
    other.link.exchange(other.push(void=True), send=False, land=True).wait(30.0)
    waiting.join()
    assert waiting.error is None
    assert waiting.reply == Stepped(1)
    torch.testing.assert_close(hand.flats.weights[0], before - 2.0)
    counts = hand.stats().shard
    assert (counts.updates_applied, counts.optimizer_steps) == (2, 1)


def test_asking_whether_it_is_done_sends_again_too(
    impatient: tuple[Hand, Hand], pushes: list[Request]
) -> None:
    hand, other = impatient
    held = hand.link.exchange(hand.push(), send=True, land=True)
    until(lambda: held.done() or len(pushes) > 2)
    assert not held.done()
    other.link.exchange(other.push(), send=True, land=True).wait(30.0)
    until(held.done)
    assert held.wait(30.0)[0] == Stepped(1)


def test_sending_again_keeps_the_callers_time_limit(
    impatient: tuple[Hand, Hand], pushes: list[Request]
) -> None:
    hand, other = impatient
    held = hand.link.exchange(hand.push(), send=True, land=True)
    waits = 0
    while waits < 2 or len(pushes) <= 2:
        waits += 1
        with soon(), pytest.raises(TimeoutError):
            held.wait(0.5)
        assert waits < 100, "it is not sent again"
    assert not held.done()
    other.link.exchange(other.push(), send=True, land=True).wait(30.0)
    assert held.wait(30.0)[0] == Stepped(1)
