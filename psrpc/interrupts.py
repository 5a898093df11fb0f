"""SIGINT and SIGTERM: a worker leaves in order, anything else ends, whatever torch waits for."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

GRACE_S = 2.0
INTERRUPTED = 130
TERMINATED = 143
_ECHO_S = 1.0
_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


class Terminated(SystemExit):
    """SIGTERM ends this process."""


class Departure:
    """What the first SIGTERM or SIGINT does to a worker: it is asked to leave.

    `ask` does so, and says whether there was anybody to ask. If not, and at a second signal, the
    worker ends at once. One thread may use it; launchers pass a SIGTERM on that their process has
    got as well, so a second one within a second counts as the first.
    """

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self._first: tuple[int, float] | None = None

    def take(self, number: int) -> bool:
        """A signal has come: ask the worker to leave; False if it must end now."""
        now_s = time.monotonic()
        if self._first is None:
            if not self._ask():
                return False
            self._first = (number, now_s)
            return True
        first, asked_s = self._first
        return number == first == signal.SIGTERM and now_s - asked_s < _ECHO_S


class Interrupts:
    """Within its block, SIGINT and SIGTERM end the process, even if torch does not let go of it.

    SIGINT raises KeyboardInterrupt. With `ask` (see `Departure`) both ask for an orderly leave
    first, from then on until the end of the block, and SIGTERM then raises `Terminated`; without
    it that ends the process by itself.

    Python runs signal handlers between bytecodes, so a thread that waits in C++ is deaf to
    them. A watching thread is told by the signal itself: it asks as well, and ends the process
    with code 130 or 143 if that is due and the block was not left within `grace_s` seconds.
    Does nothing outside the main thread, where signals cannot be set up.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._left = threading.Event()
        self._heard: Departure | None = None  # by the handlers
        self._seen: Departure | None = None  # by the watching thread
        self._previous: dict[int, Any] = {}
        self._thread: threading.Thread | None = None
        self._reader: socket.socket | None = None
        self._writer: socket.socket | None = None
        self._previous_fd = -1

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(
            target=self._watch, args=(self._reader,), name="psrpc-interrupts", daemon=True
        )
        self._thread.start()
        return self

    def ask_first(self, ask: Callable[[], bool]) -> None:
        """From now on let the first signal ask, by any thread, for an orderly leave."""
        if self._thread is None:
            return
        self._heard, self._seen = Departure(ask), Departure(ask)
        for number in _CODES:
            self._previous[number] = signal.signal(number, self._handle)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.set()
        if self._thread is None or self._writer is None or self._reader is None:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _handle(self, number: int, frame: object) -> None:
        assert self._heard is not None
        if self._heard.take(number):
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(TERMINATED)

    def _watch(self, reader: socket.socket) -> None:
        while received := reader.recv(64):
            for number in received:
                if number not in _CODES or (self._seen is not None and self._seen.take(number)):
                    continue
                if not self._left.wait(self._grace_s):
                    os._exit(_CODES[signal.Signals(number)])
