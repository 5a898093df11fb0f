"""The gate before a socket of torch's: who proves himself comes through, nobody else does."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from psrpc.errors import SecretError
from psrpc.job import Job
from psrpc.planes import doors, filters
from psrpc.planes.doors import CHALLENGE_BYTES, MOST_STRANGERS, Door, knock
from psrpc.planes.gate import Gate, pass_through, shut_for_good
from psrpc.planes.rpc import RpcLink, answers
from psrpc.secret import Secret
from tests.contract.fleet import SECRET, Dock, Plan, until

SHORT_S = 0.2  # for what must not happen
WAIT_S = 20.0


@dataclass
class Behind:
    """A socket that listens, as torch's does, in this process."""

    host: str
    listener: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self.listener = socket.create_server((self.host, 0), family=family)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def reached(self, timeout_s: float = SHORT_S) -> bool:
        try:
            ends = self.connect(timeout_s)
        except TimeoutError:
            return False
        for end in ends:
            end.close()
        return True

    def connect(self, timeout_s: float = WAIT_S) -> tuple[socket.socket, socket.socket]:
        here = socket.create_connection((self.host, self.port), timeout_s)
        return here, self.listener.accept()[0]


@pytest.fixture(params=["127.0.0.1", "::1"])
def behind(request: pytest.FixtureRequest) -> Iterator[Behind]:
    behind = Behind(request.param)
    yield behind
    behind.listener.close()


def test_it_is_open_while_somebody_of_the_job_connects(behind: Behind) -> None:
    assert behind.reached(WAIT_S)
    gate = Gate(behind.host, behind.port, SECRET)
    gate.start()
    assert not behind.reached()
    for _ in range(2):
        with pass_through(behind.host, gate.port, SECRET):
            with pass_through(behind.host, gate.port, SECRET):
                here, there = behind.connect()
            assert behind.reached(WAIT_S), "the other one is still at it"
        until(lambda: not behind.reached())
        there.sendall(b"what was connected stays connected")
        assert here.recv(4) == b"what"
        here.close()
        there.close()
    gate.close()


def test_it_does_not_open_for_a_stranger(behind: Behind) -> None:
    gate = Gate(behind.host, behind.port, SECRET)
    gate.start()
    with (
        pytest.raises((SecretError, OSError)),
        pass_through(behind.host, gate.port, Secret(b"another")),
    ):
        pytest.fail("it did")
    assert not behind.reached()
    gate.close()


def test_what_is_shut_for_good_is_shut(behind: Behind) -> None:
    let_go = shut_for_good(behind.port)
    assert not behind.reached()
    let_go()
    assert not behind.reached()
    where = (behind.host, behind.port)
    behind.listener.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where, WAIT_S)


def test_a_filter_knows_addresses_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for admitted in (["127.0.0.3"], ["127.0.0.2", "127.0.0.3", "::1"], []):
            filters.attach(listener, admitted)
            for source in ("127.0.0.2", "127.0.0.3"):
                reached = False
                with (
                    suppress(OSError),
                    socket.create_connection(
                        listener.getsockname(), SHORT_S, source_address=(source, 0)
                    ),
                ):
                    reached = True
                assert reached == (source in admitted)


NOISE = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 4,
    b"\xff" * 10_000,
    random.Random(5).randbytes(10_000),
    b"",
]


@pytest.mark.parametrize("noise", NOISE, ids=["http", "huge lengths", "random", "nothing"])
def test_a_door_hears_strangers_out_and_lets_the_next_in(noise: bytes) -> None:
    came: list[socket.socket] = []
    door = Door("127.0.0.1", SECRET, "test", came.append)
    door.start()
    with socket.create_connection(("127.0.0.1", door.port), WAIT_S) as stranger:
        with suppress(ConnectionError):
            stranger.sendall(noise)
        with knock("127.0.0.1", door.port, SECRET, "test"):
            until(lambda: len(came) == 1)
        if noise:
            with suppress(ConnectionError):
                assert len(stranger.recv(100)) == CHALLENGE_BYTES
                assert stranger.recv(1) == b""
    door.close()
    assert len(came) == 1
    came[0].close()


