"""A client's connection to one owner: requests in batches, replies as futures.

Whoever waits for an answer reads the connection, if nobody else does: to hand an answer from a
thread that reads to the one that waits costs as much as all the rest of a request. A thread of the
connection's own reads for futures that nobody waits for, for watchers, and when nobody asks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from psrpc.errors import PeerLostError, PsrpcError, decode
from psrpc.forks import keep_from_children
from psrpc.promises import Promise
from psrpc.space import codec, frames, words
from psrpc.space.codec import Blobs
from psrpc.space.frames import Blob, Inbox, Outbox
from psrpc.space.sockets import Address, connect
from psrpc.space.words import Said, Word

_PING_S = 10.0
_SILENT_S = 30.0
_IDLE_S = 0.1  # without a request: then the connection's own thread listens
_BATCH = 64  # requests that do not wait for an answer to those before them
_LISTENED = (int(Said.SEEN), int(Said.BEHIND))


class Reply(NamedTuple):
    """What an owner said: a value, or tuples; of a tuple that was taken also its lease."""

    said: Said
    value: Any = None
    lease: int | None = None
    left_s: float | None = None


class Question(Promise):
    """A request, and its reply as a future: what `of` makes of it, by default the reply itself."""

    tag = 0  # by which it can be withdrawn
    line: Connection | None = None  # over which it was asked
    waits = False  # whether a thread waits for it, which may read that

    def of(self, reply: Reply) -> Any:
        """The result. May raise SpaceTimeoutError."""
        return reply

    def unwanted(self, reply: Reply) -> None:
        """A reply came after the question was given up."""

    def told(self, reply: Reply) -> None:
        """The reply has come."""
        try:
            wanted = self.finish(self.of(reply))
        except PsrpcError as error:
            wanted = self.finish(None, error)
        if not wanted:
            self.unwanted(reply)


class _Withdrawal(Question):
    """Its owner answers no other way to what is withdrawn: with this answer that is over."""

    def __init__(self, withdrawn: int) -> None:
        self._withdrawn = withdrawn

    def told(self, reply: Reply) -> None:
        super().told(reply)
        assert self.line is not None
        self.line.forget(self._withdrawn)


class Connection:
    """A connection to one owner; everything may be called from any thread.

    A request goes at once if no answer is due soon, else with others in one frame.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._sock: socket.socket | None = None
        self._lock = threading.Lock()
        self._tags = itertools.count(1)
        self._pending: dict[int, Question] = {}
        self._listeners: dict[int, Callable[[Reply], None]] = {}
        self._quick: set[int] = set()  # what is answered soon, sent and not answered yet
        self._requests: list[list[Any]] = []
        self._blobs: list[Blob] = []
        self._outbox = Outbox()
        self._sending = False
        self._lost: PsrpcError | None = None
        self._heard_s = time.monotonic()
        self._reading = threading.Lock()  # held by the one who reads
        self._reader = 0  # its thread
        self._torn = False  # whether what has come is read and not yet told
        self._bell = threading.Lock()
        self._bell.acquire()
        self._last = 0  # the latest tag
        self._thread = threading.Thread(target=self._attend, name="psrpc-space-client", daemon=True)

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
            _, said, *rest = frames.unpack(came[0].header)[0]
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
        return self._lost is None and self._sock is not None and self._sock.fileno() >= 0

    @property
    def own_thread(self) -> bool:
        """Whether this is the thread that brings answers, and so must not wait for one."""
        return self._reader == threading.get_ident()

    def ask(
        self,
        word: Word,
        space: str,
        *rest: Any,
        blobs: Sequence[Blob] = (),
        listener: Callable[[Reply], None] | None = None,
        question: Question | None = None,
        waits: bool = False,
    ) -> Question:
        """Send a request; returns its question, which is `question` if that is given.

        With `waits` this thread will call `wait` for it.
        """
        future = Question() if question is None else question
        with self._lock:
            if self._lost is not None:
                raise self._lost
            tag = future.tag = self._last = next(self._tags)
            future.line = self
            self._pending[tag] = future
            if listener is not None:
                self._listeners[tag] = listener
            # In this order, for `_receive`: what it does not see here is sent at once.
            self._requests.append([tag, word, space, *rest])
            if blobs:
                self._blobs += blobs
            soon = bool(self._quick)
            self._quick.add(tag)
            later = self._sending or (soon and len(self._requests) < _BATCH and not self._blobs)
            if not later:
                self._sending = True
                batch = self._batch()
        if waits:
            future.waits = True
        elif not self._reader:
            self._ring()
        if not later:
            self._send(*batch)
        return future

    def wait(self, question: Question) -> Any:
        """The result of a question that was asked with `waits`. Blocks."""
        if not question.over and self._reading.acquire(blocking=False):
            self._read_until(question)
        return question.result()

    def withdraw(self, question: Question, space: str) -> None:
        """No answer is wanted any more to a question that was asked here."""
        if self.usable:  # else there is nobody to tell: all that was asked is void
            with contextlib.suppress(PsrpcError):
                self.ask(Word.WITHDRAW, space, question.tag, question=_Withdrawal(question.tag))

    def _batch(self) -> tuple[list[list[Any]], list[Blob]]:
        """What is to be sent, for who has the lock."""
        batch = self._requests, self._blobs
        self._requests, self._blobs = [], []
        return batch

    def _send(self, requests: list[list[Any]], blobs: list[Blob]) -> None:
        """Send this, and what comes meanwhile; for who has set `_sending`."""
        assert self._sock is not None
        # The thread that brings answers must go on; somebody else may wait for the kernel.
        flags = socket.MSG_DONTWAIT if self.own_thread else 0
        while True:
            try:
                if not self._outbox.send(self._sock, frames.pack(requests, blobs), flags):
                    threading.Thread(target=self._send_rest, daemon=True).start()
                    return
            except (OSError, ValueError) as error:
                self._lose(error)
                return
            except BaseException as error:  # an interrupt: what of it was sent, nobody knows
                self._lose(error)
                raise
            with self._lock:
                if not self._requests:
                    self._sending = False
                    return
                requests, blobs = self._batch()

    def _send_rest(self) -> None:
        assert self._sock is not None
        try:
            self._outbox.flush(self._sock)
        except (OSError, ValueError) as error:
            self._lose(error)
            return
        with self._lock:
            if not self._requests:
                self._sending = False
                return
            batch = self._batch()
        self._send(*batch)

    def _ring(self) -> None:
        """Let the connection's own thread read."""
        with contextlib.suppress(RuntimeError):
            self._bell.release()

    def _attend(self) -> None:
        """Read where nobody who waits does: when asked to, or when there was no request lately."""
        last = -1
        while self._lost is None:
            if not self._bell.acquire(timeout=_IDLE_S) and last != self._last:
                last = self._last
            elif self._reading.acquire(blocking=False):
                self._read_until(self)
                last = self._last

    @property
    def over(self) -> bool:
        """Whether nobody is to be told anything."""
        return not (self._pending or self._listeners)

    def _read_until(self, matter: Question | Connection) -> None:
        """Bring answers, once at least, until a matter is over; for who has acquired `_reading`."""
        self._reader = threading.get_ident()
        try:
            while True:
                self._receive()
                if matter.over:
                    return
        except Exception as error:  # whatever it is, nobody may wait any more
            self._lose(error)
        except BaseException as error:
            if self._torn:
                self._lose(error)
            raise
        finally:
            self._reader = 0
            self._reading.release()
            if not self.over:
                self._ring()

    def _receive(self) -> None:
        """Take what has come, or wait for it. An interrupt while it waits does no harm."""
        assert self._sock is not None
        try:
            self._inbox.fetch(self._sock)
        except BlockingIOError:
            self._look_for_life()
            return
        self._torn = True
        self._heard_s = time.monotonic()
        for frame in self._inbox.frames():
            blobs = Blobs(frame.blobs)
            for reply in frames.unpack(frame.header):
                self._hear(reply, blobs)
        self._torn = False
        if self._requests:
            self._hurry()

    def _hurry(self) -> None:
        """Send what has waited for an answer."""
        with self._lock:
            if self._sending or not self._requests:
                return
            self._sending = True
            batch = self._batch()
        self._send(*batch)

    def _look_for_life(self) -> None:
        if not self._pending:
            self._heard_s = time.monotonic()
        elif time.monotonic() - self._heard_s > _SILENT_S:
            raise TimeoutError(f"it has said nothing for {_SILENT_S:.0f} s")
        elif not self._quick:
            self.ask(Word.ABOUT, "")

    def _hear(self, wire: list[Any], blobs: Blobs) -> None:
        tag, said = wire[0], wire[1]
        if said in _LISTENED:
            if (listener := self._listeners.get(tag)) is not None:
                listener(_reply(said, wire, blobs))
            return
        self._quick.discard(tag)
        if said == Said.HELD or (future := self._pending.get(tag)) is None:
            return
        reply = _reply(said, wire, blobs)
        if said == Said.FAILED:
            future.finish(None, decode(*reply.value))
        else:
            future.told(reply)
        self._pending.pop(tag, None)  # at last: whatever interrupts this, it is not forgotten

    def forget(self, tag: int) -> None:
        """Nobody waits for that, or listens to it, any more."""
        self._pending.pop(tag, None)
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
            self._ring()
        for listener in listeners.values():
            listener(Reply(Said.FAILED, lost))
        for future in pending.values():
            future.finish(None, lost)

    def close(self) -> None:
        """`end`, and return when its thread has."""
        if self.end() and not self.own_thread:
            self._thread.join(_PING_S)

    def end(self) -> bool:
        """End it; who waits gets PeerLostError. False if it never began, or not in this process.

        Takes no locks, and waits for nobody: the garbage collector calls it.
        """
        if self._sock is None or self._pid != os.getpid():
            return False
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._ring()
        return True


def _reply(said: int, wire: list[Any], blobs: Blobs) -> Reply:
    if said == Said.GIVEN:
        fields = codec.unpack_fields(wire[2], blobs, codec.make_array)
        return Reply(Said.GIVEN, fields, wire[3], wire[4])
    if said == Said.DONE:
        return Reply(Said.DONE, wire[2])
    if said == Said.ALL:
        tuples = [codec.unpack_fields(each, blobs, codec.make_array) for each in wire[2]]
        return Reply(Said.ALL, tuples)
    if said == Said.SEEN:
        fields = codec.unpack_fields(wire[3], blobs, codec.make_array)
        return Reply(Said.SEEN, (wire[2], fields))
    if said == Said.FAILED:
        return Reply(Said.FAILED, (str(wire[2]), str(wire[3])))
    return Reply(Said(said))
