"""Heartbeats over real sockets: who is alive, who is not, and whose words count for nothing."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from psrpc.planes.doors import CHALLENGE_BYTES, MOST_STRANGERS, STRANGER_S, receive
from psrpc.pulse import Heart, Pulse
from psrpc.secret import MAC_BYTES, Secret

LONG_S = 30.0  # a death that is told sooner was not told for silence
SHORT_S = 0.3
SECRET = Secret(b"a secret of these tests")
CLOSED = "its connection was closed"

Told = tuple[int, str]


class Ward:
    """A pulse that keeps what it was told in a queue, and sockets that are closed at the end."""

    def __init__(self, dead_after_s: float) -> None:
        self.told: queue.Queue[Told] = queue.Queue()
        self.then: Callable[[int], None] = lambda process: None
        self.pulse = Pulse("127.0.0.1", dead_after_s, self._lost, SECRET)
        self.hearts: list[Heart] = []
        self.socks: list[socket.socket] = []

    def _lost(self, process: int, why: str) -> None:
        self.told.put((process, why))
        self.then(process)

    def heart(self, process: int, dead_after_s: float = 0.1) -> Heart:
        """A worker's heart, which beats far more often than it must."""
        heart = Heart(self.pulse.address, process, dead_after_s, SECRET)
        self.hearts.append(heart)
        heart.start()
        return heart

    def connect(self) -> socket.socket:
        """A connection over which nothing has been said."""
        host, port = self.pulse.address.split()
        sock = socket.create_connection((host, int(port)), timeout=10.0)
        self.socks.append(sock)
        return sock

    def hello(self, sock: socket.socket, process: int, secret: Secret = SECRET) -> bytes:
        """The first word of a process, which proves that it has the secret."""
        nonce = receive(sock, CHALLENGE_BYTES, time.monotonic() + STRANGER_S)[-16:]
        said, mine = struct.pack("!I", process), bytes(16)
        return said + mine + secret.mac("pulse/visitor", nonce, mine, said)

    def say_hello(self, process: int) -> socket.socket:
        """A process that says who it is, and nothing more."""
        sock = self.connect()
        sock.sendall(self.hello(sock, process))
        receive(sock, MAC_BYTES, time.monotonic() + STRANGER_S)
        return sock

    def next_told(self, timeout_s: float = 10.0) -> Told:
        """The next death that is told."""
        return self.told.get(timeout=timeout_s)

    def is_heard(self, process: int) -> bool:
        """Whether the process is known to be alive. Waits for its first word."""
        deadline = time.monotonic() + 10.0
        while process not in self.pulse._heard and time.monotonic() < deadline:
            time.sleep(0.001)
        return process in self.pulse._heard

    def close(self) -> None:
        for heart in self.hearts:
            heart.stop()
        for sock in self.socks:
            sock.close()
        self.pulse.close()


@contextlib.contextmanager
def ward_of(dead_after_s: float) -> Iterator[Ward]:
    ward = Ward(dead_after_s)
    ward.pulse.start()
    try:
        yield ward
    finally:
        ward.close()


@pytest.fixture
def calm() -> Iterator[Ward]:
    """One that takes nobody for dead for silence."""
    with ward_of(LONG_S) as ward:
        yield ward


@pytest.fixture
def quick() -> Iterator[Ward]:
    """One that takes those for dead who are silent for a moment."""
    with ward_of(SHORT_S) as ward:
        yield ward


def test_a_closed_connection_is_told_at_once(calm: Ward) -> None:
    sock = calm.say_hello(7)
    assert calm.is_heard(7)
    began_s = time.monotonic()
    sock.close()
    assert calm.next_told() == (7, CLOSED)
    assert time.monotonic() - began_s < 0.5


def test_a_connection_that_is_reset_is_told_as_well(calm: Ward) -> None:
    sock = calm.say_hello(7)
    assert calm.is_heard(7)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    assert calm.next_told() == (7, CLOSED)


def test_a_heart_that_stops_is_told_at_once(calm: Ward) -> None:
    heart = calm.heart(3, LONG_S)
    assert calm.is_heard(3)
    heart.stop()
    assert calm.next_told() == (3, CLOSED)


def test_a_first_word_may_come_in_pieces(calm: Ward) -> None:
    sock = calm.connect()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in calm.hello(sock, 0x01020304):
        sock.sendall(bytes([byte]))
    sock.close()
    assert calm.next_told() == (0x01020304, CLOSED)


def test_a_word_and_beats_in_one_piece_are_understood(calm: Ward) -> None:
    sock = calm.connect()
    sock.sendall(calm.hello(sock, 5) + b"\x01\x01\x01")
    sock.close()
    assert calm.next_told() == (5, CLOSED)


