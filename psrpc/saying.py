"""What a job's processes tell whoever watches: changes of its course, a line each, on stderr."""

from __future__ import annotations

import functools
import os
import select
import sys
import threading
from collections import deque
from contextlib import suppress
from types import TracebackType

from psrpc.errors import PsrpcError

_LOCK = threading.Lock()
_LATER: deque[str] = deque()  # while it is not empty, a thread writes what is in it


def say(text: str) -> None:
    """Print a line. Neither blocks nor raises, for jobs do not depend on whoever reads it.

    Where it cannot be written at once (a terminal that is held, a reader that is slow), it is
    written when it can be, unless the process ends before. Where nobody can read it, it is lost.
    """
    line = f"psrpc: {text}"
    _prepare()
    with _LOCK:
        if not _LATER and _has_room():
            _print(line)
            return
        _LATER.append(line)
        if len(_LATER) > 1:
            return
    threading.Thread(target=_print_later, name="psrpc-says", daemon=True).start()


def _print_later() -> None:
    while True:
        _print(_LATER[0])
        with _LOCK:
            _LATER.popleft()
            if not _LATER:
                return


def _print(line: str) -> None:
    with suppress(OSError, ValueError):  # broken, closed
        print(line, file=sys.stderr, flush=True)


def _has_room() -> bool:
    """Whether stderr takes a line at once, or will never take one."""
    poll = select.poll()
    try:
        poll.register(sys.stderr.fileno(), select.POLLOUT)
    except (OSError, ValueError, AttributeError):  # none, closed, or no file
        return True
    return bool(poll.poll(0))


@functools.cache
def _prepare() -> None:
    os.register_at_fork(after_in_child=_begin_anew)


def _begin_anew() -> None:
    """In a fork that thread is missing, and another one may have had the lock."""
    global _LOCK
    _LOCK = threading.Lock()
    _LATER.clear()


def call_this_process(name: str) -> None:
    """Let `ps -o comm`, `top` and `pgrep` show this process by a name of 15 characters at most."""
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name)


def one_line_errors() -> None:
    """Let an uncaught PsrpcError end the process with its one line, and Ctrl-C without any."""
    previous = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, PsrpcError):
            print(f"psrpc: {error}", file=sys.stderr)
        elif not isinstance(error, KeyboardInterrupt):
            previous(kind, error, traceback)

    sys.excepthook = hook
