"""What a job's processes tell whoever watches: changes of its course, a line each, on stderr."""

from __future__ import annotations

import functools
import os
import re
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from psrpc.errors import PsrpcError

_LOCK = threading.Lock()
_LATER: deque[str] = deque()  # while it is not empty, a thread writes what is in it
_HUSHING = threading.RLock()
# A line of torch's C++ side, as `[W1130 04:49:37.050931360 socket.cpp:917] text`, and what follows.
_LOGGED = re.compile(r"(\[\w+\]:)?\[[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ [^]]+\] ")
_BEHIND = re.compile(
    r"Exception raised from |frame #|<omitting python frames>|C\+\+ CapturedTraceback:|#\d+ "
    r"|Leaking RRef "
)


def say(text: str) -> None:
    """Print a line. Neither blocks nor raises, for jobs do not depend on whoever reads it.

    Where it cannot be written at once (a terminal that is held, a reader that is slow), it is
    written when it can be, unless the process ends before. Where nobody can read it, it is lost.
    """
    _write(f"psrpc: {text}\n")


def _write(text: str) -> None:
    _prepare()
    with _LOCK:
        if not _LATER and _has_room():
            _print(text)
            return
        _LATER.append(text)
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


def _print(text: str) -> None:
    with suppress(OSError, ValueError):  # broken, closed
        print(text, end="", file=sys.stderr, flush=True)


@contextmanager
def hushed() -> Iterator[None]:
    """Keep what torch's C++ side logs off stderr.

    It logs every connection that it closes as a fault, and its level of logging can be set by the
    environment only, before torch is loaded. What else is written to stderr meanwhile, by whatever
    thread, is written at the end of the block.
    """
    written = bytearray()
    try:
        with _HUSHING, _caught(written):  # two threads would put each other's stderr back
            yield
    finally:
        if kept := unlogged(written.decode(errors="replace")):
            _write(kept)


@contextmanager
def _caught(written: bytearray) -> Iterator[None]:
    """Catch what this process writes to stderr, if that is open."""
    try:
        stderr = os.dup(2)
    except OSError:
        yield
        return
    memory = os.memfd_create("psrpc-stderr")
    _flush()
    os.dup2(memory, 2)
    try:
        yield
    finally:
        _flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        written += os.pread(memory, os.fstat(memory).st_size, 0)
        os.close(memory)


def _flush() -> None:
    with suppress(OSError, ValueError, AttributeError):  # broken, closed, none
        sys.stderr.flush()


def unlogged(text: str) -> str:
    """A text without the lines that torch's C++ side logs, and the lists behind them."""
    kept, in_list, in_record = [], False, False
    for line in text.splitlines(keepends=True):
        if _LOGGED.match(line):
            in_record, in_list = True, False
        elif in_record and _BEHIND.match(line):
            in_list = True
        elif in_list and not line.strip():
            in_record = in_list = False
        else:
            in_record = in_list = False
            kept.append(line)
    return "".join(kept)


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
