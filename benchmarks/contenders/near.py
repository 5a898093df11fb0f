"""The near side of `hosts`: what is measured there, each a way to move a shard's bytes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from benchmarks import namespaces
from benchmarks.commands.hosts import IPERF, SOCKET
from benchmarks.contender import BenchmarkError, Plan, Sample
from benchmarks.contenders.opposite import SECRET, blueprint_of
from benchmarks.workload import Cheap
from psrpc import environment
from psrpc.messages import Adopt, Pull, Push, Stream, StreamKind, UpdateKey, View
from psrpc.planes.agent import Agent
from psrpc.planes.base import Link
from psrpc.planes.freight import as_bytes
from psrpc.planes.rpc import Address, RpcLink
from psrpc.planes.stream import StreamLink

_PATIENCE_S = 60.0
_IPERF_S = 1.0


@dataclass
class Way:
    """A contender: `calls(n)` moves `size_bytes` n times."""

    name: str
    size_bytes: int
    calls: Callable[[int], object]
    rate: str
    cpu: str

    def start(self) -> None:
        """See `Contender`."""

    def run(self, plan: Plan) -> Sample:
        """See `Contender`."""
        self.calls(plan.warmup)
        began_s, used_s = time.perf_counter(), time.process_time()
        self.calls(plan.steps)
        took_s, used_s = time.perf_counter() - began_s, time.process_time() - used_s
        gigabytes = self.size_bytes * plan.steps / 1e9
        return Sample({self.rate: gigabytes / took_s, self.cpu: 1000 * used_s / plan.steps})

    def stop(self) -> None:
        """See `Contender`."""


class Iperf:
    """iperf3's own figure of a second; it counts what arrives."""

    def __init__(self, name: str, command: list[str], rate: str) -> None:
        self.name = name
        self._command = command
        self._rate = rate

    def start(self) -> None:
        """See `Contender`."""

    def run(self, plan: Plan) -> Sample:
        """See `Contender`."""
        done = subprocess.run(self._command, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"{self.name}: {done.stdout.strip() or done.stderr.strip()}")
        end = json.loads(done.stdout)["end"]
        return Sample({self._rate: end["sum_received"]["bits_per_second"] / 8e9})

    def stop(self) -> None:
        """See `Contender`."""


class Shard:
    """One worker's calls of the far server, over one link."""

    def __init__(self, link: Link, work: Cheap, clock: list[int]) -> None:
        self._link = link
        self._clock = clock  # a worker has one, whatever way it speaks
        self.buffers = link.open(blueprint_of(work).layouts(1)[0])
        for flat in self.buffers.gradients:
            flat.fill_(1e-6)

    def pull(self, calls: int) -> None:
        """Pull again and again."""
        for _ in range(calls):
            self._link.exchange(Pull(0, self._clock[0]), send=False, land=True).wait(_PATIENCE_S)

    def push(self, calls: int, pull: bool = False) -> None:
        """Push again and again, and with `pull` take the new weights each time."""
        for _ in range(calls):
            clock = self._clock[0]
            key = UpdateKey(Stream(StreamKind.WORKER, 0, 0), clock)
            push = Push(0, clock, key, 1, pull=pull)
            self._link.exchange(push, send=True, land=pull).wait(_PATIENCE_S)
            self._clock[0] += 1

    def push_pull(self, calls: int) -> None:
        """Both in one call."""
        self.push(calls, pull=True)


class Near:
    """All ways to the far side, open for as long as this is entered."""

    def __init__(self, far: str, port: int, size_mb: int) -> None:
        self._far = far
        self._port = port
        self._work = Cheap(size_mb * 250_000)
        self._stack = ExitStack()
        self.iperf = False

    def __enter__(self) -> Near:
        control = self._stack.enter_context(_reach(self._far, self._port))
        environment.use_interface(namespaces.interface_of(control.getsockname()[0]))
        self._lines = self._stack.enter_context(control.makefile("rw"))
        size_mb = self._work.size_bytes // 1_000_000
        print(json.dumps({"size_mb": size_mb}), file=self._lines, flush=True)
        self._doors = json.loads(self._lines.readline())
        self.iperf = self._doors["iperf"] is not None and shutil.which("iperf3") is not None
        torch.set_num_threads(1)
        # Numbers of agents are never used twice; 0 is the server's.
        self._agent = Agent(
            "near", 1 + os.getpid() % 30_000, threads=1, one_host=False, secret=SECRET
        )
        self._agent.start()
        self._stack.callback(self._agent.close)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def ways(self, rate: str, cpu: str) -> Iterator[Way | Iperf]:
        """All that is measured."""
        if self.iperf:
            port = str(self._doors["iperf"])
            command = ["iperf3", "-J", "-c", self._far, "-p", port, "-t", str(_IPERF_S)]
            yield Iperf(IPERF[0], [*command, "-R"], rate)
            yield Iperf(IPERF[1], command, rate)
        size = self._work.size_bytes
        plain = self._stack.enter_context(_reach(self._far, self._doors["plain"]))
        view = as_bytes(torch.ones(size // 4))
        yield Way(SOCKET[0], size, lambda n: _fetch(plain, view, n), rate, cpu)
        yield Way(SOCKET[1], size, lambda n: _bring(plain, view, n), rate, cpu)
        for name, shard in self._shards().items():
            yield Way(f"psrpc pull, {name}", size, shard.pull, rate, cpu)
            yield Way(f"psrpc push, {name}", size, shard.push, rate, cpu)
            yield Way(f"psrpc push_pull, {name}", 2 * size, shard.push_pull, rate, cpu)

    def _shards(self) -> dict[str, Shard]:
        control = RpcLink(self._agent, Address("server0", 0, self._doors["url"]))
        control.connect()
        control.call(Adopt(0, View(1, ((0, 0),)))).wait(_PATIENCE_S)
        stream = StreamLink(control, self._doors["berth"])
        stream.connect()
        self._stack.callback(stream.close)
        clock = [0]
        return {
            "rpc": Shard(stream, self._work, clock),
            "one RPC": Shard(control, self._work, clock),
        }


def _reach(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return socket.create_connection((host, port), _PATIENCE_S)
        except OSError as error:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"nobody serves at {host}:{port} ({error})") from None
            time.sleep(0.1)


def _fetch(sock: socket.socket, view: memoryview, calls: int) -> None:
    sock.settimeout(None)
    for _ in range(calls):
        sock.sendall(b"<")
        if sock.recv_into(view, view.nbytes, socket.MSG_WAITALL) < view.nbytes:
            raise BenchmarkError("the far side has left")


def _bring(sock: socket.socket, view: memoryview, calls: int) -> None:
    sock.settimeout(None)
    for _ in range(calls):
        sock.sendall(b">")
        sock.sendall(view)
        if not sock.recv(1):
            raise BenchmarkError("the far side has left")