def test_who_is_silent_is_lost(quick: Ward) -> None:
    began_s = time.monotonic()
    quick.say_hello(7)
    assert quick.next_told() == (7, f"it was silent for {SHORT_S} s")
    assert SHORT_S <= time.monotonic() - began_s < SHORT_S + 5.0


def test_who_beats_is_not_lost_while_another_is(quick: Ward) -> None:
    """Each life of the silent ones is longer than the beating one may be silent."""
    quick.heart(1)
    assert quick.is_heard(1)
    for silent in (2, 3, 4):
        quick.say_hello(silent)
        assert quick.next_told() == (silent, f"it was silent for {SHORT_S} s")
    assert quick.told.empty()
    assert quick.is_heard(1)


def test_a_connection_that_is_lost_for_silence_is_hung_up(quick: Ward) -> None:
    sock = quick.say_hello(7)
    assert quick.next_told()[0] == 7
    sock.settimeout(10.0)
    assert sock.recv(1) == b""


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        bytes(20),
        b"\x01",
        bytes(52),
        b"\xff" * 100_000,
    ],
    ids=["nothing", "http", "zeros", "a beat", "a false proof", "a lot"],
)
def test_strangers_harm_nothing_and_tell_nothing(calm: Ward, words: bytes) -> None:
    calm.heart(7, LONG_S)
    assert calm.is_heard(7)
    stranger = calm.connect()
    with contextlib.suppress(OSError):
        stranger.sendall(words)
    stranger.close()
    # The next death to be told is this one, so the stranger's end was none.
    calm.say_hello(9).close()
    assert calm.next_told() == (9, CLOSED)
    assert calm.is_heard(7)
    assert calm.told.empty()


def test_a_stranger_with_a_wrong_secret_is_hung_up(calm: Ward) -> None:
    stranger = calm.connect()
    stranger.sendall(calm.hello(stranger, 7, Secret(b"another")))
    stranger.settimeout(10.0)
    with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(1) == b""
    assert not calm.pulse._heard


def test_what_a_worker_has_said_cannot_be_said_again(calm: Ward) -> None:
    worker, stranger = calm.connect(), calm.connect()
    said = calm.hello(worker, 7)
    worker.sendall(said)
    assert calm.is_heard(7)
    stranger.sendall(said)
    stranger.settimeout(10.0)
    receive(stranger, CHALLENGE_BYTES, time.monotonic() + STRANGER_S)
    with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(1) == b""
    assert calm.told.empty(), "the worker's own line stays"


def test_many_strangers_do_not_keep_a_worker_out(calm: Ward) -> None:
    strangers = [calm.connect() for _ in range(MOST_STRANGERS + 10)]
    calm.heart(7, LONG_S)
    assert calm.is_heard(7)
    strangers[0].settimeout(10.0)
    receive(strangers[0], CHALLENGE_BYTES, time.monotonic() + STRANGER_S)
    assert strangers[0].recv(1) == b"", "the oldest has to go"


def test_a_heart_does_not_beat_for_a_stranger() -> None:
    with ward_of(LONG_S) as ward:
        heart = Heart(ward.pulse.address, 7, LONG_S, Secret(b"another"))
        assert heart._connect() is None
        assert not ward.pulse._heard


def test_a_stranger_that_says_nothing_is_hung_up_and_not_told(quick: Ward) -> None:
    stranger = quick.connect()
    stranger.settimeout(10.0)
    receive(stranger, CHALLENGE_BYTES, time.monotonic() + STRANGER_S)
    assert stranger.recv(1) == b""
    assert quick.told.empty()


def test_who_is_expected_and_never_comes_is_lost_once(quick: Ward) -> None:
    began_s = time.monotonic()
    quick.pulse.expect(4)
    quick.pulse.expect(4)
    assert quick.next_told() == (4, f"it was silent for {SHORT_S} s")
    assert time.monotonic() - began_s >= SHORT_S
    quick.say_hello(5)
    assert quick.next_told()[0] == 5
    assert quick.told.empty()


def test_who_is_expected_and_comes_is_not_lost(quick: Ward) -> None:
    quick.pulse.expect(4)
    quick.heart(4)
    assert quick.is_heard(4)
    quick.say_hello(5)
    assert quick.next_told()[0] == 5, "a whole life later"
    quick.pulse.expect(4)
    quick.say_hello(6)
    assert quick.next_told()[0] == 6
    assert quick.told.empty()


def test_who_came_and_was_lost_is_expected_anew(quick: Ward) -> None:
    quick.say_hello(4).close()
    assert quick.next_told() == (4, CLOSED)
    quick.pulse.expect(4)
    assert quick.next_told() == (4, f"it was silent for {SHORT_S} s")


