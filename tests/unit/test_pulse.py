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
from psrpc.testing.clock import ManualClock

LIFE_S = 0.3  # by a clock that stands still until a test lets it go on
PATIENCE_S = 30.0
SECRET = Secret(b"a secret of these tests")
CLOSED = "its connection was closed"

Told = tuple[int, str]


class Ward:
    """A pulse that keeps what it was told in a queue, and sockets that are closed at the end."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.told: queue.Queue[Told] = queue.Queue()
        self.then: Callable[[int], None] = lambda process: None
        self.pulse = Pulse("127.0.0.1", LIFE_S, self._lost, SECRET, self.clock)
        self.hearts: dict[int, Heart] = {}
        self.socks: list[socket.socket] = []

    def _lost(self, process: int, why: str) -> None:
        self.told.put((process, why))
        self.then(process)

    def heart(self, process: int, dead_after_s: float = 0.1) -> Heart:
        """A worker's heart, which beats far more often than it must."""
        heart = Heart(self.pulse.address, process, dead_after_s, SECRET)
        self.hearts[process] = heart
        heart.start()
        return heart

    def connect(self) -> socket.socket:
        """A connection over which nothing has been said."""
        host, port = self.pulse.address.split()
        sock = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
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

    def next_told(self) -> Told:
        """The next death that is told without any time passing."""
        return self.told.get(timeout=PATIENCE_S)

    def later_told(self) -> Told:
        """The next death that is told, while time passes."""
        self.pass_time(lambda: not self.told.empty())
        return self.told.get_nowait()

    def pass_time(self, until: Callable[[], bool]) -> None:
        """Let time go on, a third of a life after another; all hearts beat in each."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not until() and time.monotonic() < deadline_s:
            time.sleep(LIFE_S / 5)  # so long it waits for words, and then it judges
            if all(self._beats_now(process) for process in self.hearts):
                self.clock.advance(LIFE_S / 3)

    def _beats_now(self, process: int) -> bool:
        now_s = self.clock.now()
        lines = list(self.pulse._lines.values())
        return any(line.process == process and line.heard_s == now_s for line in lines)

    def is_heard(self, process: int) -> bool:
        """Whether the process is known to be alive. Waits for its first word."""
        deadline = time.monotonic() + PATIENCE_S
        while process not in self.pulse._heard and time.monotonic() < deadline:
            time.sleep(0.001)
        return process in self.pulse._heard

    def all_wait_to_be_heard(self) -> bool:
        """Whether all hearts have beaten since the pulse last heard anything. Waits for it."""
        deadline = time.monotonic() + PATIENCE_S
        socks = [line.sock for line in list(self.pulse._lines.values()) if line.process is not None]
        while not all(map(_has_words, socks)) and time.monotonic() < deadline:
            time.sleep(0.001)
        return len(socks) == len(self.hearts) and all(map(_has_words, socks))

    def close(self) -> None:
        for heart in self.hearts.values():
            heart.stop()
        for sock in self.socks:
            sock.close()
        self.pulse.close()


def _has_words(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


@pytest.fixture
def ward() -> Iterator[Ward]:
    ward = Ward()
    ward.pulse.start()
    try:
        yield ward
    finally:
        ward.close()


def test_a_closed_connection_is_told_at_once(ward: Ward) -> None:
    sock = ward.say_hello(7)
    assert ward.is_heard(7)
    sock.close()
    assert ward.next_told() == (7, CLOSED)


def test_a_connection_that_is_reset_is_told_as_well(ward: Ward) -> None:
    sock = ward.say_hello(7)
    assert ward.is_heard(7)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    assert ward.next_told() == (7, CLOSED)


def test_a_heart_that_stops_is_told_at_once(ward: Ward) -> None:
    heart = ward.heart(3, PATIENCE_S)
    assert ward.is_heard(3)
    heart.stop()
    assert ward.next_told() == (3, CLOSED)


def test_a_first_word_may_come_in_pieces(ward: Ward) -> None:
    sock = ward.connect()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in ward.hello(sock, 0x01020304):
        sock.sendall(bytes([byte]))
    sock.close()
    assert ward.next_told() == (0x01020304, CLOSED)


def test_a_word_and_beats_in_one_piece_are_understood(ward: Ward) -> None:
    sock = ward.connect()
    sock.sendall(ward.hello(sock, 5) + b"\x01\x01\x01")
    sock.close()
    assert ward.next_told() == (5, CLOSED)


def test_who_is_silent_is_lost(ward: Ward) -> None:
    ward.say_hello(7)
    assert ward.is_heard(7)
    assert ward.later_told() == (7, f"it was silent for {LIFE_S} s")
    assert ward.clock.now() > LIFE_S


def test_who_beats_is_not_lost_while_another_is(ward: Ward) -> None:
    """Each life of the silent ones is longer than the beating one may be silent."""
    ward.heart(1)
    assert ward.is_heard(1)
    for silent in (2, 3, 4):
        ward.say_hello(silent)
        assert ward.later_told() == (silent, f"it was silent for {LIFE_S} s")
    assert ward.told.empty()
    assert ward.is_heard(1)


def test_a_connection_that_is_lost_for_silence_is_hung_up(ward: Ward) -> None:
    sock = ward.say_hello(7)
    assert ward.later_told()[0] == 7
    sock.settimeout(PATIENCE_S)
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
def test_strangers_harm_nothing_and_tell_nothing(ward: Ward, words: bytes) -> None:
    ward.heart(7, PATIENCE_S)
    assert ward.is_heard(7)
    stranger = ward.connect()
    with contextlib.suppress(OSError):
        stranger.sendall(words)
    stranger.close()
    # The next death to be told is this one, so the stranger's end was none.
    ward.say_hello(9).close()
    assert ward.next_told() == (9, CLOSED)
    assert ward.is_heard(7)
    assert ward.told.empty()


def test_a_stranger_with_a_wrong_secret_is_hung_up(ward: Ward) -> None:
    stranger = ward.connect()
    stranger.sendall(ward.hello(stranger, 7, Secret(b"another")))
    stranger.settimeout(PATIENCE_S)
    with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(1) == b""
    assert not ward.pulse._heard


def test_what_a_worker_has_said_cannot_be_said_again(ward: Ward) -> None:
    worker, stranger = ward.connect(), ward.connect()
    said = ward.hello(worker, 7)
    worker.sendall(said)
    assert ward.is_heard(7)
    stranger.sendall(said)
    stranger.settimeout(PATIENCE_S)
    receive(stranger, CHALLENGE_BYTES, time.monotonic() + STRANGER_S)
    with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(1) == b""
    assert ward.told.empty(), "the worker's own line stays"


def test_many_strangers_do_not_keep_a_worker_out(ward: Ward) -> None:
    strangers = [ward.connect() for _ in range(MOST_STRANGERS + 10)]
    ward.heart(7, PATIENCE_S)
    assert ward.is_heard(7)
    strangers[0].settimeout(PATIENCE_S)
    receive(strangers[0], CHALLENGE_BYTES, time.monotonic() + STRANGER_S)
    assert strangers[0].recv(1) == b"", "the oldest has to go"


def test_a_heart_does_not_beat_for_a_stranger(ward: Ward) -> None:
    heart = Heart(ward.pulse.address, 7, PATIENCE_S, Secret(b"another"))
    assert heart._connect() is None
    assert not ward.pulse._heard


def test_a_stranger_that_says_nothing_is_hung_up_and_not_told(ward: Ward) -> None:
    stranger = ward.connect()
    receive(stranger, CHALLENGE_BYTES, time.monotonic() + STRANGER_S)
    stranger.setblocking(False)

    def is_hung_up() -> bool:
        with contextlib.suppress(BlockingIOError):
            return stranger.recv(1) == b""
        return False

    ward.pass_time(is_hung_up)
    assert ward.clock.now() > LIFE_S
    assert is_hung_up()
    assert ward.told.empty()


def test_who_is_expected_and_never_comes_is_lost_once(ward: Ward) -> None:
    ward.pulse.expect(4)
    ward.pulse.expect(4)
    assert ward.later_told() == (4, f"it was silent for {LIFE_S} s")
    assert ward.clock.now() > LIFE_S
    ward.say_hello(5)
    assert ward.later_told()[0] == 5
    assert ward.told.empty()


def test_who_is_expected_and_comes_is_not_lost(ward: Ward) -> None:
    ward.pulse.expect(4)
    ward.heart(4)
    assert ward.is_heard(4)
    ward.say_hello(5)
    assert ward.later_told()[0] == 5, "a whole life later"
    ward.pulse.expect(4)
    ward.say_hello(6)
    assert ward.later_told()[0] == 6
    assert ward.told.empty()


def test_who_came_and_was_lost_is_expected_anew(ward: Ward) -> None:
    ward.say_hello(4).close()
    assert ward.next_told() == (4, CLOSED)
    ward.pulse.expect(4)
    assert ward.later_told() == (4, f"it was silent for {LIFE_S} s")


def hold_at(ward: Ward, victim: int) -> threading.Event:
    """Let the pulse stand still when it tells of a death, until the event is set."""
    held, may_go_on = threading.Event(), threading.Event()

    def hold(process: int) -> None:
        if process == victim:
            held.set()
            may_go_on.wait(PATIENCE_S)

    ward.then = hold
    ward.say_hello(victim).close()
    assert held.wait(PATIENCE_S)
    return may_go_on


def test_a_pulse_that_was_itself_held_up_loses_nobody(ward: Ward) -> None:
    """What has come meanwhile is heard before anybody is judged."""
    for process in range(10, 40):
        ward.heart(process)
        assert ward.is_heard(process)
    may_go_on = hold_at(ward, 2)
    ward.clock.advance(2 * LIFE_S)
    assert ward.all_wait_to_be_heard()
    may_go_on.set()
    assert ward.next_told() == (2, CLOSED)
    ward.say_hello(3)
    assert ward.later_told() == (3, f"it was silent for {LIFE_S} s")
    assert ward.told.empty()


def test_and_not_those_who_came_meanwhile(ward: Ward) -> None:
    may_go_on = hold_at(ward, 2)
    for process in range(10, 20):
        ward.pulse.expect(process)
        ward.heart(process)
    ward.clock.advance(2 * LIFE_S)
    may_go_on.set()
    assert ward.next_told() == (2, CLOSED)
    assert all(ward.is_heard(process) for process in range(10, 20))
    assert ward.told.empty()


def test_many_hearts_are_heard(ward: Ward) -> None:
    for process in range(60):
        ward.heart(process)
    assert all(ward.is_heard(process) for process in range(60))
    ward.say_hello(100)
    assert ward.later_told()[0] == 100
    assert ward.told.empty()


def test_a_heart_that_was_hung_up_on_comes_again(ward: Ward) -> None:
    heart = ward.heart(7)
    assert ward.is_heard(7)
    deadline_s = time.monotonic() + PATIENCE_S
    while (sock := heart._sock) is None:  # it has still to hear the proof
        assert time.monotonic() < deadline_s
    sock.shutdown(socket.SHUT_RDWR)
    assert ward.next_told() == (7, CLOSED)
    assert ward.is_heard(7)


def test_a_heart_that_nobody_hears_at_first_is_heard_when_somebody_listens() -> None:
    ward = Ward()
    host, port = ward.pulse.address.split()
    with socket.create_server((host, 0)) as other:
        nobody = other.getsockname()[1]
    found: list[str] = []
    heart = Heart(f"{host} {nobody}", 7, LIFE_S, SECRET, lambda: found[0] if found else None)
    ward.hearts[7] = heart
    heart.start()
    found.append(f"{host} {port}")
    ward.pulse.start()
    try:
        assert ward.is_heard(7)
    finally:
        ward.close()


def test_a_heart_that_begins_when_nobody_coordinates_is_heard_when_somebody_does(
    ward: Ward,
) -> None:
    """As while a backup takes over, and has not said yet where it is."""
    looked = threading.Semaphore(0)
    addresses: list[str] = []

    def find() -> str | None:
        looked.release()
        return addresses[0] if addresses else None

    heart = ward.hearts[3] = Heart("", 3, 0.1, SECRET, find)
    heart.start()
    for _ in range(2):
        assert looked.acquire(timeout=PATIENCE_S)
    addresses.append(ward.pulse.address)
    assert ward.is_heard(3)


def test_a_heart_goes_to_where_the_coordinator_is_now() -> None:
    """Though the one before still listens, as one does that stood still for a while."""
    before, after = Ward(), Ward()
    found = [before.pulse.address]
    heart = Heart(before.pulse.address, 7, LIFE_S, SECRET, lambda: found[0])
    before.hearts[7] = heart
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
    ward = Ward()
    ward.pulse.start()
    heart = ward.heart(7)
    sock = ward.say_hello(8)
    assert ward.is_heard(7)
    assert ward.is_heard(8)
    ward.pulse.close()
    sock.settimeout(PATIENCE_S)
    assert sock.recv(1) == b""
    heart.stop()
    sock.close()
    assert ward.told.empty(), "its own end is nobody's death"


def test_a_pulse_that_never_began_can_be_closed() -> None:
    Ward().close()


def test_a_process_that_speaks_over_a_new_line_is_not_lost_with_the_old_one(ward: Ward) -> None:
    """Its old connection may have broken in the middle, where nobody was told of it."""
    old = ward.say_hello(7)
    assert ward.is_heard(7)
    ward.heart(7)
    old.settimeout(PATIENCE_S)
    assert old.recv(1) == b""
    ward.say_hello(8)
    assert ward.later_told()[0] == 8
    ward.pulse.expect(7)
    ward.say_hello(9)
    assert ward.later_told()[0] == 9
    assert ward.told.empty()
