"""`psrpc.init` and `psrpc.shutdown`: which cluster this process uses, and a local one if none."""

from __future__ import annotations

import atexit
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from psrpc import environment
from psrpc.actors import current
from psrpc.actors.client import Client
from psrpc.actors.head import Head
from psrpc.actors.node import USUAL, resources_here, start_here
from psrpc.core.placement import Resources
from psrpc.errors import UsageError

_END_S = 5.0
_LOOK_S = 0.05


class Cluster:
    """What `init` returns: this process's use of a cluster. A context manager that ends it."""

    def __init__(self, client: Client, head: Head | None, node: subprocess.Popen[bytes] | None):
        self.client = client
        self._head = head
        self._node = node

    @property
    def address(self) -> str:
        """What other processes give to `init(address)`, or `psrpc status` and `psrpc node`."""
        return self.client.address

    def status(self) -> dict[str, Any]:
        """Nodes with what they have and what of it is used; actors with their state. Blocks."""
        return self.client.status()

    def wait_for_nodes(self, count: int, timeout: float | None = None) -> None:
        """Wait until so many nodes have come, this host's among them. Blocks.

        What is asked for before may be what no node can give yet. Raises TimeoutError.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            ready = [node["name"] for node in self.status()["nodes"] if node["ready"]]
            if len(ready) >= count:
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(
                    f"{len(ready)} of {count} nodes have come within {timeout:g} s: "
                    f"{', '.join(ready) or 'none'}; start `psrpc node ADDRESS` on the others"
                )
            time.sleep(_LOOK_S)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shutdown()

    def close(self) -> None:
        """Leave; if this process began the cluster, end it with all its processes."""
        self.client.close()
        if self._head is not None:
            self._head.close()
        if self._node is not None:
            try:
                self._node.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._node.kill()
                self._node.wait()


_cluster: Cluster | None = None


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory_bytes: int | None = None,
    labels: Mapping[str, str] | None = None,
    listen: str | None = None,
    imports: Sequence[str] = USUAL,
) -> Cluster:
    """Use the cluster at `address`, or begin one on this host; the first actor does so by itself.

    A cluster that is begun here offers what this host has, or what is given, and ends with this
    process, however that ends. `listen` is an address of this host at which nodes of other hosts
    may join (`psrpc node`); without it only this user's processes on this host can. `imports` are
    modules that its node imports before it forks: actors that need them share their memory and
    start at once, and the first one starts when they are imported.
    Raises UsageError if this process uses a cluster already, AddressError if none is there.
    """
    global _cluster
    with current.lock:
        if current.client is not None:
            raise UsageError("this process uses a cluster already: call psrpc.shutdown() first")
        address = address or current.address() or environment.cluster()
        head, node = None, None
        if address is None:
            here = resources_here()
            whole = Resources(
                here.cpus if num_cpus is None else float(num_cpus),
                here.gpus if num_gpus is None else float(num_gpus),
                here.memory_bytes if memory_bytes is None else int(memory_bytes),
            )
            head = Head(listen)
            head.expect("node", whole, labels or {})
            head.start()
            address = head.address
            node = start_here(address, "node", whole, labels or {}, imports)
        client = Client(address)
        client.start()
        current.client = client
        _cluster = Cluster(client, head, node)
        if head is not None and node is not None:
            watch = threading.Thread(target=_watch, args=(head, node), name="psrpc-node")
            watch.daemon = True
            watch.start()
        atexit.register(shutdown)
        return _cluster


def _watch(head: Head, node: subprocess.Popen[bytes]) -> None:
    """End a cluster whose own node has ended: whoever waits for an actor hears of it."""
    node.wait()
    head.close()


def shutdown() -> None:
    """Stop using the cluster; one that this process began ends, with all its actors. Blocks."""
    global _cluster
    with current.lock:
        cluster, _cluster, current.client = _cluster, None, None
    if cluster is not None:
        atexit.unregister(shutdown)
        cluster.close()


def client() -> Client:
    """This process's client; the first call begins a cluster if this process belongs to none."""
    found = current.client
    if found is None or found.closed:
        with current.lock:
            if current.client is not None and current.client.closed:
                shutdown()
            if current.client is None:
                init()
            found = current.client
    assert isinstance(found, Client)
    return found
