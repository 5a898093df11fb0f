"""What torch RPC sends for Python is signed, and made of listed functions and values alone.

Torch pickles a function with its arguments, and the other side runs what it unpickles. `Signer`
takes that pickler's place: a message is `codec`'s, behind a MAC made of the job's secret, the
message and its tensors. Nothing is looked at before the MAC is right, and nothing in it is code: a
function is a name in a list. Each call has a ticket, that is good once, at one process, and its
answer has the same one, so neither can be played again.
"""

from __future__ import annotations

import itertools
import os
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from psrpc.core.ranges import Ranges
from psrpc.errors import ProtocolError, SecretError
from psrpc.planes import codec
from psrpc.planes.freight import as_bytes
from psrpc.secret import MAC_BYTES, Secret

_LENGTH = struct.Struct("<Q")
Function = TypeVar("Function", bound=Callable[..., Any])


class Ticket(NamedTuple):
    """One call: who makes it (a number that no other process has), and which of its calls to `to`.

    Numbers of calls to one process follow each other.
    """

    by: bytes
    to: str
    number: int


class Call(NamedTuple):
    """A listed function, and its arguments, of which the first is a `Ticket`."""

    function: str
    arguments: tuple[Any, ...]


class Result(NamedTuple):
    """What a listed function has returned."""

    value: Any


class Raised(NamedTuple):
    """A listed function raised, which none does; or the process is about to end."""

    text: str


codec.know(Ticket, Call, Result, Raised)

_listed: dict[str, Callable[..., Any]] = {}


def may_be_called(function: Function) -> Function:
    """List a function: other processes of the job may call it by its name."""
    _listed[function.__name__] = function
    return function


class Tickets:
    """Gives tickets, and tells those that are fresh. All methods are for any thread.

    `me` is this process's name in the job.
    """

    def __init__(self, me: str) -> None:
        self._me = me
        self._by = os.urandom(16)
        self._numbers: dict[str, itertools.count[int]] = defaultdict(itertools.count)
        self._seen: dict[bytes, Ranges] = defaultdict(Ranges)
        self._lock = threading.Lock()

    def take(self, to: str) -> Ticket:
        """One for a call to the process of this name."""
        with self._lock:
            return Ticket(self._by, to, next(self._numbers[to]))

    def use(self, ticket: Ticket) -> None:
        """Raise SecretError unless a ticket is for this process and has not been used here."""
        if ticket.to != self._me:
            raise SecretError(f"a call to {ticket.to} came to {self._me}")
        with self._lock:
            seen = self._seen[ticket.by]
            if ticket.number in seen:
                raise SecretError("a call came again that has been made already")
            seen.add(ticket.number)


class Signer:
    """In place of torch's `_InternalRPCPickler`. `call_of` and `error_of` are torch's own tuples.

    Both methods may be called from any thread, by torch.
    """

    def __init__(self, secret: Secret, tickets: Tickets, call_of: Any, error_of: Any) -> None:
        self._secret = secret.derive("rpc")
        self._tickets = tickets
        self._call_of = call_of
        self._error_of = error_of

    def _register_reducer(self, kind: type, reducer: Any) -> None:
        """Torch's modules that are imported late, those of checkpoints too, call this.

        They say how to pickle objects that are never sent here.
        """

    def serialize(self, message: Any) -> tuple[bytes, list[torch.Tensor]]:
        """A call or a result as bytes, and its tensors.

        Raises ProtocolError for a call that cannot be sent; the other side is told of a result.
        """
        beside: list[torch.Tensor] = []
        try:
            body = codec.encode(self._outward(message), beside)
        except ProtocolError as error:
            if isinstance(message, self._call_of):
                raise
            beside.clear()
            body = codec.encode(Raised(str(error)))
        return self._mac(body, beside) + body, beside

    def deserialize(self, data: bytes, beside: Sequence[torch.Tensor]) -> Any:
        """The call or result that `serialize` was given, by a process of this job.

        Raises SecretError for what is not signed or comes again, ProtocolError for what is garbled.
        """
        mac, body = data[:MAC_BYTES], data[MAC_BYTES:]
        if len(mac) != MAC_BYTES or not self._secret.knows(mac, "body", *self._parts(body, beside)):
            raise SecretError("a message came over RPC that nobody of this job has signed")
        return self._inward(codec.decode(body, beside))

    def _outward(self, message: Any) -> Call | Result | Raised:
        if isinstance(message, self._call_of):
            name = message.func.__name__
            if _listed.get(name) is not message.func or message.kwargs:
                raise ProtocolError(f"{name} is not to be called by RPC")
            return Call(name, tuple(message.args))
        if isinstance(message, self._error_of):
            return Raised(str(message.msg))
        return Result(message)

    def _inward(self, message: Any) -> Any:
        match message:
            case Call(function, (Ticket() as ticket, *_) as arguments) if function in _listed:
                self._tickets.use(ticket)
                return self._call_of(_listed[function], arguments, {})
            case Result(value):
                return value
            case Raised(text):
                return self._error_of(text.encode("unicode_escape").decode(), RuntimeError)
        raise ProtocolError("a message came over RPC that says nothing")

    def _mac(self, body: bytes, beside: Sequence[torch.Tensor]) -> bytes:
        return self._secret.mac("body", *self._parts(body, beside))

    def _parts(self, body: bytes, beside: Sequence[torch.Tensor]) -> tuple[bytes, ...]:
        """What is signed: the message, and of tensors beside it one digest."""
        if not beside:
            return (body,)
        signer = self._secret.signer("tensors")
        for tensor in beside:
            kind = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            signer.update(_LENGTH.pack(len(kind)) + kind + _LENGTH.pack(flat.nbytes))
            if flat.numel():
                signer.update(as_bytes(flat))
        return body, signer.digest()
