"""The far side of `hosts`: a shard to be pulled and pushed, a socket, and iperf3."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress

import torch

from benchmarks import namespaces
from benchmarks.workload import Cheap
from psrpc import environment
from psrpc.job import Job
from psrpc.modes import Asynchronous
from psrpc.planes import rpc
from psrpc.planes.agent import Agent
from psrpc.planes.freight import as_bytes
from psrpc.planes.porter import Porter
from psrpc.secret import Secret
from psrpc.server import ParameterServer
from psrpc.store.blueprint import Blueprint, draw
from psrpc.store.shard import ShardStore

Tell = Callable[[str], None]
JOB = Job(1, mode=Asynchronous())
# Nothing is secret here: one shard of zeros, in a measurement.
SECRET = Secret(b"benchmarks")


def blueprint_of(work: Cheap) -> Blueprint:
    """What both sides agree on."""
    return draw(work.model(), functools.partial(torch.optim.SGD, lr=work.lr))


def serve(address: str, port: int, tell: Tell) -> None:
    """Serve one near side after another, until the process is told to end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(1)
    environment.use_interface(namespaces.interface_of(address))
    agent = Agent("server0", 0, threads=4, one_host=False, secret=SECRET, serves=True)
    agent.start()
    with ExitStack() as stack, socket.create_server((address, port)) as listener:
        stack.callback(agent.close)
        iperf_port = _start_iperf(address, stack)
        tell(f"serving at {address}:{port}")
        with suppress(KeyboardInterrupt):
            while True:
                control, _ = listener.accept()
                with control, suppress(OSError, EOFError):
                    _attend(control, agent, address, iperf_port)


def _start_iperf(address: str, stack: ExitStack) -> int | None:
    if shutil.which("iperf3") is None:
        return None
    port = _free_port(address)
    process = subprocess.Popen(
        ["iperf3", "-s", "-B", address, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return port


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _attend(control: socket.socket, agent: Agent, address: str, iperf_port: int | None) -> None:
    """Serve a near side: a fresh shard, until it closes its connection."""
    with control.makefile("rw") as lines, ExitStack() as stack:
        work = Cheap(int(json.loads(lines.readline())["size_mb"]) * 250_000)
        blueprint = blueprint_of(work)
        (layout,) = blueprint.layouts(1)
        store = ShardStore(blueprint, layout, work.model(), JOB.reduction)
        server = ParameterServer(JOB, 0, blueprint, store)
        porter = Porter(server, layout, agent.host, SECRET)
        porter.start()
        stack.callback(porter.close)
        rpc.serve(agent, server)
        stack.callback(rpc.withdraw, agent)
        plain = stack.enter_context(socket.create_server((address, 0)))
        thread = threading.Thread(target=_copy, args=(plain, work.size_bytes), daemon=True)
        thread.start()
        doors = {
            "url": agent.url,
            "berth": porter.address,
            "plain": plain.getsockname()[1],
            "iperf": iperf_port,
        }
        print(json.dumps(doors), file=lines, flush=True)
        lines.readline()


def _copy(listener: socket.socket, size_bytes: int) -> None:
    """Send or receive as many bytes as a shard has, whenever a byte asks for it."""
    with suppress(OSError):
        sock, _ = listener.accept()
        with sock:
            view = as_bytes(torch.ones(size_bytes // 4))
            while order := sock.recv(1):
                if order == b"<":
                    sock.sendall(view)
                else:
                    sock.recv_into(view, size_bytes, socket.MSG_WAITALL)
                    sock.sendall(b"!")
