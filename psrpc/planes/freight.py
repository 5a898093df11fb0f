"""What goes over a stream between a worker and a server: a short message, then tensors as bytes.

Tensors are sent from where they lie and received where they belong: the kernel copies
them, and nobody else.
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

import torch

from psrpc.addresses import keep_alive

_HEAD = struct.Struct("<IQ")  # the bytes of the message, and of the tensors
_DRAIN_BYTES = 1 << 16
_MOST_VIEWS = 512  # of one call of the kernel, which takes 1024
_MOST_BYTES = 1 << 26
_AHEAD_BYTES = 1 << 14  # a message and small tensors come with one call of the kernel
# What is still to be sent, in its order.
Load = deque[memoryview]


def as_bytes(flat: torch.Tensor) -> memoryview:
    """The memory of a flat CPU tensor. As bytes, for numpy does not know all of torch's dtypes."""
    return memoryview(flat.detach().view(torch.uint8).numpy().data)


def size_of(flats: Sequence[torch.Tensor]) -> int:
    """The bytes of some tensors."""
    return sum(flat.nbytes for flat in flats)


def load(message: bytes, flats: Sequence[torch.Tensor] = ()) -> Load:
    """A message and tensors, as they are to be sent."""
    head = memoryview(_HEAD.pack(len(message), size_of(flats)) + message)
    return deque([head, *(as_bytes(flat) for flat in flats if flat.numel())])


class Freight:
    """One end of a stream. Used by one thread at a time, but for `cut`.

    `idle` is called whenever nothing has moved for `idle_s`; it raises to end the waiting.
    Everything raises OSError or EOFError when the stream has ended.
    """

    def __init__(
        self, sock: socket.socket, idle: Callable[[], None] | None = None, idle_s: float = 0.0
    ) -> None:
        self._sock = sock
        self._idle = idle
        self._ahead = memoryview(bytearray(_AHEAD_BYTES))  # what has come beyond what was asked for
        self._low = self._high = 0
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that the network cuts off: without this a thread waits for it for hours.
        keep_alive(sock)
        sock.settimeout(None)
        if idle is not None:
            whole = int(idle_s)
            limit = struct.pack("ll", whole, int((idle_s - whole) * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def send(self, message: bytes, flats: Sequence[torch.Tensor] = ()) -> None:
        """Send a message and tensors."""
        self.finish(load(message, flats))

    def finish(self, views: Load) -> None:
        """Send what is left of a load."""
        while views:
            try:
                self._send_some(views, 0)
            except BlockingIOError:
                self._wait_on()

    def begin(self, views: Load) -> bool:
        """Send as much of a load as can be sent without waiting; returns whether that was all."""
        try:
            while views:
                self._send_some(views, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def _send_some(self, views: Load, flags: int) -> None:
        # Together, so that what is small is one packet and wakes the other end once.
        sent = self._sock.sendmsg(itertools.islice(views, _MOST_VIEWS), (), flags)
        while views and sent >= views[0].nbytes:
            sent -= views.popleft().nbytes
        if sent:
            views[0] = views[0][sent:]

    def receive(self, most_bytes: int = _MOST_BYTES) -> tuple[bytes, int]:
        """The next message, and the size of the tensors that come after it.

        Raises EOFError if the message is longer than `most_bytes`: nobody of ours sent it.
        """
        if self._low == self._high:
            self._read_ahead()
        if self._high - self._low < _HEAD.size:
            head = bytearray(_HEAD.size)
            self._fill(memoryview(head))
            length, size_bytes = _HEAD.unpack(head)
        else:
            length, size_bytes = _HEAD.unpack_from(self._ahead, self._low)
            self._low += _HEAD.size
        if length > most_bytes:
            raise EOFError(f"a message of {length} bytes")
        message = bytearray(length)
        self._fill(memoryview(message))
        return bytes(message), size_bytes

    def has_more(self) -> bool:
        """Whether more has come, or the end."""
        return self._low < self._high or bool(self._poll.poll(0))

    def holds_another(self) -> bool:
        """Whether the next message has come already, with all of its tensors."""
        if self._high - self._low < _HEAD.size:
            return False
        length, size_bytes = _HEAD.unpack_from(self._ahead, self._low)
        return bool(self._high - self._low >= _HEAD.size + length + size_bytes)

    def take(self, flats: Sequence[torch.Tensor]) -> None:
        """Let the tensors that come land in these."""
        for flat in flats:
            self._fill(as_bytes(flat))

    def drain(self, size_bytes: int) -> None:
        """Throw away tensors that come."""
        scrap = memoryview(bytearray(min(size_bytes, _DRAIN_BYTES)))
        while size_bytes:
            self._fill(scrap[:size_bytes])
            size_bytes -= min(size_bytes, len(scrap))

    def cut(self) -> None:
        """End the stream, from any thread: whoever waits on it gets EOFError or OSError."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # It has ended already.

    def close(self) -> None:
        """Give the socket back."""
        self._sock.close()

    def _read_ahead(self) -> None:
        """Wait until something has come, and take all that there is."""
        self._low = self._high = 0
        while not self._high:
            try:
                self._high = self._sock.recv_into(self._ahead)
            except BlockingIOError:
                self._wait_on()
                continue
            if not self._high:
                raise EOFError("the stream has ended")

    def _fill(self, view: memoryview) -> None:
        here = min(self._high - self._low, view.nbytes)
        if here:
            view[:here] = self._ahead[self._low : self._low + here]
            self._low += here
            view = view[here:]
        while view.nbytes:
            try:
                # One call for all that is to come: no waking up for each packet of it.
                came = self._sock.recv_into(view, view.nbytes, socket.MSG_WAITALL)
            except BlockingIOError:
                self._wait_on()
                continue
            if not came:
                raise EOFError("the stream has ended")
            view = view[came:]

    def _wait_on(self) -> None:
        if self._idle is not None:
            self._idle()
