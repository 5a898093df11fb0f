"""Process groups of one server and some of its workers, made when they are first needed.

A group is torch's own class, made directly on a store: no default group, nothing
that this process shares with others in it. The server is rank 0, workers follow
in the order of their ranks.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import PrefixStore, Store, Work

from psrpc.errors import ConfigError, PeerLostError, TorchInterfaceError
from psrpc.forks import Closable, keep_sockets_from_children
from psrpc.job import Backend

_LOOK_AGAIN_S = 0.001
_SERVER = 0
_OFF = "off"  # the key by which a server says that a group is not to be made


def check(backend: Backend, processes: int) -> None:
    """Raise ConfigError unless `processes` on this host can be members of such groups."""
    if backend is not Backend.NCCL:
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus < processes:
        raise ConfigError(
            [
                "backend nccl needs a GPU of its own for every process, servers included: "
                f"{processes} processes run here and torch finds {gpus} GPUs; use backend gloo"
            ]
        )


def device_of(backend: Backend, local_rank: int) -> torch.device:
    """Where this process keeps what its groups send and receive."""
    return torch.device("cpu" if backend is Backend.GLOO else f"cuda:{local_rank}")


@dataclass(frozen=True)
class Fabric:
    """What a process makes its groups with: Gloo's listen on `host`, an address of this one.

    None stands for the loopback interface on one host, for what torch chooses on several.
    """

    backend: Backend
    timeout_s: float
    device: torch.device
    one_host: bool
    host: str | None = None


class Group:
    """A server and some workers, all of which take part in each operation. Blocks until done.

    Raises PeerLostError when a member dies, and when one does not go on for `timeout_s`.
    """

    def __init__(self, processes: Any, sockets: Closable, name: str, timeout_s: float) -> None:
        self._processes = processes
        self._sockets = sockets
        self._name = name
        self._timeout_s = timeout_s

    def reduce(self, tensor: torch.Tensor) -> None:
        """Add up all members' tensors in the server's; the workers' are scratch afterwards."""
        self._finish("reduce", tensor)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Copy the server's tensor to all members."""
        self._finish("broadcast", tensor)

    def leave(self) -> None:
        """Let go of the group: what other members do in it fails at once.

        The error that broke a round is kept, and with its traceback this object.
        """
        self._processes = None

    def _finish(self, operation: str, tensor: torch.Tensor) -> None:
        cause = self._attempt(operation, tensor)
        if cause is not None:
            raise lost(self._name, cause, self._timeout_s)

    def _attempt(self, operation: str, tensor: torch.Tensor) -> str | None:
        """Do it, or say why it cannot be done, without the error, which holds on to the group."""
        processes = self._processes
        if processes is None:
            return "this member has left"
        try:
            work = getattr(processes, operation)(tensor, _SERVER)
            if processes.name() == "gloo":
                work.wait()
            else:
                self._watch(processes, work)
        except RuntimeError as error:
            return _cause(error)
        return None

    def _watch(self, processes: Any, work: Work) -> None:
        """Wait for a GPU; its own wait returns at once, and what it waits for has no time limit."""
        deadline = time.monotonic() + self._timeout_s
        while not work.is_completed():
            if time.monotonic() > deadline:
                processes.abort()
                raise RuntimeError(f"not done after {self._timeout_s:g} s")
            time.sleep(_LOOK_AGAIN_S)
        work.wait()


class Groups:
    """One server's groups, as one of their members sees them. Used by one thread at a time."""

    def __init__(self, server: str, store: Store, fabric: Fabric) -> None:
        self._server = server
        self._store = store
        self._fabric = fabric
        self._groups: dict[int, Group] = {}
        self._device: Any = None

    def join(
        self,
        number: int,
        workers: Sequence[int],
        rank: int,
        off: Callable[[], bool] = lambda: False,
    ) -> Group:
        """The group with this number, of the server and `workers`, as its member `rank`.

        If it is new, blocks until all members have come; raises PeerLostError with the names
        of those that have not after the time limit, and when `off` says so, here or at the server.
        """
        if number not in self._groups:
            name = f"{self._server} and {_named(workers)}"
            store = PrefixStore(str(number), self._store)
            try:
                self._meet(store, workers, rank, off)
                size = 1 + len(workers)
                processes, sockets = keep_sockets_from_children(
                    lambda: self._make(store, rank, size)
                )
            except RuntimeError as error:
                raise lost(name, _cause(error), self._fabric.timeout_s) from None
            self._groups[number] = Group(processes, sockets, name, self._fabric.timeout_s)
        return self._groups[number]

    def keep(self, numbers: Collection[int]) -> None:
        """Leave all groups but these."""
        for number in self._groups.keys() - set(numbers):
            self._groups.pop(number).leave()

    def drop(self, number: int) -> None:
        """Leave a group that is broken."""
        group = self._groups.pop(number, None)
        if group is not None:
            group.leave()

    def close(self) -> None:
        """Leave all groups. What other members do in them fails at once."""
        self.keep(())

    def _meet(
        self, store: Store, workers: Sequence[int], rank: int, off: Callable[[], bool]
    ) -> None:
        """Wait for all members; making a group waits too, but names nobody and logs a lot."""
        store.set(f"here/{rank}", "")
        deadline = time.monotonic() + self._fabric.timeout_s
        here = [f"here/{each}" for each in range(1 + len(workers))]
        while not store.check(here):
            if off() or store.check([_OFF]):
                if rank == _SERVER:
                    store.set(_OFF, "")
                raise RuntimeError("it was called off")
            if time.monotonic() > deadline:
                names = [self._server, *(f"worker {worker}" for worker in workers)]
                missing = [n for n, key in zip(names, here, strict=True) if not store.check([key])]
                raise RuntimeError(f"{', '.join(missing)} did not come")
            time.sleep(_LOOK_AGAIN_S)

    def _make(self, store: Store, rank: int, size: int) -> Any:
        timeout = timedelta(seconds=self._fabric.timeout_s)
        if self._fabric.backend is Backend.GLOO:
            gloo = _kind("ProcessGroupGloo")
            options = gloo._Options()
            options._timeout = timeout
            if self._device is None:
                host = self._fabric.host or ("127.0.0.1" if self._fabric.one_host else None)
                self._device = (
                    gloo.create_device(hostname=host) if host else gloo.create_default_device()
                )
            options._devices = [self._device]
            return gloo(store, rank, size, options)
        nccl = _kind("ProcessGroupNCCL")
        options = nccl.Options()
        options._timeout = timeout
        torch.cuda.set_device(self._fabric.device)
        return nccl(store, rank, size, options)


def lost(name: str, cause: str, timeout_s: float) -> PeerLostError:
    """The error that says that a round of this group broke."""
    return PeerLostError(
        f"collective plane: {name} did not finish a round ({cause}): one of them has died, or "
        f"stood still for {timeout_s:g} s"
    )


def _named(workers: Sequence[int]) -> str:
    if len(workers) == 1:
        return f"worker {workers[0]}"
    return f"workers {', '.join(map(str, workers))}"


def _cause(error: Exception) -> str:
    """What a foreign error says, without the place in foreign sources and foreign advice."""
    text = str(error).split("\n", 1)[0]
    return text.rpartition(".cc:")[2].partition("] ")[2].partition(". ")[0] or text


def _kind(name: str) -> Any:
    kind = getattr(importlib.import_module("torch._C._distributed_c10d"), name, None)
    if kind is None:
        raise TorchInterfaceError(
            f"torch {torch.__version__} is built without {name}; choose another backend or plane"
        )
    return kind
