"""Ctrl-C ends a process even while its main thread waits inside torch."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

GRACE_S = 2.0
EXIT_CODE = 130
TERMINATED = 143


class Terminated(SystemExit):
    """SIGTERM ends this process."""


class Departure:
    """Within its block, the first SIGTERM or SIGINT only asks the worker to leave.

    `ask` does so, and says whether there was anybody to ask; if not, and at a second signal,
    the block ends at once: by KeyboardInterrupt, or for SIGTERM by `Terminated`, with code 143.
    Does nothing outside the main thread, where signals cannot be set up.
    """

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self._asked = False
        self._previous: dict[int, Any] = {}
        self.interrupted = False

    def __enter__(self) -> Departure:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.interrupted = self.interrupted or number == signal.SIGINT
        if not self._asked and self._ask():
            self._asked = True
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(TERMINATED)


class Interrupts:
    """Within its block, SIGINT raises KeyboardInterrupt, and ends the process if that hangs.

    Python runs signal handlers between bytecodes, so a thread that waits in C++ is
    deaf to Ctrl-C. A watching thread is told by the signal itself and ends the
    process with code 130 when the block was not left within `grace_s` seconds.
    Does nothing outside the main thread, where signals cannot be set up.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._left = threading.Event()
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.set()
        if self._thread is None or self._writer is None or self._reader is None:
            return
        signal.set_wakeup_fd(self._previous_fd)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _watch(self, reader: socket.socket) -> None:
        while received := reader.recv(64):
            if signal.SIGINT in received and not self._left.wait(self._grace_s):
                os._exit(EXIT_CODE)
