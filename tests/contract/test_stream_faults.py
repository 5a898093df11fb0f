"""Streams that break or come from strangers: nothing is mixed, applied twice or kept."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from psrpc.errors import AddressError, PeerLostError, ProtocolError
from psrpc.job import Job, PlaneChoice
from psrpc.messages import (
    Adopt,
    Done,
    Failure,
    Peek,
    Ping,
    Pull,
    Push,
    Stepped,
    Stream,
    StreamKind,
    UpdateKey,
    View,
)
from psrpc.modes import Asynchronous, Mode, Synchronous
from psrpc.planes import wire
from psrpc.planes.base import Service
from psrpc.planes.doors import ANSWER_BYTES, CHALLENGE_BYTES, ask, knock
from psrpc.planes.freight import Freight, as_bytes
from psrpc.planes.loopback import LoopbackLink
from psrpc.planes.porter import PURPOSE, Porter
from psrpc.planes.rpc import Address, Patience, RpcLink
from psrpc.planes.select import link_to
from psrpc.planes.stream import StreamLink
from psrpc.planes.wire import Ring
from psrpc.secret import Secret
from psrpc.server import ParameterServer
from psrpc.store.shard import ShardStore
from tests import bomb
from tests.bomb import Bomb
from tests.contract.fleet import SECRET, Plan, until
from tests.contract.hand import WAIT_S, stepped

KEEPALIVE = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
SIZE = {"rows": 1024, "columns": 1024}  # 4 MB: more than sockets hold by themselves


class Control:
    """What a link needs of RPC, of a server that lives in this process."""

    patience = Patience()
    peer = Address("server0", 0, "here")
    agent = SimpleNamespace(secret=SECRET)

    def __init__(self, service: Service) -> None:
        self._link = LoopbackLink(service)
        self.pings = 0
        self.alive = True

    def connect(self) -> None:
        pass

    def ping(self) -> None:
        self.pings += 1
        if not self.alive:
            raise self.lost(ConnectionError("no answer"))

    def lost(self, error: Exception) -> PeerLostError:
        return PeerLostError(f"{self.peer.name} died or left ({error})")

    def call(self, *arguments: Any) -> Any:
        return self._link.call(*arguments)

    def close(self) -> None:
        pass


class Quay:
    """A server with its porter, and workers' links to it."""

    def __init__(self, mode: Mode, workers: int) -> None:
        self.plan = Plan(Job(workers, mode=mode), **SIZE)
        self.service = self.plan.service(0)
        self.server: ParameterServer = getattr(self.service, "server", self.service)
        self.layout = self.plan.layouts()[0]
        self.porter = Porter(self.service, self.layout, "127.0.0.1", SECRET)
        self.porter.start()
        self.control = Control(self.service)
        self.control.call(Adopt(0, View(1, tuple((w, 0) for w in range(workers)))))
        self.links: list[StreamLink] = []
        self.socks: list[Freight] = []

    def link(self) -> StreamLink:
        link = StreamLink(cast(RpcLink, self.control), self.porter.address)
        link.connect()
        self.links.append(link)
        self.buffers = link.open(self.layout)
        self.buffers.gradients[0].fill_(1.0)
        return link

    def plain(self) -> socket.socket:
        """A connection over which nothing has been said."""
        host, _, port = self.porter.address.rpartition(":")
        return socket.create_connection((host, int(port)), WAIT_S)

    def raw(self) -> tuple[Freight, socket.socket]:
        """A stream in the test's own hands."""
        host, _, port = self.porter.address.rpartition(":")
        sock = knock(host, int(port), SECRET, PURPOSE)
        freight = Freight(sock)
        sock.settimeout(WAIT_S)
        self.socks.append(freight)
        return freight, sock

    def all_given_back(self) -> bool:
        return len(self.porter.places.free) == self.porter.places.made

    def ones(self) -> list[torch.Tensor]:
        return [torch.ones_like(flat) for flat in self.layout.empty()]

    def weights(self) -> torch.Tensor:
        return self.server.store.flats[0]

    def close(self) -> None:
        for each in [*self.links, *self.socks, self.porter]:
            each.close()


@pytest.fixture
def quay() -> Iterator[Quay]:
    quay = Quay(Asynchronous(), 1)
    yield quay
    quay.close()


@pytest.fixture
def quay_of_two() -> Iterator[Quay]:
    quay = Quay(Asynchronous(), 2)
    yield quay
    quay.close()


@pytest.fixture
def round_of_two() -> Iterator[Quay]:
    quay = Quay(Synchronous(), 2)
    yield quay
    quay.close()


def push(clock: int = 0, worker: int = 0, pull: bool = True) -> Push:
    key = UpdateKey(Stream(StreamKind.WORKER, worker, 0), clock)
    return Push(worker, clock, key, 1, pull=pull)


