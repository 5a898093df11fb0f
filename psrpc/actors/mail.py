"""Connections that carry messages in order, and in batches when they come fast.

One thread of a process reads all its connections. A message is sent by whoever has it, if nothing
else is on its way; what comes meanwhile is sent by that thread, all that has gathered at once.
"""

from __future__ import annotations

import hmac
import os
import pickle
import selectors
import socket
import struct
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from psrpc.actors import doors
from psrpc.forks import keep_from_children

_HEAD = struct.Struct("<IQ")  # buffers beside the pickle; all bytes that follow
_SIZE = struct.Struct("<Q")
_BUFFER_BYTES = 1 << 18
_BESIDE_BYTES = 1 << 16
_MOST_AT_ONCE = 2_000
_MOST_VIEWS = 512


def frame(messages: Sequence[Any]) -> list[Any]:
    """A batch as bytes: what is large stands beside, uncopied."""
    beside: list[memoryview] = []

    def aside(buffer: pickle.PickleBuffer) -> bool:
        beside.append(buffer.raw())
        return False

    body = pickle.dumps([_spread(m) for m in messages], 5, buffer_callback=aside)
    sizes = b"".join(_SIZE.pack(view.nbytes) for view in beside)
    total = len(sizes) + len(body) + sum(view.nbytes for view in beside)
    return [_HEAD.pack(len(beside), total) + sizes + body, *beside]


def _spread(message: Any) -> Any:
    """A call or answer whose large buffers will not be copied into the pickle."""
    if type(message) is not tuple:
        return message
    for place in (2, 3):
        if place < len(message) and type(message[place]) is tuple:
            part = message[place]
            if len(part) == 2 and type(part[1]) is list and part[1]:
                put = (part[0], [pickle.PickleBuffer(each) for each in part[1]])
                return (*message[:place], put, *message[place + 1 :])
    return message


class Inbox:
    """Bytes that come, until they are whole batches."""

    def __init__(self) -> None:
        self._buffer = bytearray(_BUFFER_BYTES)
        self._filled = 0

    def read(self, sock: socket.socket) -> list[list[Any]]:
        """Read what is there; returns the batches that are complete. Raises EOFError at the end."""
        with memoryview(self._buffer) as view:
            came = sock.recv_into(view[self._filled :])
        if not came:
            raise EOFError("the connection has ended")
        self._filled += came
        batches: list[list[Any]] = []
        begin = 0
        while self._filled - begin >= _HEAD.size:
            count, total = _HEAD.unpack_from(self._buffer, begin)
            end = begin + _HEAD.size + total
            if end > self._filled:
                self._make_room(begin, end - begin)
                return batches
            batches.append(self._open(begin + _HEAD.size, end, count))
            begin = end
        self._make_room(begin, 0)
        return batches

    def _open(self, begin: int, end: int, count: int) -> list[Any]:
        if not count:
            with memoryview(self._buffer) as view:
                batch: list[Any] = pickle.loads(view[begin:end])
            return batch
        view = memoryview(self._buffer[begin:end])  # theirs: what is beside stays where it is
        sizes = [_SIZE.unpack_from(view, place * _SIZE.size)[0] for place in range(count)]
        last = len(view) - sum(sizes)
        body, buffers = view[count * _SIZE.size : last], []
        for size in sizes:
            buffers.append(view[last : last + size])
            last += size
        batch = pickle.loads(body, buffers=buffers)
        return batch

    def _make_room(self, begin: int, needed: int) -> None:
        """Move what is left to the front of a buffer in which a frame of `needed` bytes fits."""
        left = self._filled - begin
        if needed > len(self._buffer) or (len(self._buffer) > _BUFFER_BYTES and not left):
            grown = bytearray(max(needed, _BUFFER_BYTES))
            grown[:left] = self._buffer[begin : self._filled]
            self._buffer = grown
        elif begin and left:
            self._buffer[:left] = self._buffer[begin : self._filled]
        self._filled = left


class Post:
    """One connection. `send` may be called from any thread; batches come on the mail's own."""

    def __init__(self, mail: Mail, sock: socket.socket, expected: bytes | None) -> None:
        self.sock = sock
        self.tag: Any = None  # whatever the owner knows it by
        self.ended = False
        self.got = mail.got
        self.over = mail.over
        self.squeeze = mail.squeeze
        self._mail = mail
        self._expected = expected
        self._inbox = Inbox()
        self._outbox: deque[Any] = deque()
        self._rest: deque[memoryview] = deque()
        self._sending = False
        self._lock = threading.Lock()

    def send(self, message: Any, at_once: bool = True) -> None:
        """Send, in order; what cannot be sent any more is dropped (`over` is called then).

        Without `at_once` it is left to the mail's thread, which takes along what comes until then.
        """
        self._outbox.append(message)
        if not self._sending:
            self._begin(at_once)

    def send_all(self, messages: Iterable[Any], at_once: bool) -> None:
        """Send several, in order."""
        self._outbox.extend(messages)
        if not self._sending:
            self._begin(at_once)

    def _begin(self, at_once: bool) -> None:
        if not self._claim():
            return
        if at_once:
            self._flush(once=True)
        else:
            self._mail.ask(self)

    def close(self) -> None:
        """End the connection, from any thread; the mail's thread then calls `over`."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def pump(self) -> bool:
        """Go on sending, on the mail's thread; False if the kernel takes no more now."""
        if self._rest and not self._write():
            return False
        return self._flush(once=False)

    def read(self) -> None:
        """Take what has come, on the mail's thread."""
        if self._expected is not None and not self._admit():
            raise EOFError("it does not know the token")
        try:
            batches = self._inbox.read(self.sock)
        except BlockingIOError:
            return
        for batch in batches:
            self.got(self, batch)

    def _admit(self) -> bool:
        with suppress(BlockingIOError):
            token = self.sock.recv(doors.TOKEN_BYTES)
            if hmac.compare_digest(token, self._expected or b""):
                self._expected = None
                return True
        return False

    def _flush(self, *, once: bool) -> bool:
        while True:
            if not self._outbox:
                self._sending = False
                # Whoever came in between has left it to us.
                if not self._outbox or not self._claim():
                    return True
                continue
            count = min(len(self._outbox), _MOST_AT_ONCE)
            batch = self.squeeze([self._outbox.popleft() for _ in range(count)])
            self._rest.extend(memoryview(part) for part in frame(batch))
            if not self._write():
                if once:
                    self._mail.ask(self)
                return False
            if once and self._outbox:
                self._mail.ask(self)  # others' messages
                return True

    def _claim(self) -> bool:
        """Be the one who sends; False if somebody else is."""
        with self._lock:
            if self._sending:
                return False
            self._sending = True
            return True

    def _write(self) -> bool:
        rest = self._rest
        while rest:
            try:
                sent = self.sock.sendmsg([rest[i] for i in range(min(len(rest), _MOST_VIEWS))])
            except BlockingIOError:
                return False
            except OSError:
                rest.clear()  # its reader finds that it has ended
                return True
            while rest and sent >= rest[0].nbytes:
                sent -= rest.popleft().nbytes
            if sent:
                rest[0] = rest[0][sent:]
        return True