def test_a_door_is_not_opened_by_what_another_has_said() -> None:
    """Neither at the same door nor, at once, at one of another purpose."""
    came: list[socket.socket] = []
    door = Door("127.0.0.1", SECRET, "test", came.append)
    other = Door("127.0.0.1", SECRET, "other", came.append)
    door.start()
    other.start()
    said: list[bytes] = []

    class Ear:
        """A socket that somebody listens to."""

        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def sendall(self, data: bytes) -> None:
            said.append(data)
            self._sock.sendall(data)

        def __getattr__(self, name: str) -> object:
            return getattr(self._sock, name)

    with socket.create_connection(("127.0.0.1", door.port), WAIT_S) as sock:
        doors.enter(Ear(sock), SECRET, "test")  # type: ignore[arg-type]
    until(lambda: len(came) == 1)
    with socket.create_connection(("127.0.0.1", door.port), WAIT_S) as stranger:
        stranger.sendall(said[0])
        with suppress(ConnectionError):
            stranger.recv(CHALLENGE_BYTES)
            assert stranger.recv(1) == b""
    # In the middle: what one door asks is asked of a member at another.
    with (
        socket.create_connection(("127.0.0.1", other.port), WAIT_S) as stranger,
    ):
        left, right = socket.socketpair()
        right.sendall(stranger.recv(CHALLENGE_BYTES))
        with pytest.raises(TimeoutError):
            doors.enter(left, SECRET, "test", limit_s=5 * SHORT_S)  # it is to say something
        stranger.sendall(right.recv(100))
        with suppress(ConnectionError):
            assert stranger.recv(1) == b""
        left.close()
        right.close()
    door.close()
    other.close()
    assert len(came) == 1
    came[0].close()


def test_strangers_cannot_fill_a_door(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that nobody has to go because of the time that he takes.
    monkeypatch.setattr(doors, "ask", partial(doors.ask, limit_s=50 * WAIT_S))
    came: list[socket.socket] = []
    door = Door("127.0.0.1", SECRET, "test", came.append)
    door.start()
    strangers = [
        socket.create_connection(("127.0.0.1", door.port), WAIT_S)
        for _ in range(MOST_STRANGERS + 5)
    ]
    with knock("127.0.0.1", door.port, SECRET, "test"):
        until(lambda: len(came) == 1)
    strangers[0].recv(CHALLENGE_BYTES)
    assert strangers[0].recv(1) == b"", "the oldest has to go"
    for sock in [*strangers, *came]:
        sock.close()
    door.close()


def test_who_asks_with_another_secret_is_told_so(dock: Dock) -> None:
    """And the server goes on with those that have its own."""
    fleet = dock.fleet("rpc", Plan(Job(1)))
    address = dock.processes[0].address
    probe = f"""
from psrpc.planes.agent import Agent
from psrpc.planes.rpc import Address, RpcLink
from psrpc.secret import Secret
agent = Agent("stranger", 2000, threads=1, one_host=True, secret=Secret(b"another"))
agent.start()
try:
    RpcLink(agent, Address({address.name!r}, {address.number}, {address.url!r})).connect()
except Exception as error:
    print(type(error).__name__, error)
agent.close()
"""
    told = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert told.startswith(f"PeerLostError {address.name} at ")
    assert "hung up" in told
    RpcLink(dock.agent, address).connect()
    assert answers(dock.agent, address.name, WAIT_S)
    fleet.close()


def test_torchs_own_messages_run_nothing(dock: Dock, tmp_path: Path) -> None:
    """Even from a process that has come in: what torch would run is not read."""
    fleet = dock.fleet("rpc", Plan(Job(1)))
    address, proof = dock.processes[0].address, tmp_path / "it ran"
    probe = f"""
import os
from torch.distributed.rpc import api, internal, rpc_async
from psrpc.planes.agent import Agent
from psrpc.secret import Secret
agent = Agent("insider", 2001, threads=1, one_host=True, secret=Secret({SECRET.key!r}))
agent.start()
agent.meet({address.name!r}, {address.number}, {address.url!r})
api._default_pickler = internal._internal_rpc_pickler = internal._InternalRPCPickler()
with agent.reaching({address.name!r}):
    for function, arguments in ((os.mkdir, ({str(proof)!r},)), (eval, ("1",))):
        try:
            print(rpc_async({address.name!r}, function, arguments, timeout=20).wait())
        except Exception as error:
            print("refused", "nobody of this job has signed" in str(error))
agent.close()
"""
    told = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=100, check=True
    )
    assert told.stdout == "refused True\nrefused True\n", told.stderr
    assert not proof.exists()
    RpcLink(dock.agent, address).connect()
    assert answers(dock.agent, address.name, WAIT_S)
    fleet.close()
