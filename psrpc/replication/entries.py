"""What a primary and those that follow it say to each other, over one connection.

Each message is a frozen dataclass, as `codec` has it, with the tensors that belong to it behind it
as bytes. Both ends belong to one job, and have its secret.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from psrpc.errors import ProtocolError
from psrpc.messages import Push, Request, View
from psrpc.moves import Retire, Settled
from psrpc.orders import Closed, Cut, Halt
from psrpc.planes import codec, freight, wire
from psrpc.planes.freight import Freight, Load
from psrpc.planes.wire import Ring

# A tensor's dtype and shape.
Spec = tuple[torch.dtype, tuple[int, ...]]
Specs = tuple[Spec, ...]

_OTHER, _REQUEST, _HAS = range(3)
_ENTRY = struct.Struct("<BqqI")  # epoch, number, the length of the specs; a request is behind it
_WORD = struct.Struct("<Bq")
_KNOWN_SPECS = 64


@dataclass(frozen=True)
class Death:
    """An event beside requests: the coordinator takes a process for dead."""

    process: int
    why: str


@dataclass(frozen=True)
class News:
    """An event beside requests: the coordinator has told of a view, a round, a cut, a layout."""

    order: View | Closed | Halt | Cut | Settled | Retire


@dataclass(frozen=True)
class Wanted:
    """An event beside requests: a checkpoint is to be made in `folder`, or without one given up."""

    number: int
    folder: str = ""


@dataclass(frozen=True)
class Layout:
    """An event beside requests: servers are to be cut for a new layout (the own one gives its rows
    away at `giver`), or go on as they are, and `why`.
    """

    giver: str = ""
    why: str = ""


@dataclass(frozen=True)
class Rows:
    """An event beside requests: a shard of the new layout, of so many servers; tensors beside.

    A new server begins with shard 0's `decisions`.
    """

    layout: int
    servers: int
    shard: tuple[Any, ...]
    decisions: bytes = b""


@dataclass(frozen=True)
class Verdict:
    """An event beside requests: the job ends, with this error."""

    error: tuple[str, str]


@dataclass(frozen=True)
class Round:
    """An event beside requests: pushes of a round, whose gradients are one sum; see `Joint`."""

    pushes: tuple[Push, ...]


@dataclass(frozen=True)
class Check:
    """An event beside requests: the primary's state has this digest now."""

    digest: str


Event = Request | Death | News | Wanted | Layout | Rows | Verdict | Round | Check


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
    """Whoever says it lives, however long what it does takes: a thread of its own says it."""


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


codec.know(
    *(Death, News, Wanted, Layout, Rows, Verdict, Round, Check),
    *(Follow, Copy, Entry, Beat, Over, Has, Differs),
)

Message = Follow | Copy | Entry | Beat | Over | Has | Differs


def load(message: Message, tensors: Sequence[torch.Tensor] = ()) -> Load:
    """A message, with tensors on the CPU, as it is to be sent."""
    flats = [tensor.detach().contiguous().reshape(-1) for tensor in tensors]
    if type(message) is Entry and isinstance(message.event, Request):
        specs = _encoded(tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors))
        head = _ENTRY.pack(_REQUEST, message.epoch, message.number, len(specs)) + specs
        return freight.load(head + wire.pack(Ring(message.event)), flats)
    if type(message) is Has:
        return freight.load(_WORD.pack(_HAS, message.number))
    described = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
    return freight.load(bytes([_OTHER]) + codec.encode((message, described)), flats)


def send(way: Freight, message: Message, tensors: Sequence[torch.Tensor] = ()) -> None:
    """Send a message, with tensors on the CPU. Raises OSError or EOFError."""
    way.finish(load(message, tensors))


def receive(way: Freight, pool: Pool | None = None) -> tuple[Message, list[torch.Tensor]]:
    """The next message with its tensors, in fresh memory or the pool's.

    Blocks; raises as `send` does, and ProtocolError for what is no message.
    """
    data, _ = way.receive()
    message, specs = _unpacked(data)
    tensors = _fresh(specs) if pool is None else pool.take(specs)
    way.take([tensor.view(-1) for tensor in tensors if tensor.numel()])
    return message, tensors


class Pool:
    """Memory of what has come, used again when it was read. One thread."""

    def __init__(self) -> None:
        self._free: dict[Specs, list[list[torch.Tensor]]] = {}

    def take(self, specs: Specs) -> list[torch.Tensor]:
        """Tensors like these; what is in them does not matter."""
        free = self._free.get(specs)
        return free.pop() if free else _fresh(specs)

    def give(self, tensors: list[torch.Tensor]) -> None:
        """Nobody reads them any more."""
        specs = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
        self._free.setdefault(specs, []).append(tensors)


def _fresh(specs: Specs) -> list[torch.Tensor]:
    return [torch.empty(shape, dtype=dtype) for dtype, shape in specs]


def _unpacked(data: bytes) -> tuple[Message, Specs]:
    try:
        if data[0] == _HAS:
            return Has(_WORD.unpack(data)[1]), ()
        if data[0] == _REQUEST:
            _, epoch, number, length = _ENTRY.unpack_from(data)
            begin = _ENTRY.size + length
            event = wire.unpack(data[begin:]).request
            return Entry(epoch, number, event), _decoded(data[_ENTRY.size : begin])
        message, specs = codec.decode(data[1:])
        return message, tuple(specs)
    except (struct.error, LookupError) as error:
        raise ProtocolError(f"a garbled message ({error})") from None


# A shard's gradients always look alike.
@lru_cache(_KNOWN_SPECS)
def _encoded(specs: Specs) -> bytes:
    return codec.encode(specs)


@lru_cache(_KNOWN_SPECS)
def _decoded(data: bytes) -> Specs:
    specs: Specs = codec.decode(data)
    return specs
