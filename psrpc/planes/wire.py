"""The messages of a step as bytes: small, and quick to read.

What every step says has a fixed place; what is rare (a new view, changed options)
follows as `codec` has it, as do messages of other kinds.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from psrpc.errors import ProtocolError
from psrpc.messages import Failure, Pull, Push, Reply, Request, Stepped
from psrpc.planes import codec
from psrpc.usual import Usual


class Ring(NamedTuple):
    """A request at a server's door: which set of gradients is sent, where weights shall land.

    `side` is None where no gradients go along. Weights land `ahead` of their use, in a
    place of their own, or in the model's own memory, or (None) nowhere.
    """

    request: Request
    side: int | None = None
    ahead: bool | None = None


_OTHER, _PUSH, _PULL, _STEPPED = range(4)
_HEAD = struct.Struct("<BBB")
_HEAD_BYTES = _HEAD.size
_PUSH_BODY = struct.Struct("<qqBBqqqqqqd??q")  # a `Usual`
_WHOLE_PUSH = struct.Struct("<BBBqqBBqqqqqqd??q")
_PULL_BODY = struct.Struct("<qqqq")
_STEPPED_BODY = struct.Struct("<Bqq??q")
_RARE = struct.calcsize("<Bqq")  # where a reply has what is rare
_NONE = 2  # of a side, or of `ahead`
_USUAL_HEADS = {
    _HEAD.pack(_PUSH, side, ahead): (side, ahead) for side in (0, 1) for ahead in (0, 1)
}
_LATEST = -1  # of a reply's clock: the usual one
# So begin, and end, the bytes of a `Stepped` of which nothing is rare.
GRANTED = bytes([_STEPPED])
NOTHING_RARE = _STEPPED_BODY.pack(_STEPPED, 0, 0, False, False, _LATEST)[_RARE:]


def pack(ring: Ring) -> bytes:
    """A ring as bytes."""
    request = ring.request
    side = _NONE if ring.side is None else ring.side
    ahead = _NONE if ring.ahead is None else ring.ahead
    if type(request) is Push:
        return _HEAD.pack(_PUSH, side, ahead) + _pack_push(request)
    if type(request) is Pull and request.view is None:
        body = _PULL_BODY.pack(request.worker, request.clock, request.ahead, request.layout)
        return _HEAD.pack(_PULL, side, ahead) + body
    return _HEAD.pack(_OTHER, side, ahead) + codec.encode(request)


def unpack(message: bytes) -> Ring:
    """The ring that `pack` made bytes of. Raises ProtocolError or struct.error for others."""
    kind, side, ahead = _HEAD.unpack_from(message)
    if kind == _PUSH:
        request: Request = _unpack_push(message)
    elif kind == _PULL:
        worker, clock, begun, layout = _PULL_BODY.unpack_from(message, _HEAD_BYTES)
        request = Pull(worker, clock, ahead=begun, layout=layout)
    else:
        request = codec.decode(message[_HEAD_BYTES:])
        if not isinstance(request, Request):
            raise ProtocolError(f"a {type(request).__name__} is no request")
    return Ring(request, None if side == _NONE else side, None if ahead == _NONE else bool(ahead))


def pack_reply(reply: Reply) -> bytes:
    """A reply as bytes; one that cannot be sent becomes the failure that says so."""
    if type(reply) is Stepped and reply.view is None:
        clock = _LATEST if reply.clock is None else reply.clock
        body = (reply.version, reply.lead, reply.duplicate, reply.late, clock)
        return _STEPPED_BODY.pack(_STEPPED, *body)
    try:
        return bytes([_OTHER]) + codec.encode(reply)
    except ProtocolError as error:
        return pack_reply(Failure((type(error).__name__, str(error))))


def unpack_reply(message: bytes) -> Reply:
    """The reply that `pack_reply` made bytes of."""
    if message[0] == _STEPPED:
        _, version, lead, duplicate, late, clock = _STEPPED_BODY.unpack(message)
        return Stepped(version, lead, duplicate, late, None if clock == _LATEST else clock)
    reply = codec.decode(message[1:])
    if not isinstance(reply, Reply):
        raise ProtocolError(f"a {type(reply).__name__} is no reply")
    return reply


def pack_usual(side: int, push: Usual) -> bytes:
    """A ring of a usual push as bytes: one set of gradients, for weights that land at once."""
    return _WHOLE_PUSH.pack(_PUSH, side, False, *push)


def unpack_usual(message: bytes) -> tuple[Usual, int, int] | None:
    """A ring of a usual push that has gradients and a place for weights, or None.

    It is as `Ring` has it: the push, the side of its gradients, and `ahead`.
    """
    where = _USUAL_HEADS.get(message[:_HEAD_BYTES])
    if where is None or len(message) != _WHOLE_PUSH.size:
        return None
    push = Usual._make(_PUSH_BODY.unpack_from(message, _HEAD_BYTES))
    return None if push.void or not push.pull else (push, *where)


def pack_granted(version: int, lead: int) -> bytes:
    """A `Stepped` of which nothing is rare, as bytes."""
    return _STEPPED_BODY.pack(_STEPPED, version, lead, False, False, _LATEST)


def _pack_push(push: Push) -> bytes:
    body = _PUSH_BODY.pack(*Usual.part_of(push))
    tail = (push.absent, push.also, push.overrides, push.view)
    return body + codec.encode(tail) if any(tail) else body


def _unpack_push(message: bytes) -> Push:
    usual = Usual._make(_PUSH_BODY.unpack_from(message, _HEAD_BYTES))
    tail = message[_HEAD_BYTES + _PUSH_BODY.size :]
    return usual.push(*codec.decode(tail)) if tail else usual.push()