def test_a_pulse_that_was_itself_held_up_loses_nobody() -> None:
    """What has come meanwhile is heard before anybody is judged."""
    held, may_go_on = threading.Event(), threading.Event()

    with ward_of(SHORT_S) as ward:

        def hold(process: int) -> None:
            if process == 2:
                held.set()
                may_go_on.wait(10.0)

        ward.then = hold
        for process in range(10, 40):
            ward.heart(process)
            assert ward.is_heard(process)
        ward.say_hello(2).close()
        assert held.wait(10.0)
        time.sleep(2 * SHORT_S)  # this is what is tested: for so long it hears nobody
        may_go_on.set()
        assert ward.next_told() == (2, CLOSED)
        ward.say_hello(3)
        assert ward.next_told() == (3, f"it was silent for {SHORT_S} s")
        assert ward.told.empty()


def test_and_not_those_who_came_meanwhile() -> None:
    held, may_go_on = threading.Event(), threading.Event()

    with ward_of(SHORT_S) as ward:

        def hold(process: int) -> None:
            if process == 2:
                held.set()
                may_go_on.wait(10.0)

        ward.then = hold
        ward.say_hello(2).close()
        assert held.wait(10.0)
        for process in range(10, 20):
            ward.pulse.expect(process)
            ward.heart(process)
        time.sleep(2 * SHORT_S)  # this is what is tested: for so long it hears nobody
        may_go_on.set()
        assert ward.next_told() == (2, CLOSED)
        assert all(ward.is_heard(process) for process in range(10, 20))
        assert ward.told.empty()


def test_many_hearts_are_heard(quick: Ward) -> None:
    for process in range(60):
        quick.heart(process)
    assert all(quick.is_heard(process) for process in range(60))
    quick.say_hello(100)
    assert quick.next_told()[0] == 100
    assert quick.told.empty()


def test_a_heart_that_was_hung_up_on_comes_again(calm: Ward) -> None:
    heart = calm.heart(7)
    assert calm.is_heard(7)
    deadline = time.monotonic() + 10.0
    while (sock := heart._sock) is None:  # it has still to hear the proof
        assert time.monotonic() < deadline
    sock.shutdown(socket.SHUT_RDWR)
    assert calm.next_told() == (7, CLOSED)
    assert calm.is_heard(7)


def test_a_heart_that_nobody_hears_at_first_is_heard_when_somebody_listens() -> None:
    ward = Ward(LONG_S)
    host, port = ward.pulse.address.split()
    with socket.create_server((host, 0)) as other:
        nobody = other.getsockname()[1]
    found: list[str] = []
    heart = Heart(f"{host} {nobody}", 7, SHORT_S, SECRET, lambda: found[0] if found else None)
    ward.hearts.append(heart)
    heart.start()
    found.append(f"{host} {port}")
    ward.pulse.start()
    try:
        assert ward.is_heard(7)
    finally:
        ward.close()


def test_a_heart_goes_to_where_the_coordinator_is_now() -> None:
    """Though the one before still listens, as one does that stood still for a while."""
    before, after = Ward(LONG_S), Ward(LONG_S)
    found = [before.pulse.address]
    heart = Heart(before.pulse.address, 7, SHORT_S, SECRET, lambda: found[0])
    before.hearts.append(heart)
    for ward in (before, after):
        ward.pulse.start()
    heart.start()
    try:
        assert before.is_heard(7)
        found[0] = after.pulse.address
        assert after.is_heard(7)
    finally:
        before.close()
        after.close()


def test_a_pulse_that_ends_hangs_up_and_hearts_go_on_without_it() -> None:
    ward = Ward(LONG_S)
    ward.pulse.start()
    heart = ward.heart(7)
    sock = ward.say_hello(8)
    assert ward.is_heard(7)
    assert ward.is_heard(8)
    ward.pulse.close()
    sock.settimeout(10.0)
    assert sock.recv(1) == b""
    heart.stop()
    sock.close()
    assert ward.told.empty(), "its own end is nobody's death"


def test_a_pulse_that_never_began_can_be_closed() -> None:
    Ward(LONG_S).close()


def test_a_process_that_speaks_over_a_new_line_is_not_lost_with_the_old_one(quick: Ward) -> None:
    """Its old connection may have broken in the middle, where nobody was told of it."""
    old = quick.say_hello(7)
    assert quick.is_heard(7)
    quick.heart(7)
    old.settimeout(10.0)
    assert old.recv(1) == b""
    quick.say_hello(8)
    assert quick.next_told()[0] == 8
    quick.pulse.expect(7)
    quick.say_hello(9)
    assert quick.next_told()[0] == 9
    assert quick.told.empty()