class Mail:
    """All connections of one user in this process, and the thread that reads them.

    `got(post, batch)` and `over(post)` are called on that thread; a post may be given its own.
    `due` may say how soon `tick` wants to be called, in seconds. `squeeze` may make fewer
    messages of those that are about to be sent, before anybody connects.
    """

    def __init__(
        self,
        got: Callable[[Post, list[Any]], None],
        over: Callable[[Post], None],
        name: str = "psrpc-mail",
    ) -> None:
        self.got = got
        self.over = over
        self.squeeze: Callable[[list[Any]], list[Any]] = lambda batch: batch
        self.due: Callable[[], float | None] = lambda: None
        self.tick: Callable[[], None] = lambda: None
        self.posts: set[Post] = set()
        self.address = ""
        self._token = ""
        self._listener: socket.socket | None = None
        self._asking: deque[Post] = deque()
        self._awake = False
        self._closing = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ, None)
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        keep_from_children(_Descriptors(self))

    def start(self) -> None:
        """Begin to read."""
        self.thread.start()

    def listen(self, where: str, token: str) -> str:
        """Let others connect, before `start`; returns the address, TOKEN@WHERE.

        `where` is `unix:NAME`, for this user's processes on this host, or a host's address.
        """
        listener, self.address = doors.listen(where, token)
        self._token = token
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, listener)
        return self.address

    def connect(self, address: str) -> Post:
        """Reach who listens at an address. Blocks; raises AddressError if nobody does."""
        sock = doors.dial(address)
        sock.setblocking(False)
        post = Post(self, sock, None)
        self.adopt(post)
        return post

    def adopt(self, post: Post) -> None:
        """Read this connection from now on."""
        self.posts.add(post)
        self._selector.register(post.sock, selectors.EVENT_READ, post)
        self._ring()

    def ask(self, post: Post) -> None:
        """Let the thread go on sending what this post has."""
        self._asking.append(post)
        if not self._awake:
            self._ring()

    def close(self) -> None:
        """End all connections, and the thread, unless it is the one that asks."""
        if not self._closing:
            self._closing = True
            self._ring()
        if self.thread.is_alive() and threading.current_thread() is not self.thread:
            self.thread.join()

    def let_go(self) -> None:
        """Close all descriptors; for the thread's end, and for forked children."""
        socks = [post.sock for post in self.posts] + [self._listener]
        for sock in socks:
            if sock is not None:
                sock.close()
        bell, self._bell = self._bell, -1
        with suppress(OSError):
            self._selector.close()
            os.close(bell)

    def _ring(self) -> None:
        self._awake = True
        with suppress(OSError):
            os.eventfd_write(self._bell, 1)

    def _run(self) -> None:
        while not self._closing:
            for key, events in self._selector.select(self.due()):
                if key.data is None:
                    with suppress(BlockingIOError):
                        os.eventfd_read(self._bell)
                elif isinstance(key.data, Post):
                    self._serve(key.data, events)
                else:
                    self._accept(key.data)
            self._awake = False
            while self._asking:
                post = self._asking.popleft()
                if not post.ended and not post.pump():
                    self._selector.modify(post.sock, _BOTH, post)
            self.tick()
        for post in list(self.posts):
            self._end(post)
        self.let_go()

    def _serve(self, post: Post, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE and post.pump():
                self._selector.modify(post.sock, selectors.EVENT_READ, post)
            if events & selectors.EVENT_READ:
                post.read()
        except (OSError, EOFError):
            self._end(post)
        except Exception:
            # A fault of ours, or a garbled message: who is at the other end hears that this ended.
            traceback.print_exc()
            self._end(post)

    def _end(self, post: Post) -> None:
        post.ended = True
        self.posts.discard(post)
        with suppress(KeyError, ValueError, OSError):
            self._selector.unregister(post.sock)
        post.sock.close()
        try:
            post.over(post)
        except Exception:
            traceback.print_exc()

    def _accept(self, listener: socket.socket) -> None:
        sock = doors.accept(listener)
        if sock is not None:
            self.adopt(Post(self, sock, self._token.encode()))


_BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE


class _Descriptors:
    """What forked children close of a mail."""

    def __init__(self, mail: Mail) -> None:
        self._mail = mail
        mail.descriptors = self  # type: ignore[attr-defined]

    def close(self) -> None:
        self._mail.let_go()
