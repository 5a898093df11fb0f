"""A process that has imported torch, and forks whenever it is told.

Torch takes over a second of a core to import, which every agent of a job on one host would spend. A
launcher makes a nursery before it runs anything of the user's, starts a thread or opens the job's
store, so its forks know nothing of these.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from psrpc import environment
from psrpc.errors import JobFailedError
from psrpc.lifeline import die_with_launcher

_MESSAGE_BYTES = 1 << 17
_LOOK_AGAIN_S = 0.01
# Terminals and schedulers send these to all processes; the launcher decides what comes of it.
_NOT_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Nursery:
    """Makes processes that call `work` and exit with what it returns.

    A context manager, to be entered while this process has one thread. At its end it waits for
    none of the processes: whoever still runs then is killed. One thread may use it.
    """

    def __init__(self, work: Callable[[], int]) -> None:
        self._work = work
        self._pid = self._serial = 0
        self._known: dict[str, str] = {}

    def __enter__(self) -> Nursery:
        # Torch looks at these when it is loaded.
        environment.for_children(**environment.torch_defaults())
        import torch.distributed.launcher.api  # of which each agent makes use

        from psrpc import interpreter

        del torch
        interpreter.prepare()
        launcher = os.getpid()
        self._known = environment.with_variables({})
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._requests.close()
            _serve(theirs, self._work, launcher)
        theirs.close()
        return self

    def __exit__(self, *error: object) -> None:
        self._requests.close()
        os.waitpid(self._pid, 0)

    def fork(self, variables: Mapping[str, str]) -> Forked:
        """Begin a process that finds these variables in its environment beside this one's.

        Its launcher (`environment.launcher`) is the nursery, with which it can die.
        """
        wanted = environment.with_variables(variables) | {environment.LAUNCHER: str(self._pid)}
        new = {name: value for name, value in wanted.items() if self._known.get(name) != value}
        return Forked(self, int(self.ask({"variables": new})))

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Send a request, and return its answer. Raises JobFailedError if the nursery is gone."""
        self._serial += 1
        with suppress(OSError):
            self._requests.send(json.dumps([self._serial, request]).encode())
            while said := self._requests.recv(_MESSAGE_BYTES):
                serial, answer = json.loads(said)
                if serial == self._serial:  # else of one that Ctrl-C has cut short
                    return answer
        raise JobFailedError(
            "the process that starts the others for this command was killed, and they with it"
        )


class Forked:
    """A process of a nursery, as `subprocess.Popen` would show it."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        """How it ended; None if it still runs."""
        if self.returncode is None:
            self.returncode = self._nursery.ask({"pid": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
            time.sleep(_LOOK_AGAIN_S)
        return code

    def terminate(self) -> None:
        """Send it SIGTERM, unless it has ended."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL, unless it has ended."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        # Nobody but `poll` lets go of its number.
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _serve(requests: socket.socket, work: Callable[[], int], launcher: int) -> NoReturn:
    """Be the nursery: fork and tell how forks ended, until the launcher asks no more."""
    environment.for_children(**{environment.LAUNCHER: str(launcher)})
    die_with_launcher()
    # Held back and not ignored: what comes to a fork before it does its work is not lost on it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_OURS)
    codes: dict[int, int] = {}
    while message := requests.recv(_MESSAGE_BYTES):
        serial, request = json.loads(message)
        if "pid" in request:
            answer = _code_of(request["pid"], codes)
        elif (answer := os.fork()) == 0:
            requests.close()
            environment.for_children(**request["variables"])
            _be(work, before)
        requests.send(json.dumps([serial, answer]).encode())
    os._exit(0)


def _code_of(pid: int, codes: dict[int, int]) -> int | None:
    """How a fork ended, however often that is asked; None if it still runs."""
    if pid not in codes:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            codes[pid] = os.waitstatus_to_exitcode(status)
    return codes.get(pid)


def _be(work: Callable[[], int], blocked: Iterable[int]) -> NoReturn:
    """Do the work in this fork, with these signals blocked, and end as an interpreter would."""
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        code = work()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