def half_a_push(quay: Quay, sock: socket.socket) -> None:
    """The header, and half of the gradients."""
    flats = [torch.full_like(flat, 100.0) for flat in quay.layout.empty()]
    message = wire.pack(Ring(push(), side=0))
    head = len(message).to_bytes(4, "little") + quay.layout.size_bytes.to_bytes(8, "little")
    sock.sendall(head + message)
    view = as_bytes(flats[0])
    sock.sendall(view[: view.nbytes // 2])


def test_a_worker_that_dies_within_a_push_leaves_nothing(quay: Quay) -> None:
    before = quay.weights().clone()
    for _ in range(3):
        freight, sock = quay.raw()
        half_a_push(quay, sock)
        until(lambda: quay.porter.places.made == 1 and not quay.porter.places.free)
        freight.close()
        until(lambda: quay.porter.guests == 0)
        assert quay.all_given_back()
    assert quay.porter.places.made == 1, "the same buffer each time"
    assert torch.equal(quay.weights(), before)
    assert quay.server.core.stats().updates_applied == 0


def test_a_push_that_breaks_half_way_is_sent_again_and_is_not_mixed(
    quay: Quay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the link itself; of what the server got first nothing is left."""
    before = quay.weights().clone()
    link = quay.link()
    send, breaks = Freight.send, iter([True])

    def break_once(freight: Freight, message: bytes, flats: Any = ()) -> None:
        if freight is link._freight and next(breaks, False):
            half_a_push(quay, freight._sock)
            freight.cut()
        send(freight, message, flats)

    monkeypatch.setattr(Freight, "send", break_once)
    assert stepped(link.exchange(push(), send=True, land=True)).version == 1
    assert quay.control.pings == 1, "it has asked whether the server lives"
    until(lambda: quay.porter.guests == 1)
    assert torch.equal(quay.weights(), before - 1.0)
    assert torch.equal(quay.buffers.weights[0], before - 1.0)
    assert quay.server.core.stats().updates_applied == 1
    until(quay.all_given_back)


def test_a_server_keeps_one_place_a_stream_and_no_snapshot(
    round_of_two: Quay, monkeypatch: pytest.MonkeyPatch
) -> None:
    quay = round_of_two
    monkeypatch.setattr(ShardStore, "snapshot", lambda store: pytest.fail("a copy of its own"))
    expected = quay.weights().clone()
    links = [quay.link() for _ in range(2)]
    for clock in range(3):
        asked = [
            link.exchange(push(clock, worker), send=True, land=True)
            for worker, link in enumerate(links)
        ]
        expected -= 1.0
        for pending, link in zip(asked, links, strict=True):
            assert stepped(pending).version == clock + 1
            assert torch.equal(link._buffers.weights[0], expected)
    for worker, link in enumerate(links):
        link.exchange(Peek(worker), send=False, land=True).wait(WAIT_S)
        assert torch.equal(link._buffers.weights[0], expected)
    until(quay.all_given_back)
    assert quay.porter.places.made == 2


def test_who_takes_weights_slowly_gets_one_version_and_holds_up_nobody(
    quay_of_two: Quay,
) -> None:
    """4 MB, of which the sockets hold a part: most is sent after the other's steps."""
    quay = quay_of_two
    before = quay.weights().clone()
    slow, _ = quay.raw()
    slow.send(wire.pack(Ring(push(worker=0), side=0, ahead=False)), quay.ones())
    answer, size_bytes = slow.receive()
    assert wire.unpack_reply(answer) == Stepped(1, 1)
    quick = quay.link()
    for clock in range(3):
        stepped(quick.exchange(push(clock, worker=1), send=True, land=True))
    weights = quay.layout.empty()
    assert size_bytes == quay.layout.size_bytes
    slow.take(weights)
    assert torch.equal(weights[0], before - 1.0)
    assert torch.equal(quay.weights(), before - 1.0 - 1.0 - 1.0 - 1.0)


def test_both_ends_give_up_a_peer_that_is_cut_off(quay: Quay) -> None:
    """Nobody can cut loopback here; that the kernel does what it is told is its own matter."""
    link = quay.link()
    until(lambda: quay.porter.guests == 1)
    (guest,) = quay.porter._guests
    assert link._freight is not None
    for freight in (guest._freight, link._freight):
        sock = freight._sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        asked_s = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in KEEPALIVE]
        assert asked_s[0] + asked_s[1] * asked_s[2] <= 60
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


def test_a_stream_that_breaks_while_the_answer_is_held_is_replaced(round_of_two: Quay) -> None:
    quay = round_of_two
    before = quay.weights().clone()
    link, stats = quay.link(), quay.server.core.stats
    weights = quay.buffers.weights[0]
    held = link.exchange(push(worker=0), send=True, land=True)
    until(lambda: len(quay.server.desk._calls) == 1)
    link._freight.cut()  # type: ignore[union-attr]
    until(lambda: stats().duplicates_dropped == 1)
    assert quay.control.pings == 1
    assert not held.done()
    other = quay.link()
    assert stepped(other.exchange(push(worker=1), send=True, land=True)) == Stepped(1)
    assert stepped(held) == Stepped(1)
    assert torch.equal(weights, before - 1.0)
    assert (stats().updates_applied, stats().optimizer_steps) == (2, 1)
    until(quay.all_given_back)


def test_a_stream_that_breaks_within_the_weights_brings_them_whole(quay: Quay) -> None:
    """The answer has been given; the request is sent again, as one that is done already."""
    link = quay.link()
    take = Freight.take
    cuts = iter([True])

    def cutting(freight: Freight, flats: Any) -> None:
        if freight is link._freight and next(cuts, False):
            freight.cut()
        take(freight, flats)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Freight, "take", cutting)
        stepped(link.exchange(push(), send=True, land=True))
    assert quay.control.pings == 1
    assert torch.equal(quay.buffers.weights[0], quay.weights())
    assert quay.server.core.stats().updates_applied == 1


def test_whoever_breaks_again_and_again_is_lost(
    quay: Quay, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = quay.link()
    monkeypatch.setattr(quay.control, "agent", SimpleNamespace(secret=Secret(b"another")))
    link._freight.cut()  # type: ignore[union-attr]
    with pytest.raises(PeerLostError, match="server0 died or left"):
        link.exchange(Peek(0), send=False, land=True).wait(WAIT_S)
    quay.control.alive = False
    with pytest.raises(PeerLostError, match="no answer"):
        link.exchange(Peek(0), send=False, land=True).wait(WAIT_S)


def test_gradients_of_the_wrong_size_are_refused_and_the_stream_goes_on(quay: Quay) -> None:
    freight, _ = quay.raw()
    for flats, side in (([torch.zeros(7)], 0), ([], 0), ([torch.zeros(1 << 20)], None)):
        freight.send(wire.pack(Ring(push(), side=side)), flats)
        answer, size_bytes = freight.receive()
        reply = wire.unpack_reply(answer)
        assert isinstance(reply, Failure)
        assert reply.error[0] == "GradientError"
        expected = 0 if side is None else quay.layout.size_bytes
        assert reply.error[1].startswith("worker 0 sent ")
        assert reply.error[1].endswith(f"of gradients, this shard has {expected}")
        assert size_bytes == 0
    freight.send(wire.pack(Ring(Ping(0))))
    assert wire.unpack_reply(freight.receive()[0]) == Done(0)
    assert quay.server.core.stats().updates_applied == 0


def test_weights_of_the_wrong_size_are_refused(quay: Quay) -> None:
    link = quay.link()
    quay.buffers.weights.append(torch.zeros(1))
    with pytest.raises(ProtocolError, match="do all processes build the same model"):
        link.exchange(Pull(0, 0), send=False, land=True).wait(WAIT_S)
    quay.buffers.weights.pop()
    stepped(link.exchange(Pull(0, 0), send=False, land=True))


def test_who_does_not_say_who_he_is_has_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    quay = Quay(Asynchronous(), 1)
    with monkeypatch.context() as patch:
        patch.setattr("psrpc.planes.doors.ask", partial(ask, limit_s=0.05))
        with quay.plain() as sock:
            assert len(sock.recv(100)) == CHALLENGE_BYTES
            assert sock.recv(1) == b""
    link = quay.link()
    stepped(link.exchange(push(), send=True, land=True))
    quay.close()


@pytest.mark.parametrize(
    "word",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8\r\n\r\n",
        bytes(ANSWER_BYTES),
        b"\xff" * 5000,
        pickle.dumps(Bomb()) + bytes(ANSWER_BYTES),
    ],
    ids=["http", "zeros", "a huge length", "a pickle bomb"],
)
def test_a_stranger_is_turned_away(quay: Quay, word: bytes) -> None:
    link = quay.link()
    with quay.plain() as sock, suppress(ConnectionError):
        sock.sendall(word)
        assert len(sock.recv(100)) == CHALLENGE_BYTES
        assert sock.recv(1) == b""
    until(lambda: quay.porter.guests == 1)
    assert not bomb.went_off
    stepped(link.exchange(push(), send=True, land=True))


def test_a_garbled_message_ends_its_stream_alone(quay: Quay) -> None:
    link = quay.link()
    freight, _ = quay.raw()
    freight.send(b"garbage")
    with pytest.raises((EOFError, OSError)):
        freight.receive()
    stepped(link.exchange(push(), send=True, land=True))


def test_a_link_that_is_closed_lets_go_of_its_caller(round_of_two: Quay) -> None:
    link = round_of_two.link()
    held = link.exchange(push(), send=True, land=True)
    until(lambda: len(round_of_two.server.desk._calls) == 1)
    link.close()
    with pytest.raises(PeerLostError, match="this end is closed"):
        held.wait(WAIT_S)
    with pytest.raises(PeerLostError, match="this end is closed"):
        link.exchange(push(), send=True, land=True)


def test_without_a_way_to_the_stream_all_goes_over_rpc(quay: Quay) -> None:
    control = cast(RpcLink, quay.control)
    address = quay.porter.address
    link = link_to(control, "", address, PlaneChoice.AUTO)
    assert isinstance(link, StreamLink)
    link.close()
    quay.porter.close()
    assert link_to(control, "", address, PlaneChoice.RPC) is control
    assert link_to(control, "", "", PlaneChoice.RPC) is control
    with pytest.raises(AddressError, match="server0 cannot be reached at"):
        StreamLink(control, address).connect()
