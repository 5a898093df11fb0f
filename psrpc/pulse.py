"""Who is alive: every worker keeps a connection to the coordinator and says a word now and then.

A connection that ends tells of a death at once; one that is silent for too long tells of a
process that stands still, or that the network cuts off. This has nothing to do with calls: one
that takes long is no death, and the words are said by a thread of their own.

Who connects says the process's number, and proves that he has the job's secret (`doors`); every
later word is a byte.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from psrpc.clock import Clock, SystemClock
from psrpc.errors import SecretError
from psrpc.forks import keep_from_children
from psrpc.planes.doors import ANSWER_BYTES, MOST_STRANGERS, Challenge, enter
from psrpc.secret import Secret

_PURPOSE = "pulse"
_PROCESS = struct.Struct("!I")
_BEAT = b"\x01"
_BEATS_A_LIFE = 5
_LONGEST_BEAT_S = 2.0
_RETRY_S = 0.2
_CONNECT_S = 5.0


@dataclass
class _Line:
    """One connection; `process` is None, and it is a stranger's, until it has proved itself."""

    sock: socket.socket
    heard_s: float
    challenge: Challenge
    process: int | None = None
    begun: bytes = b""


class Pulse:
    """The coordinator's side: calls `lost` with a process's number and why it counts as dead.

    `lost` runs on this object's thread, and may be called more than once for a process.
    """

    def __init__(
        self,
        host: str,
        dead_after_s: float,
        lost: Callable[[int, str], None],
        secret: Secret,
        clock: Clock | None = None,
    ) -> None:
        self._dead_after_s = dead_after_s
        self._clock = clock or SystemClock()
        self._lost = lost
        self._secret = secret
        self._selector = selectors.DefaultSelector()
        self._lines: dict[int, _Line] = {}  # by descriptor
        self._expected: dict[int, float] = {}  # processes that must connect, since when
        self._heard: set[int] = set()  # processes that are connected
        self._expect_lock = threading.Lock()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self._listener.setblocking(False)
        self._bell, self._ear = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="psrpc-pulse", daemon=True)

    @property
    def address(self) -> str:
        """Where workers reach this: host and port."""
        host, port = self._listener.getsockname()[:2]
        return f"{host} {port}"

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def expect(self, process: int) -> None:
        """A process belongs to the job now, so it must be heard, or is lost."""
        with self._expect_lock:
            if process not in self._heard:
                self._expected.setdefault(process, self._clock.now())

    def close(self) -> None:
        """Stop listening."""
        self._bell.close()
        if self._thread.ident is not None:
            self._thread.join()
        else:
            self._shut()

    def _run(self) -> None:
        beat_s = min(self._dead_after_s / _BEATS_A_LIFE, _LONGEST_BEAT_S)
        now_s = self._clock.now()
        while True:
            # Judged is what had come at this moment: if it was this process that stood still, or
            # `lost` that took long, the others' words are waiting, and are heard first.
            before_s, now_s = now_s, self._clock.now()
            self._forgive(now_s - before_s - beat_s)
            for key, _ in self._selector.select(beat_s):
                if key.fileobj is self._ear:
                    self._shut()
                    return
                if key.fileobj is self._listener:
                    self._admit()
                elif key.fd in self._lines:  # not one that a newer line has just replaced
                    self._listen(self._lines[key.fd])
            self._judge(now_s)

    def _forgive(self, stood_still_s: float) -> None:
        """Nobody could prove meanwhile who he is, for that takes an answer."""
        if stood_still_s > 0:
            with self._expect_lock:
                for process in self._expected:
                    self._expected[process] += stood_still_s

    def _admit(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                time.sleep(_RETRY_S)  # out of descriptors; strangers' become free soon
                return
            sock.setblocking(False)
            strangers = [line for line in self._lines.values() if line.process is None]
            if len(strangers) >= MOST_STRANGERS:
                self._drop(strangers[0])
            challenge = Challenge(self._secret, _PURPOSE)
            line = self._lines[sock.fileno()] = _Line(sock, self._clock.now(), challenge)
            self._selector.register(sock, selectors.EVENT_READ)
            try:
                sock.send(challenge.words)
            except OSError:
                self._drop(line)

    def _listen(self, line: _Line) -> None:
        try:
            words = line.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        if not words:
            self._hang_up(line, "its connection was closed")
        elif line.process is not None:
            line.heard_s = self._clock.now()
        else:
            line.begun += words
            if len(line.begun) >= _PROCESS.size + ANSWER_BYTES:
                self._meet(line)

    def _meet(self, line: _Line) -> None:
        """Somebody has said who he is: is it true?"""
        said, answer = line.begun[: _PROCESS.size], line.begun[_PROCESS.size :][:ANSWER_BYTES]
        try:
            line.sock.send(line.challenge.proof(answer, said))
        except (SecretError, OSError):
            self._drop(line)
            return
        (process,) = _PROCESS.unpack(said)
        for old in [x for x in self._lines.values() if x.process == process]:
            self._drop(old)  # it lives, and speaks over another line now
        line.process, line.heard_s = process, self._clock.now()
        with self._expect_lock:
            self._expected.pop(process, None)
            self._heard.add(process)

    def _judge(self, now: float) -> None:
        why = f"it was silent for {self._dead_after_s:g} s"
        silent = [x for x in self._lines.values() if now - x.heard_s > self._dead_after_s]
        for line in silent:
            self._hang_up(line, why)
        with self._expect_lock:
            waited = [p for p, since in self._expected.items() if now - since > self._dead_after_s]
            for process in waited:
                del self._expected[process]
        for process in waited:
            self._lost(process, why)

    def _hang_up(self, line: _Line, why: str) -> None:
        self._drop(line)
        if line.process is not None:
            with self._expect_lock:
                self._heard.discard(line.process)
            self._lost(line.process, why)

    def _drop(self, line: _Line) -> None:
        self._selector.unregister(line.sock)
        del self._lines[line.sock.fileno()]
        line.sock.close()

    def _shut(self) -> None:
        self._selector.close()
        for sock in (self._listener, self._ear, *(line.sock for line in self._lines.values())):
            sock.close()


class Heart:
    """A worker's side: says, as long as the process runs, that it lives."""

    def __init__(
        self,
        address: str,
        process: int,
        dead_after_s: float,
        secret: Secret,
        find: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`find` tells another address, if the coordinator has moved. "" is none yet."""
        self._address = address
        self._process = process
        self._secret = secret
        self._find = find
        self._beat_s = min(dead_after_s / _BEATS_A_LIFE, _LONGEST_BEAT_S)
        self._stop = threading.Event()
        self._sock: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="psrpc-heart", daemon=True)

    def start(self) -> None:
        """Connect and say the first word, in the background, again and again if that fails."""
        self._thread.start()

    def stop(self) -> None:
        """Fall silent, and hang up."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._sock is not None:
            self._sock.close()

    def _run(self) -> None:
        self._sock = self._connect()
        while not self._stop.wait(self._beat_s if self._sock is not None else _RETRY_S):
            if self._sock is not None and (self._moved() or not self._beat(self._sock)):
                self._sock.close()
                self._sock = None
            if self._sock is None:
                self._sock = self._connect()

    def _moved(self) -> bool:
        return (self._find() or self._address) != self._address

    def _beat(self, sock: socket.socket) -> bool:
        try:
            sock.send(_BEAT)
            # The coordinator says nothing; if it hangs up, that is seen here.
            return sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _connect(self) -> socket.socket | None:
        self._address = self._find() or self._address
        if not self._address:
            return None  # nobody coordinates at this moment
        host, port = self._address.split()
        try:
            sock = socket.create_connection((host, int(port)), timeout=_CONNECT_S)
        except OSError:
            return None
        try:
            enter(sock, self._secret, _PURPOSE, _PROCESS.pack(self._process), _CONNECT_S)
        except (OSError, SecretError):
            sock.close()
            return None
        sock.setblocking(False)
        return keep_from_children(sock)
