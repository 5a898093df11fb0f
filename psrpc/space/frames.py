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
_CHUNK_BYTES = 1 << 18
_MOST_VIEWS = 512  # of one call of the kernel, which takes 1024
MOST_HEADER_BYTES = 1 << 28
MOST_BLOB_BYTES = 1 << 34

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Frame(NamedTuple):
    """A header that has come, with its blobs as one stretch of memory."""

    header: bytes
    blobs: memoryview


def pack(header: Any, blobs: Sequence[Blob] = ()) -> list[memoryview]:
    """A frame as the pieces of memory that are sent one after the other."""
    text = _encode(header).encode()
    views = [memoryview(blob).cast("B") for blob in blobs if len(blob)]
    head = memoryview(_HEAD.pack(len(text), sum(view.nbytes for view in views)) + text)
    return [head, *views]


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

    def allow(self, most_header: int, most_blobs: int) -> None:
        """From the next frame on those may be larger."""
        self._limits = (most_header, most_blobs)

    def take(self, sock: socket.socket) -> list[Frame]:
        """The frames that are complete after one call of the kernel.

        Raises EOFError at the stream's end and for a frame that is too large, else OSError.
        """
        if self._large is not None:
            came = sock.recv_into(memoryview(self._large)[self._filled :])
            if not came:
                raise EOFError("the stream has ended")
            self._filled += came
            return self._finish_large()
        data = sock.recv(_CHUNK_BYTES)
        if not data:
            raise EOFError("the stream has ended")
        self._buffer += data
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

    def put(self, views: Sequence[memoryview]) -> None:
        """Send these after what is there."""
        self._views.extend(views)
        self.size_bytes += sum(view.nbytes for view in views)

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
