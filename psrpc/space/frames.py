"""What goes over a space's connections: a JSON header, then blobs as bytes.

A frame's blobs follow its header in the order in which the header speaks of them; the
header says how long each is.
"""

from __future__ import annotations

import itertools
import json
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

Blob = bytes | bytearray | memoryview

_HEAD = struct.Struct("<IQ")  # the bytes of the header, and of all blobs
_CHUNK_BYTES = 1 << 15
_MOST_VIEWS = 512  # of one call of the kernel, which takes 1024
MOST_HEADER_BYTES = 1 << 28
MOST_BLOB_BYTES = 1 << 34

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_decode = json.JSONDecoder().raw_decode
_NOTHING = memoryview(b"")


class Frame(NamedTuple):
    """A header that has come, with its blobs as one stretch of memory."""

    header: bytes
    blobs: memoryview


def pack(header: Any, blobs: Sequence[Blob] = ()) -> list[Blob]:
    """A frame as the pieces of memory, of bytes, that are sent one after the other."""
    text = _encode(header).encode()
    if not blobs:
        return [_HEAD.pack(len(text), 0) + text]
    views = [memoryview(blob).cast("B") for blob in blobs if len(blob)]
    return [_HEAD.pack(len(text), sum(view.nbytes for view in views)) + text, *views]


def unpack(header: bytes) -> Any:
    """What a header says. Raises ValueError or RecursionError if it is no JSON."""
    text = header.decode()
    value, end = _decode(text)
    if end != len(text):
        raise ValueError("more than one JSON value")
    return value


def pack_raw(header: bytes) -> list[bytes]:
    """A frame whose header is no JSON, and has no blobs."""
    return [_HEAD.pack(len(header), 0), header]


class Inbox:
    """Frames from a socket, as they become complete. Used by one thread at a time.

    `most_header` and `most_blobs` are what a frame may have, in bytes.
    """

    def __init__(self, most_header: int, most_blobs: int) -> None:
        self._limits = (most_header, most_blobs)
        self._buffer = bytearray()
        self._header = b""
        self._large: bytearray | None = None  # the blobs of a frame whose header has come
        self._filled = 0
        self._came: list[bytes | int] = []

    def allow(self, most_header: int, most_blobs: int) -> None:
        """From the next frame on those may be larger."""
        self._limits = (most_header, most_blobs)

    def take(self, sock: socket.socket) -> list[Frame]:
        """The frames that are complete after one call of the kernel.

        Raises EOFError at the stream's end and for a frame that is too large, else OSError.
        """
        if self._large is None and not self._came:
            return self._of(sock.recv(_CHUNK_BYTES))
        self.fetch(sock)
        return self.frames()

    def fetch(self, sock: socket.socket) -> None:
        """Call the kernel once, unless `frames` was not called since. Raises as `take`.

        What has come is kept, even if an interrupt (Ctrl-C) hits this thread at the same moment.
        """
        came = self._came
        if not came:
            # One step for the interpreter, in which no handler of a signal can come between.
            if self._large is None:
                came.extend(map(sock.recv, (_CHUNK_BYTES,)))
            else:
                came.extend(map(sock.recv_into, (memoryview(self._large)[self._filled :],)))

    def frames(self) -> list[Frame]:
        """The frames that are complete with what was fetched. Raises EOFError as `take`."""
        came = self._came.pop()
        if isinstance(came, bytes):
            return self._of(came)
        if not came:
            raise EOFError("the stream has ended")
        self._filled += came
        return self._finish_large()

    def _of(self, came: bytes) -> list[Frame]:
        if not came:
            raise EOFError("the stream has ended")
        if not self._buffer and len(came) >= _HEAD.size:
            header_bytes, blob_bytes = _HEAD.unpack_from(came)
            if not blob_bytes and len(came) == _HEAD.size + header_bytes:
                if header_bytes > self._limits[0]:
                    raise EOFError(f"a frame of {header_bytes} bytes")
                return [Frame(came[_HEAD.size :], _NOTHING)]
        self._buffer += came
        return self._parse()

    def _parse(self) -> list[Frame]:
        buffer, at, frames = self._buffer, 0, []
        while len(buffer) - at >= _HEAD.size:
            header_bytes, blob_bytes = _HEAD.unpack_from(buffer, at)
            if header_bytes > self._limits[0] or blob_bytes > self._limits[1]:
                raise EOFError(f"a frame of {header_bytes} and {blob_bytes} bytes")
            begin = at + _HEAD.size
            middle, end = begin + header_bytes, begin + header_bytes + blob_bytes
            if len(buffer) < middle:
                break
            header = bytes(buffer[begin:middle])
            if len(buffer) < end:
                if blob_bytes <= _CHUNK_BYTES:
                    break
                self._begin_large(header, blob_bytes, memoryview(buffer)[middle:])
                at = len(buffer)
                break
            # A bytearray of its own, so that what is made of it may be written to.
            frames.append(Frame(header, memoryview(bytearray(buffer[middle:end]))))
            at = end
        if at == len(buffer):
            self._buffer = bytearray()
        elif at:
            del buffer[:at]
        return frames

    def _begin_large(self, header: bytes, size_bytes: int, start: memoryview) -> None:
        self._header = header
        self._large = bytearray(size_bytes)
        self._large[: len(start)] = start
        self._filled = len(start)

    def _finish_large(self) -> list[Frame]:
        if self._large is None or self._filled < len(self._large):
            return []
        frame = Frame(self._header, memoryview(self._large))
        self._large = None
        return [frame]


class Outbox:
    """Pieces of memory that are on their way into a socket. Used by one thread at a time."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._views: deque[memoryview] = deque()

    def put(self, pieces: Sequence[Blob]) -> None:
        """Send these, of bytes, after what is there."""
        views = [memoryview(piece) for piece in pieces]
        self._views.extend(views)
        self.size_bytes += sum(view.nbytes for view in views)

    def send(self, sock: socket.socket, pieces: Sequence[Blob], flags: int = 0) -> bool:
        """`put` and `flush`, in one call of the kernel where that is enough."""
        if len(pieces) == 1 and not self._views:
            (piece,) = pieces
            try:
                sent = sock.send(piece, flags)
            except BlockingIOError:
                sent = 0
            if sent == len(piece):
                return True
            pieces = [memoryview(piece)[sent:]]
        self.put(pieces)
        return self.flush(sock, flags)

    def flush(self, sock: socket.socket, flags: int = 0) -> bool:
        """Send what the kernel takes; whether that was all. Raises OSError."""
        views = self._views
        while views:
            try:
                sent = sock.sendmsg(itertools.islice(views, _MOST_VIEWS), (), flags)
            except BlockingIOError:
                return False
            self.size_bytes -= sent
            while views and sent >= views[0].nbytes:
                sent -= views.popleft().nbytes
            if sent:
                views[0] = views[0][sent:]
        return True
