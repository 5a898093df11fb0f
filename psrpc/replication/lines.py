"""Connections between a primary and those that follow it.

The primary's side has a thread for each that sends, and one that hears what the other end has.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence

import torch

from psrpc.errors import AddressError
from psrpc.planes.doors import STRANGER_S, Door, knock
from psrpc.planes.freight import Freight, Load
from psrpc.replication import entries
from psrpc.replication.entries import Beat, Follow, Message
from psrpc.secret import Secret

PURPOSE = "harbour"
_BEATS_A_LIFE = 5
_LONGEST_BEAT_S = 1.0
_CONNECT_S = 5.0
_COPY_S = 60.0

# What is called when a message is on its way.
Sent = Callable[[], None]


def beat_s_of(dead_after_s: float) -> float:
    """How often either end says that it lives, if it is dead after so long a silence."""
    return min(dead_after_s / _BEATS_A_LIFE, _LONGEST_BEAT_S)


class Line:
    """One that follows, as its primary sees it. `heard` and `ended` are called by its threads."""

    def __init__(self, freight: Freight, replica: int) -> None:
        self.replica = replica
        self.heard_s = time.monotonic()
        self.patience_s = _COPY_S  # until its first word, for which it needs the copy
        self._freight = freight
        self._queue: queue.SimpleQueue[tuple[Load, Sent] | None] = queue.SimpleQueue()
        self._waiting = 0  # in the queue, or on its way from there
        self._lock = threading.Lock()
        self._started = False

    def start(self, heard: Callable[[Line, Message], None], ended: Callable[[Line], None]) -> None:
        """Begin to send and to listen."""

        def listen() -> None:
            try:
                while True:
                    message, _ = entries.receive(self._freight)
                    self.heard_s, self.patience_s = time.monotonic(), 0.0
                    heard(self, message)
            except (OSError, EOFError):
                ended(self)
            finally:
                self._freight.close()

        self._started = True
        for name, target in (("sends", self._send), ("hears", listen)):
            threading.Thread(target=target, name=f"psrpc-backup-{name}", daemon=True).start()

    def put(
        self, message: Message, tensors: Sequence[torch.Tensor] = (), sent: Sent = lambda: None
    ) -> bool:
        """Send a message, after those before it. Tensors are read until `sent` is called.

        What the kernel takes at once goes at once, which spares the other thread's waking up;
        returns whether that was all.
        """
        load = entries.load(message, tensors)
        with self._lock:
            if self._started and not self._waiting and self._begin(load):
                sent()
                return True
            self._waiting += 1
            self._queue.put((load, sent))
            return False

    def close(self) -> None:
        """Send nothing more, and hear nothing."""
        self._queue.put(None)
        self._freight.cut()
        if not self._started:
            self._freight.close()

    def finish(self, timeout_s: float) -> None:
        """Let what was put be sent, and close."""
        done = threading.Event()
        self.put(entries.Over(), (), done.set)
        done.wait(timeout_s)
        self.close()

    def _begin(self, load: Load) -> bool:
        try:
            return self._freight.begin(load)
        except (OSError, EOFError):
            self._freight.cut()  # whoever listens hears of it
            return True

    def _send(self) -> None:
        while (item := self._queue.get()) is not None:
            load, sent = item
            try:
                self._freight.finish(load)
            except (OSError, EOFError):
                self._freight.cut()
                sent()
                return
            sent()
            with self._lock:
                self._waiting -= 1


class Voice:
    """What one that follows says to its primary: by any thread, and by one that says it lives.

    However long it takes to make a step: who is slow is not silent.
    """

    def __init__(self, freight: Freight, beat_s: float) -> None:
        self._freight = freight
        self._beat_s = beat_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="psrpc-follows", daemon=True)

    def __enter__(self) -> Voice:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Hang up."""
        self._stop.set()
        self._freight.cut()
        self._thread.join()
        self._freight.close()

    def say(self, message: Message) -> None:
        """Send a message. Raises OSError or EOFError."""
        load = entries.load(message)
        with self._lock:
            self._freight.finish(load)

    def _beat(self) -> None:
        with contextlib.suppress(OSError, EOFError):  # whoever listens hears of it
            while not self._stop.wait(self._beat_s):
                self.say(Beat())


class Harbour:
    """Where those that want to follow a primary reach it. `admit` is called with each line."""

    def __init__(self, host: str, admit: Callable[[Line], None], secret: Secret) -> None:
        self._door = Door(host, secret, PURPOSE, self._welcome)
        self._admit = admit

    @property
    def address(self) -> str:
        """Where it is: HOST:PORT."""
        return self._door.address

    def start(self) -> None:
        """Begin to listen."""
        self._door.start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._door.close()

    def _welcome(self, sock: socket.socket) -> None:
        admitted = threading.Event()

        def hurry() -> None:
            """Those that follow may be silent as long as the primary lets them."""
            if not admitted.is_set():
                raise TimeoutError("it does not say what it wants")

        freight = Freight(sock, hurry, STRANGER_S)
        try:
            message, _ = entries.receive(freight)
            if not isinstance(message, Follow):
                raise EOFError("it does not want to follow")
        except Exception:
            freight.close()
            return
        admitted.set()
        self._admit(Line(freight, message.replica))


def reach(address: str, replica: int, silent_after_s: float, secret: Secret) -> Freight:
    """Connect to a primary's harbour as one that wants to follow it. Blocks.

    Whoever waits on it gets TimeoutError when nothing moves for `silent_after_s`. Raises
    AddressError if nobody is there, SecretError if he has another secret.
    """
    host, _, port = address.rpartition(":")

    def silent() -> None:
        raise TimeoutError(f"it is silent for {silent_after_s:g} s")

    with contextlib.ExitStack() as undo:
        try:
            sock = undo.enter_context(knock(host, int(port), secret, PURPOSE, _CONNECT_S))
            freight = Freight(sock, silent, silent_after_s)
            entries.send(freight, Follow(replica))
        except (OSError, EOFError) as error:
            raise AddressError(f"no primary answers at {host}:{port} ({error})") from None
        undo.pop_all()
    return freight
