"""A group of processes that play one contender, told what to do over sockets.

Each gets the variables of an env:// launcher (RANK, WORLD_SIZE, MASTER_ADDR, ...)
and one end of a socket pair. Every wait has a deadline. None outlives its parent:
members ask the kernel to be killed with it, and end when their socket closes.
Whatever members start themselves has the group's mark in its environment, by which
it is counted, frozen and killed with them (when the harness itself is killed, Ray's
processes go with their driver by Ray's own doing).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from benchmarks import proc
from benchmarks.contender import BenchmarkError
from benchmarks.machine import ROOT
from benchmarks.namespaces import Fleet

CONTROL = "PSRPC_BENCHMARK_CONTROL"
MARK = "PSRPC_BENCHMARK_GROUP"


@dataclass(frozen=True)
class Part:
    """What a process does: `play(stage, *arguments)`; `play` is a module's function."""

    play: Callable[..., None]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Seats:
    """The virtual hosts of a group, and on which of them each rank is."""

    fleet: Fleet
    host_of: tuple[int, ...]

    def words(self, rank: int) -> list[str]:
        """What puts a rank's command where it belongs."""
        return ["ip", "netns", "exec", self.fleet.names[self.host_of[rank]]]

    def variables(self, rank: int) -> dict[str, str]:
        """What a launcher says of a rank's host."""
        host = self.host_of[rank]
        return {
            "LOCAL_RANK": str(self.host_of[:rank].count(host)),
            "LOCAL_WORLD_SIZE": str(self.host_of.count(host)),
            "MASTER_ADDR": self.fleet.addresses[self.host_of[0]],
            # torch asks for the names of all addresses, and nobody answers there.
            "RES_OPTIONS": "timeout:1 attempts:1",
        }


class ProcessGroup:
    """The processes of one contender, by rank. It can be started again after `stop`.

    They are on this host, or on the virtual ones of `seats`.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Part],
        python: str = sys.executable,
        seats: Seats | None = None,
    ) -> None:
        self.name = name
        self._parts = parts
        self._python = python
        self._seats = seats
        self._port = 0
        self.dead: set[int] = set()  # those that were killed on purpose
        self._marking = f"{MARK}={uuid.uuid4().hex}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._controls: list[connection.Connection] = []

    def start(self) -> None:
        """Start all processes and hand out their parts."""
        self._port = free_port()
        for rank, part in enumerate(self._parts):
            process, control = self._start_one(rank)
            self._processes.append(process)
            self._controls.append(control)
            self.send([rank], part)

    def kill(self, rank: int) -> None:
        """Let a member die (kill -9)."""
        self.dead.add(rank)
        self._processes[rank].kill()
        self._processes[rank].wait()

    def replace(self, rank: int) -> None:
        """Start another one in the place of a member that has died."""
        self.dead.discard(rank)
        self._controls[rank].close()
        self._processes[rank], self._controls[rank] = self._start_one(rank)
        self.send([rank], self._parts[rank])

    def send(self, ranks: Sequence[int], message: object) -> None:
        """Send a message to the processes of these ranks."""
        for rank in ranks:
            try:
                self._controls[rank].send(message)
            except OSError:
                raise self._broken(rank) from None

    def gather(self, ranks: Sequence[int], kind: type, timeout_s: float) -> list[Any]:
        """Wait for one message of this kind from each of these ranks; all others must live on.

        Raises BenchmarkError when one of the processes ends, or at the deadline.
        """
        deadline = time.monotonic() + timeout_s
        messages: dict[int, Any] = {}
        while len(messages) < len(ranks):
            watched = [self._controls[rank] for rank in {*range(len(self._controls))} - self.dead]
            ready = connection.wait(watched, max(deadline - time.monotonic(), 0.0))
            if not ready:
                silent = sorted(set(ranks) - messages.keys())
                raise BenchmarkError(
                    f"{self.name}: no {kind.__name__} from rank {silent} within {timeout_s:g} s"
                )
            for control in ready:
                rank = self._controls.index(control)  # type: ignore[arg-type]
                messages[rank] = self._receive(rank, kind)
        return [messages[rank] for rank in ranks]

    def pids(self) -> list[int]:
        """The members' process numbers, by rank."""
        return [process.pid for process in self._processes]

    def everyone(self) -> list[int]:
        """The members and all that they have started and that still lives."""
        return proc.marked(self._marking)

    def cpu_s(self) -> float:
        """The processor time that everyone has used so far; ticks of 10 ms."""
        return sum(proc.cpu_s(pid) for pid in self.everyone())

    def freeze(self) -> None:
        """Stop everyone where they are."""
        proc.tell(self.everyone(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let everyone go on."""
        proc.tell(self.everyone(), signal.SIGCONT)

    def stop(self, message: object, timeout_s: float) -> None:
        """Ask all to end, and kill whoever has not after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        self.thaw()
        for control in self._controls:
            try:
                control.send(message)
            except OSError:
                continue
        try:
            for process in self._processes:
                process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._kill()

    def _start_one(self, rank: int) -> tuple[subprocess.Popen[bytes], connection.Connection]:
        ours, theirs = socket.socketpair()
        with theirs:
            control = connection.Connection(ours.detach())
            there = [] if self._seats is None else self._seats.words(rank)
            process = subprocess.Popen(
                [*there, self._python, "-m", "benchmarks.member"],
                cwd=ROOT,
                env=self._environment(rank, theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C is for us alone; we then stop them.
                process_group=0,
            )
        return process, control

    def _environment(self, rank: int, control: int) -> dict[str, str]:
        size = str(len(self._parts))
        return (
            os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": size,
                "LOCAL_WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self._port),
                "OMP_NUM_THREADS": "1",
                "TORCH_CPP_LOG_LEVEL": "ERROR",
                "PSRPC_LAUNCHER": str(os.getpid()),
                CONTROL: str(control),
            }
            | ({} if self._seats is None else self._seats.variables(rank))
            | dict([self._marking.split("=")])
        )

    def _receive(self, rank: int, kind: type) -> object:
        try:
            message = self._controls[rank].recv()
        except (EOFError, OSError):
            raise self._broken(rank) from None
        if not isinstance(message, kind):
            raise BenchmarkError(f"{self.name}: rank {rank} said {message!r} out of turn")
        return message

    def _broken(self, rank: int) -> BenchmarkError:
        try:
            code = f"exit code {self._processes[rank].wait(2.0)}"
        except subprocess.TimeoutExpired:
            code = "still running"
        return BenchmarkError(f"{self.name}: rank {rank} has left ({code}); see its output above")

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        proc.kill_marked(self._marking)
        for control in self._controls:
            control.close()
        self._processes, self._controls = [], []


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
