"""Doors of a job: sockets that listen, and let in who proves that he has the job's secret.

Both sides prove it, and neither says it: each answers the other's random number with a MAC of both
(challenge and response, as in ISO/IEC 9798-4). What a stranger sends is never longer
than `ANSWER_BYTES`, and is compared, not interpreted.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from psrpc.errors import SecretError
from psrpc.secret import MAC_BYTES, NONCE_BYTES, Secret

_HELLO = b"psrpc/1\n"
CHALLENGE_BYTES = len(_HELLO) + NONCE_BYTES
ANSWER_BYTES = NONCE_BYTES + MAC_BYTES
STRANGER_S = 10.0
_CREDENTIALS = struct.Struct("3i")  # process, user, group
MOST_STRANGERS = 64  # at a door at one time; more turn the oldest away


def is_own(sock: socket.socket) -> bool:
    """Whether the process at a Unix socket's other end is of this one's user, by the kernel's word.

    Of a socket that connected, that is who listened there when it did.
    """
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.geteuid())


class Challenge:
    """One question to whoever has come, for `purpose`; `extra` is what he said beside."""

    def __init__(self, secret: Secret, purpose: str) -> None:
        self._secret = secret
        self._purpose = purpose
        self._nonce = os.urandom(NONCE_BYTES)

    @property
    def words(self) -> bytes:
        """What he is asked: `CHALLENGE_BYTES`."""
        return _HELLO + self._nonce

    def proof(self, answer: bytes, extra: bytes = b"") -> bytes:
        """This side's own proof, of `MAC_BYTES`. Raises SecretError unless his is right."""
        nonce, mac = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
        both = (self._nonce, nonce, extra)
        if not self._secret.knows(mac, f"{self._purpose}/visitor", *both):
            raise SecretError(f"a visitor at the door ({self._purpose}) has not the job's secret")
        return self._secret.mac(f"{self._purpose}/host", *both)


def ask(sock: socket.socket, secret: Secret, purpose: str, limit_s: float = STRANGER_S) -> None:
    """Let a visitor prove that he has the secret, and prove it. Blocks for `limit_s` at most.

    Raises SecretError, OSError or EOFError.
    """
    deadline = time.monotonic() + limit_s
    challenge = Challenge(secret, purpose)
    sock.settimeout(limit_s)
    sock.sendall(challenge.words)
    sock.sendall(challenge.proof(receive(sock, ANSWER_BYTES, deadline)))


def enter(
    sock: socket.socket,
    secret: Secret,
    purpose: str,
    extra: bytes = b"",
    limit_s: float = STRANGER_S,
) -> None:
    """Prove at a door that this process has the secret, and let the other side prove it.

    Says `extra` first. Blocks for `limit_s` at most. Raises SecretError if the other side lacks it
    or hangs up on this one, and OSError if there is no answer.
    """
    deadline = time.monotonic() + limit_s
    try:
        words = receive(sock, CHALLENGE_BYTES, deadline)
        if not words.startswith(_HELLO):
            raise SecretError(f"what listens there ({purpose}) is no psrpc, or of another version")
        theirs, mine = words[len(_HELLO) :], os.urandom(NONCE_BYTES)
        both = (theirs, mine, extra)
        sock.settimeout(limit_s)
        sock.sendall(extra + mine + secret.mac(f"{purpose}/visitor", *both))
        proof = receive(sock, MAC_BYTES, deadline)
    except EOFError as error:
        raise ConnectionResetError(f"it hung up within the first words ({purpose})") from error
    if not secret.knows(proof, f"{purpose}/host", *both):
        raise SecretError(f"what listens there ({purpose}) has not the job's secret")


def receive(sock: socket.socket, size: int, deadline: float) -> bytes:
    """That many bytes. Raises EOFError at the end of the stream, TimeoutError at `deadline`."""
    came = b""
    while len(came) < size:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("it does not say who it is")
        sock.settimeout(left_s)
        more = sock.recv(size - len(came))
        if not more:
            raise EOFError("it hung up")
        came += more
    return came


class Door:
    """Listens on one address. `welcome` gets the socket of each who has proved himself.

    It is called on a thread of the visitor's own, and may stay there; the socket is its. `host` is
    an address of this host. Strangers are hung up on after `STRANGER_S`.
    """

    def __init__(
        self, host: str, secret: Secret, purpose: str, welcome: Callable[[socket.socket], None]
    ) -> None:
        self._host = host
        self._secret = secret
        self._purpose = purpose
        self._welcome = welcome
        self._strangers: dict[socket.socket, None] = {}  # the oldest first
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._port = 0
        self._thread = threading.Thread(target=self._run, name=f"psrpc-{purpose}", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self._host}:{self._port}"

    def start(self) -> None:
        """Listen."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._listener = socket.create_server((self._host, 0), family=family, backlog=128)
        self._port = int(self._listener.getsockname()[1])
        self._thread.start()

    def close(self) -> None:
        """Let nobody in any more. Who is in stays."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        listener.close()
        with self._lock:
            for sock in self._strangers:
                _cut(sock)

    def _run(self) -> None:
        listener = self._listener
        while listener is not None:
            try:
                sock, _ = listener.accept()
            except OSError:
                if self._listener is None:
                    return
                time.sleep(0.1)  # out of descriptors: some stranger's will be free soon
                continue
            with self._lock:
                if len(self._strangers) >= MOST_STRANGERS:
                    _cut(next(iter(self._strangers)))
                self._strangers[sock] = None
            threading.Thread(
                target=self._meet, args=(sock,), name=f"psrpc-{self._purpose}", daemon=True
            ).start()

    def _meet(self, sock: socket.socket) -> None:
        try:
            ask(sock, self._secret, self._purpose)
        except (SecretError, OSError, EOFError):
            sock.close()
            return
        finally:
            with self._lock:
                self._strangers.pop(sock, None)
        sock.settimeout(None)
        self._welcome(sock)


def knock(
    host: str, port: int, secret: Secret, purpose: str, limit_s: float = STRANGER_S
) -> socket.socket:
    """Connect to a door. Blocks; raises OSError if there is none, SecretError as `enter`."""
    sock = socket.create_connection((host, port), limit_s)
    try:
        enter(sock, secret, purpose, limit_s=limit_s)
    except BaseException:
        sock.close()
        raise
    sock.settimeout(None)
    return sock


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
