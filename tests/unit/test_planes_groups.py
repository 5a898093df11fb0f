"""A member that has left its groups holds on to none of them, whatever became of their rounds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from psrpc.errors import PeerLostError
from psrpc.planes.groups import Group, Groups


class Sockets:
    def close(self) -> None:
        """Nothing to close."""


class Processes:
    """A process group in which somebody has died."""

    def name(self) -> str:
        return "gloo"

    def reduce(self, tensor: torch.Tensor, root: int) -> Any:
        return Work(self)

    def broadcast(self, tensor: torch.Tensor, root: int) -> Any:
        raise RuntimeError("[/x/pair.cc:1] Connection closed by peer [127.0.0.1]:1")


class Work:
    """What torch waits with; it knows its process group."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def wait(self) -> None:
        raise RuntimeError("Connection closed by peer")


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """Others in the group are told when the last reference goes, not some time later."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("operation", ["reduce", "broadcast"])
def test_a_round_that_broke_keeps_no_group(operation: str) -> None:
    groups = Groups("server0", None, None)  # type: ignore[arg-type]
    groups._groups[0] = Group(Processes(), Sockets(), "server0 and worker 0", 1.0)
    alive = weakref.ref(groups._groups[0]._processes)

    def play() -> None:
        group = groups._groups[0]
        getattr(group, operation)(torch.zeros(1))

    with pytest.raises(PeerLostError, match="Connection closed by peer") as kept:
        play()
    assert alive() is not None
    groups.close()
    assert alive() is None
    assert kept.value.__traceback__, "a server keeps the error that ends its job"


def test_who_has_left_takes_part_no_more() -> None:
    group = Group(Processes(), Sockets(), "server0 and worker 0", 1.0)
    group.leave()
    with pytest.raises(PeerLostError, match="this member has left"):
        group.reduce(torch.zeros(1))
