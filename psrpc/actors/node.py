"""A node: a process that has imported what runners need, and forks them.

It has one thread when it forks, so that no lock is held in a fork. It ends with its connection to
the head, and the kernel ends its runners with it.
"""

from __future__ import annotations

import gc
import glob
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from psrpc import environment
from psrpc.actors.doors import dial
from psrpc.actors.mail import Inbox, frame
from psrpc.actors.messages import Fork, NodeHello, RunnerEnded, Stop
from psrpc.core.placement import Resources
from psrpc.errors import AddressError, UsageError
from psrpc.lifeline import die_with_launcher

USUAL = ("torch",)
_HANDLES = "psrpc.actors.pool"  # by its name, for it imports this module
_PROGRAM = (
    "import json, sys; told = json.loads(sys.stdin.readline()); sys.path[:] = told.pop('path'); "
    "from psrpc.actors.node import main; main(**told)"
)


def resources_here() -> Resources:
    """What this host has: the CPUs that we may use, NVIDIA's GPUs, and memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = len(glob.glob("/dev/nvidia[0-9]*"))
    return Resources(float(len(os.sched_getaffinity(0))), float(gpus), memory)


def start_here(
    address: str,
    name: str,
    whole: Resources,
    labels: Mapping[str, str],
    imports: Sequence[str] = USUAL,
) -> subprocess.Popen[bytes]:
    """Start a node of this host, in a session of its own: a terminal's Ctrl-C is not for it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, start_new_session=True
    )
    told = {"path": sys.path, "address": address, "name": name, "labels": dict(labels)}
    told["imports"] = list(imports)
    assert process.stdin is not None
    process.stdin.write(json.dumps({**told, "whole": vars(whole)}).encode() + b"\n")
    process.stdin.close()
    return process


def main(
    address: str,
    name: str,
    whole: dict[str, Any],
    labels: dict[str, str],
    imports: Sequence[str] = USUAL,
) -> None:
    """Be a node until the head is gone; `imports` are modules that actors are likely to need."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        sock = dial(address)
    except AddressError:
        return  # The head has ended meanwhile.
    with _as_long_as(sock):
        _import(imports)
    gc.collect()
    gc.freeze()
    node = Node(sock, address)
    forked = node.serve(NodeHello(name, Resources(**whole), labels))
    if forked is not None:
        from psrpc.actors import runner

        runner.main(address, forked.runner)


def _import(modules: Sequence[str]) -> None:
    """Import what runners need, once: what each imports for itself is memory of its own."""
    from psrpc.actors import packing, runner  # noqa: F401

    with suppress(UsageError):
        packing.pickler()
    for module in (_HANDLES, *modules):
        with suppress(ImportError):
            importlib.import_module(module)


@contextmanager
def _as_long_as(sock: socket.socket) -> Iterator[None]:
    """End this process if the head does meanwhile: imports may take long."""
    over, done = os.pipe2(os.O_CLOEXEC)

    def watch() -> None:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        poll.register(over, select.POLLIN)
        if over not in dict(poll.poll()):
            os._exit(0)  # it says nothing before it knows us

    thread = threading.Thread(target=watch, name="psrpc-node")
    thread.start()
    try:
        yield
    finally:
        os.close(done)
        thread.join()
        os.close(over)


class Node:
    """The runners of this node, and its connection to the head."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self._sock = sock
        self._address = address
        self._inbox = Inbox()
        self._pids: dict[int, int] = {}  # runners by process

    def serve(self, hello: NodeHello) -> Fork | None:
        """Fork runners until the head is gone; in a fork, returns what it is to be."""
        bell, rung = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(rung, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, at: None)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(bell, select.POLLIN)
        self._say(hello)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == bell:
                    os.read(bell, 512)
                    self._reap()
                    continue
                try:
                    batches = self._inbox.read(self._sock)
                except (OSError, EOFError):
                    return None
                for message in (each for batch in batches for each in batch):
                    if (forked := self._obey(message)) is not None:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        os.close(bell)
                        os.close(rung)
                        self._sock.close()
                        return forked

    def _obey(self, message: Any) -> Fork | None:
        """Do what the head says; in a fork, returns what it is to be."""
        if isinstance(message, Stop):
            for pid in [pid for pid, runner in self._pids.items() if runner == message.runner]:
                os.kill(pid, signal.SIGKILL)
        if not isinstance(message, Fork):
            return None
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._pids[pid] = message.runner
            return None
        environment.for_children(**{environment.LAUNCHER: str(parent)})
        die_with_launcher()
        if message.gpus is not None:
            environment.show_gpus(message.gpus)
        return message

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                runner = self._pids.pop(pid, None)
                if runner is not None:
                    self._say(RunnerEnded(runner, _how(status)))

    def _say(self, message: Any) -> None:
        with suppress(OSError):
            for part in frame([message]):
                self._sock.sendall(part)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
