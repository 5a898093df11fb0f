"""What a primary and those that follow it say to each other, over one connection.

Each message is a frozen dataclass, as `codec` has it, with the tensors that belong to it behind it
as bytes. Both ends belong to one job, and have its secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from psrpc.messages import Request, View
from psrpc.orders import Closed, Cut, Halt
from psrpc.planes import codec, freight
from psrpc.planes.freight import Freight, Load

# A tensor's dtype and shape.
Spec = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Death:
    """An event beside requests: the coordinator takes a process for dead."""

    process: int
    why: str


@dataclass(frozen=True)
class News:
    """An event beside requests: the coordinator has told of a view, a round or a cut."""

    order: View | Closed | Halt | Cut


@dataclass(frozen=True)
class Wanted:
    """An event beside requests: a checkpoint is to be made in `folder`, or without one given up."""

    number: int
    folder: str = ""


@dataclass(frozen=True)
class Verdict:
    """An event beside requests: the job ends, with this error."""

    error: tuple[str, str]


@dataclass(frozen=True)
class Check:
    """An event beside requests: the primary's state has this digest now."""

    digest: str


Event = Request | Death | News | Wanted | Verdict | Check


@dataclass(frozen=True)
class Follow:
    """One that wants to follow: its number."""

    replica: int


@dataclass(frozen=True)
class Copy:
    """The state as of entry `number`; tensors beside."""

    epoch: int
    number: int
    state: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """Something that the primary takes in; tensors beside."""

    epoch: int
    number: int
    event: Event


@dataclass(frozen=True)
class Beat:
    """The primary lives."""


@dataclass(frozen=True)
class Over:
    """The job has ended, or this server with it: there is nothing to take over."""


@dataclass(frozen=True)
class Has:
    """One that follows has all entries up to `number`; -1: not even a copy."""

    number: int


@dataclass(frozen=True)
class Differs:
    """One that follows has come to another state than its primary: both digests."""

    mine: str
    theirs: str


codec.know(Death, News, Wanted, Verdict, Check, Follow, Copy, Entry, Beat, Over, Has, Differs)

Message = Follow | Copy | Entry | Beat | Over | Has | Differs


def load(message: Message, tensors: Sequence[torch.Tensor] = ()) -> Load:
    """A message, with tensors on the CPU, as it is to be sent."""
    specs: list[Spec] = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
    head = codec.encode((message, specs))
    return freight.load(head, [tensor.detach().contiguous().reshape(-1) for tensor in tensors])


def send(way: Freight, message: Message, tensors: Sequence[torch.Tensor] = ()) -> None:
    """Send a message, with tensors on the CPU. Raises OSError or EOFError."""
    way.finish(load(message, tensors))


def receive(way: Freight) -> tuple[Message, list[torch.Tensor]]:
    """The next message with its tensors, in fresh memory. Blocks; raises as `send` does."""
    head, _ = way.receive()
    message, specs = codec.decode(head)
    tensors = [torch.empty(shape, dtype=dtype) for dtype, shape in specs]
    way.take([tensor.view(-1) for tensor in tensors if tensor.numel()])
    return message, tensors
