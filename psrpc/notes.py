"""What the processes of one launcher let each other know: why they fail, that the job is over.

It is written in memory of the launcher's that has no name in the file system (`memfd_create`) and
goes with it, however it ends. Its processes reach it by the launcher's entry in `/proc`.
"""

from __future__ import annotations

import fcntl
import json
import os

from psrpc import environment
from psrpc.errors import PsrpcError, decode, encode


class Notes:
    """The launcher's side. `close` gives the memory back."""

    def __init__(self) -> None:
        self._failure = os.memfd_create("psrpc-failure")
        self._over = os.memfd_create("psrpc-over")

    def variables(self) -> dict[str, str]:
        """What a process must find in its environment."""
        ours = f"/proc/{os.getpid()}/fd"
        return {
            environment.FAILURE_FILE: f"{ours}/{self._failure}",
            environment.OVER_FILE: f"{ours}/{self._over}",
        }

    @property
    def failed(self) -> bool:
        """Whether a process has written down why it fails."""
        return bool(os.fstat(self._failure).st_size)

    def failure(self) -> PsrpcError | None:
        """Why the first process failed that wrote it down."""
        said = os.pread(self._failure, os.fstat(self._failure).st_size, 0)
        try:
            name, text = json.loads(said)
        except ValueError:
            return None
        return decode(name, text)

    def forget(self) -> None:
        """Take no notice of a failure: whoever failed comes back."""
        os.ftruncate(self._failure, 0)

    def end(self) -> None:
        """Let processes know that the job is over: nobody need begin again."""
        os.pwrite(self._over, b"over", 0)

    def close(self) -> None:
        """Give the memory back."""
        os.close(self._failure)
        os.close(self._over)


def confess(error: PsrpcError) -> bool:
    """Write down, for the launcher, why this process fails; only the first of all counts.

    Returns False if no launcher of ours asked for it, or it is gone.
    """
    return _confess(_note_of(error)) is not None


def confess_news(error: PsrpcError) -> bool:
    """The same; returns whether no other process had written down just that before."""
    note = _note_of(error)
    return _confess(note) != note


def _note_of(error: PsrpcError) -> bytes:
    return json.dumps(encode(error)).encode()


def _confess(said: bytes) -> bytes | None:
    """Returns what was written down before; None if nobody wants to know."""
    path = environment.failure_file()
    try:
        note = None if path is None else os.open(path, os.O_RDWR)
    except OSError:
        return None
    if note is None:
        return None
    try:
        fcntl.flock(note, fcntl.LOCK_EX)
        before = os.pread(note, os.fstat(note).st_size, 0)
        if not before:
            os.write(note, said)
    finally:
        os.close(note)
    return before


def over_already() -> bool:
    """Whether the job of this process was over before it began."""
    return _written(environment.over_file())


def failed_already() -> bool:
    """Whether another process has written down why the job fails: nobody need begin again."""
    return _written(environment.failure_file())


def _written(path: str | None) -> bool:
    try:
        return path is not None and bool(os.stat(path).st_size)
    except OSError:
        return False
