"""The owner of tuples, a shard of a space: one thread that serves all of its clients."""

from __future__ import annotations

import hmac
import secrets
import select
import socket
import threading
from typing import Any

from psrpc.clock import Clock, SystemClock
from psrpc.errors import AddressError, ClosedError, ProtocolError, encode
from psrpc.forks import keep_from_children
from psrpc.space import frames, words
from psrpc.space.codec import Blobs
from psrpc.space.desk import Desk
from psrpc.space.frames import Frame, Inbox, Outbox
from psrpc.space.sockets import keep_alive
from psrpc.space.words import Said

_TOKEN_S = 30.0
_FULL_BYTES = 1 << 26  # who has so much unread is not read from, and watches no more
_STRANGER_BYTES = 1 << 10
_MOST_EVENTS = 256


class _Client:
    """A connection, as the owner has it."""

    def __init__(self, sock: socket.socket, until_s: float) -> None:
        self.sock = sock
        self.inbox = Inbox(_STRANGER_BYTES, 0)
        self.outbox = Outbox()
        self.nonce = secrets.token_bytes(words.NONCE_BYTES)
        self.until_s: float | None = until_s  # None once it has shown that it may enter
        self.events = 0


class SpaceServer:
    """Owns tuples: a space's only shard, or one of several. One thread serves all clients.

    `host` and `port` are where it listens (0: any free port); whoever knows `address`, which
    has a secret in it, may use it. `limit_bytes` is what its tuples may have together. All
    tuples go with it. Use it as a context manager, or call `start` and `close`; AddressError
    if it cannot listen there.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        secret: str | None = None,
        limit_bytes: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._secret = secrets.token_hex(16) if secret is None else secret
        self._clock = SystemClock() if clock is None else clock
        self._desk = Desk(limit_bytes)
        self._clients: dict[int, _Client] = {}
        self._strangers: set[int] = set()  # who has not said who they are
        self._numbers = 0
        self._poll = select.epoll()
        self._numbered: dict[int, int] = {}  # clients by descriptor
        self._listener: socket.socket | None = None
        self._wake: socket.socket | None = None
        self._woken: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="psrpc-space", daemon=True)

    @property
    def address(self) -> str:
        """Where clients reach it, and what lets them in: secret@host:port."""
        if self._listener is None:
            raise ClosedError("this owner of a tuple space is not running: call start")
        return f"{self._secret}@{self._host}:{self._listener.getsockname()[1]}"

    def start(self) -> SpaceServer:
        """Listen, and serve in a thread of its own."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            self._listener = socket.create_server((self._host, self._port), family=family)
        except (OSError, OverflowError) as error:
            raise AddressError(
                f"a tuple space cannot listen on {self._host}:{self._port}: {error}"
            ) from error
        keep_from_children(self._listener)
        self._listener.setblocking(False)
        wake, self._wake = socket.socketpair()
        self._woken = wake
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(wake, select.EPOLLIN)
        self._thread.start()
        return self

    def close(self) -> None:
        """End all connections; tuples are gone. Returns when the thread has ended."""
        if self._wake is not None:
            self._wake.close()
            self._wake = None
            self._thread.join()
            self._listener = None

    def __enter__(self) -> SpaceServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            for number in list(self._clients):
                self._drop(number)
            self._poll.close()
            for sock in (self._listener, self._woken):
                if sock is not None:
                    sock.close()

    def _turn(self) -> bool:
        """Serve whoever has said something, and do what is due; False when it shall end."""
        ready = self._poll.poll(self._patience(), _MOST_EVENTS)
        now = self._clock.now()
        self._desk.tick(now)
        going = True
        for descriptor, events in ready:
            number = self._numbered.get(descriptor)
            if number is not None:
                self._serve(number, events, now)
            elif self._listener is not None and descriptor == self._listener.fileno():
                self._accept(now)
            elif self._woken is not None and descriptor == self._woken.fileno():
                going = False
        if self._strangers:
            self._see_out(now)
        self._post()
        return going

    def _patience(self) -> float | None:
        next_s = self._desk.next_s
        if next_s is None and not self._strangers:
            return None
        moments = [
            until_s
            for number in self._strangers
            if (until_s := self._clients[number].until_s) is not None
        ]
        if next_s is not None:
            moments.append(next_s)
        return max(min(moments) - self._clock.now(), 0.0) if moments else None

    def _accept(self, now: float) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # It left already; or there are too many open files, which will pass.
        sock.setblocking(False)
        keep_alive(sock)
        self._numbers += 1
        client = _Client(keep_from_children(sock), now + _TOKEN_S)
        self._clients[self._numbers] = client
        self._strangers.add(self._numbers)
        client.events = select.EPOLLIN
        self._numbered[sock.fileno()] = self._numbers
        self._poll.register(sock, client.events)
        client.outbox.put([memoryview(client.nonce)])
        self._flush(self._numbers, client)

    def _serve(self, number: int, events: int, now: float) -> None:
        client = self._clients.get(number)
        if client is None:
            return
        if events & ~select.EPOLLIN and client.outbox.size_bytes:
            self._flush(number, client)
        reads = events & ~select.EPOLLOUT and client.events & select.EPOLLIN
        if not reads or number not in self._clients:
            return
        try:
            for frame in client.inbox.take(client.sock):
                self._hear(number, client, frame, now)
        except BlockingIOError:
            return
        except ProtocolError as error:
            self._last_word(number, client, error)
            self._drop(number, now)
        except (OSError, EOFError, MemoryError):
            self._drop(number, now)
        except Exception as error:  # one client's nonsense must not end the others' owner
            self._last_word(number, client, ProtocolError(f"a request that is none: {error!r}"))
            self._drop(number, now)

    def _hear(self, number: int, client: _Client, frame: Frame, now: float) -> None:
        if client.until_s is not None:
            if not hmac.compare_digest(frame.header, words.proof(self._secret, client.nonce)):
                raise ProtocolError("this tuple space does not know who you are: a wrong secret")
            client.until_s = None
            self._strangers.discard(number)
            client.inbox.allow(frames.MOST_HEADER_BYTES, frames.MOST_BLOB_BYTES)
            self._send(number, client, [[-1, Said.DONE, None]], [])
            return
        try:
            requests = frames.unpack(frame.header)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a request that is no JSON: {error}") from None
        self._desk.handle(number, requests, Blobs(frame.blobs), now)

    def _last_word(self, number: int, client: _Client, error: ProtocolError) -> None:
        self._send(number, client, [[-1, Said.FAILED, *encode(error)]], [])

    def _post(self) -> None:
        """Send what clients are to be told."""
        while letters := self._desk.letters:  # whoever is dropped meanwhile leaves tuples to others
            self._desk.letters = {}
            for number, letter in letters.items():
                assert isinstance(number, int)
                if (client := self._clients.get(number)) is not None:
                    self._send(number, client, letter.replies, letter.blobs)

    def _send(self, number: int, client: _Client, replies: Any, blobs: list[memoryview]) -> None:
        views = frames.pack(replies, blobs)
        try:
            if client.outbox.send(client.sock, views) and client.events == select.EPOLLIN:
                return
        except OSError:
            self._drop(number)
            return
        self._flush(number, client)

    def _flush(self, number: int, client: _Client) -> None:
        try:
            client.outbox.flush(client.sock)
        except OSError:
            self._drop(number)
            return
        events = select.EPOLLOUT if client.outbox.size_bytes else 0
        if client.outbox.size_bytes <= _FULL_BYTES:
            events |= select.EPOLLIN
        else:
            self._desk.unwatch_all(number)
        if events != client.events:
            client.events = events
            self._poll.modify(client.sock, events)

    def _see_out(self, now: float) -> None:
        """Strangers who do not say who they are do not stay."""
        for number in list(self._strangers):
            until_s = self._clients[number].until_s
            if until_s is not None and until_s <= now:
                self._drop(number, now)

    def _drop(self, number: int, now: float | None = None) -> None:
        """A connection has ended: what its client had leased comes back."""
        client = self._clients.pop(number, None)
        if client is None:
            return
        self._strangers.discard(number)
        del self._numbered[client.sock.fileno()]
        self._poll.unregister(client.sock)  # a child that was forked just now may have it still
        client.sock.close()
        self._desk.gone(number, self._clock.now() if now is None else now)
