"""A client's connection to one owner: requests in batches, replies as futures."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from psrpc.errors import PeerLostError, PsrpcError, decode
from psrpc.forks import keep_from_children
from psrpc.space import codec, frames, words
from psrpc.space.codec import Blobs
from psrpc.space.frames import Blob, Inbox, Outbox
from psrpc.space.sockets import Address, connect
from psrpc.space.words import Said, Word

_PING_S = 10.0
_SILENT_S = 30.0
_BATCH = 64  # requests that do not wait for an answer to those before them
_WAITS = (Word.READ, Word.TAKE)


class Reply(NamedTuple):
    """What an owner said: a value, or tuples; of a tuple that was taken also its lease."""

    said: Said
    value: Any = None
    lease: int | None = None
    left_s: float | None = None
    number: int = -1  # of the connection's question


class Connection:
    """A connection to one owner; everything may be called from any thread.

    A request goes at once if no answer is due soon, else with others in one frame.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._sock: socket.socket | None = None
        self._lock = threading.Lock()
        self._tags = itertools.count(1)
        self._pending: dict[int, Future[Reply]] = {}
        self._listeners: dict[int, Callable[[Reply], None]] = {}
        self._quick: set[int] = set()  # what is answered soon, sent and not answered yet
        self._requests: list[list[Any]] = []
        self._blobs: list[Blob] = []
        self._outbox = Outbox()
        self._sending = False
        self._lost: PsrpcError | None = None
        self._heard_s = time.monotonic()
        self._thread = threading.Thread(target=self._read, name="psrpc-space-client", daemon=True)

    def start(self) -> Connection:
        """Connect. Raises AddressError, or ProtocolError where the secret is wrong."""
        sock = self._sock = keep_from_children(connect(self._address))
        self._pid = os.getpid()
        try:
            sock.settimeout(_SILENT_S)
            nonce = sock.recv(words.NONCE_BYTES, socket.MSG_WAITALL)
            sock.sendall(b"".join(frames.pack_raw(words.proof(self._address.secret, nonce))))
            inbox = Inbox(frames.MOST_HEADER_BYTES, frames.MOST_BLOB_BYTES)
            while not (came := inbox.take(sock)):
                pass
            _, said, *rest = json.loads(came[0].header)[0]
        except (OSError, EOFError, ValueError, IndexError) as error:
            sock.close()
            raise PeerLostError(f"no tuple space at {self._address.shown}: {error}") from error
        if said == Said.FAILED:
            sock.close()
            raise decode(*rest)
        sock.settimeout(None)
        limit = struct.pack("ll", int(_PING_S), 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._inbox = inbox
        self._thread.start()
        return self

    @property
    def usable(self) -> bool:
        """Whether requests can be sent: it is not lost, and another process's."""
        return self._lost is None and self._pid == os.getpid()

    @property
    def own_thread(self) -> bool:
        """Whether this is the thread that brings answers, and so must not wait for one."""
        return threading.current_thread() is self._thread

    def ask(
        self,
        word: Word,
        space: str,
        *rest: Any,
        blobs: Sequence[Blob] = (),
        listener: Callable[[Reply], None] | None = None,
    ) -> Future[Reply]:
        """Send a request. The future has `tag`, by which the question can be withdrawn."""
        future: Future[Reply] = Future()
        with self._lock:
            if self._lost is not None:
                raise self._lost
            tag = next(self._tags)
            future.tag = tag  # type: ignore[attr-defined]
            self._pending[tag] = future
            if listener is not None:
                self._listeners[tag] = listener
            if word not in _WAITS or rest[1] == 0:
                soon = bool(self._quick)
                self._quick.add(tag)
            else:
                soon = False
            self._requests.append([tag, word, space, *rest])
            self._blobs += blobs
            if self._sending or (soon and len(self._requests) < _BATCH and not self._blobs):
                return future
            self._sending = True
        self._dispatch()
        return future

    def _dispatch(self) -> None:
        """Send what is there, and what comes meanwhile; for who has set `_sending`."""
        if self.own_thread:
            self._send_on(socket.MSG_DONTWAIT)
        else:
            self._send_on(0)

    def _send_on(self, flags: int) -> None:
        assert self._sock is not None
        while True:
            with self._lock:
                if not self._requests and not self._outbox.size_bytes:
                    self._sending = False
                    return
                requests, self._requests = self._requests, []
                blobs, self._blobs = self._blobs, []
            try:
                if requests:
                    self._outbox.put(frames.pack(requests, blobs))
                done = self._outbox.flush(self._sock, flags)
            except (OSError, ValueError) as error:
                self._lose(error)
                return
            if not done:
                # The thread that brings answers must go on; somebody else may wait for the kernel.
                threading.Thread(target=self._send_on, args=(0,), daemon=True).start()
                return

    def _read(self) -> None:
        assert self._sock is not None
        try:
            while True:
                try:
                    came = self._inbox.take(self._sock)
                except BlockingIOError:
                    self._look_for_life()
                    continue
                self._heard_s = time.monotonic()
                for frame in came:
                    blobs = Blobs(frame.blobs)
                    for reply in json.loads(frame.header):
                        self._hear(reply, blobs)
                self._hurry()
        except Exception as error:  # whatever it is, nobody may wait any more
            self._lose(error)

    def _hurry(self) -> None:
        """Send what has waited for an answer."""
        with self._lock:
            if self._sending or not self._requests:
                return
            self._sending = True
        self._dispatch()

    def _look_for_life(self) -> None:
        if not self._pending:
            self._heard_s = time.monotonic()
        elif time.monotonic() - self._heard_s > _SILENT_S:
            raise TimeoutError(f"it has said nothing for {_SILENT_S:.0f} s")
        elif not self._quick:
            self.ask(Word.ABOUT, "")

    def _hear(self, wire: list[Any], blobs: Blobs) -> None:
        tag, said, *rest = wire
        reply = _reply(Said(said), rest, blobs)
        if reply.said in (Said.SEEN, Said.BEHIND):
            if (listener := self._listeners.get(tag)) is not None:
                listener(reply)
            return
        with self._lock:
            future = self._pending.pop(tag, None)
            self._quick.discard(tag)
        if future is None:
            return
        if reply.said is Said.FAILED:
            future.set_exception(decode(*reply.value))
        else:
            future.set_result(reply._replace(number=tag))

    def forget(self, tag: int) -> None:
        """Nobody listens to that any more."""
        self._listeners.pop(tag, None)

    def _lose(self, error: BaseException) -> None:
        lost = PeerLostError(f"the tuple space at {self._address.shown} is lost: {error}")
        with self._lock:
            first, self._lost = self._lost is None, self._lost or lost
            pending, self._pending = self._pending, {}
            listeners, self._listeners = self._listeners, {}
        if first and self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()
        for listener in listeners.values():
            listener(Reply(Said.FAILED, lost))
        for future in pending.values():
            future.set_exception(lost)

    def close(self) -> None:
        """End it; who waits gets PeerLostError."""
        if self._sock is None:
            return
        if self._pid != os.getpid():
            return
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if not self.own_thread:
            self._thread.join(_PING_S)


def _reply(said: Said, rest: list[Any], blobs: Blobs) -> Reply:
    match said:
        case Said.GIVEN:
            fields = codec.unpack_fields(rest[0], blobs, codec.make_array)
            return Reply(said, fields, rest[1], rest[2])
        case Said.ALL:
            tuples = [codec.unpack_fields(wire, blobs, codec.make_array) for wire in rest[0]]
            return Reply(said, tuples)
        case Said.SEEN:
            fields = codec.unpack_fields(rest[1], blobs, codec.make_array)
            return Reply(said, (rest[0], fields))
        case Said.FAILED:
            return Reply(said, (str(rest[0]), str(rest[1])))
        case Said.DONE:
            return Reply(said, rest[0])
    return Reply(said)
