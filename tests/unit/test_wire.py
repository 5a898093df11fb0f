"""What is said on the socket of one host arrives as it was said."""

from __future__ import annotations

import pytest
import torch

from psrpc.messages import (
    Done,
    Failure,
    Peek,
    Pull,
    Push,
    Reply,
    Request,
    StateReply,
    Stepped,
    Stream,
    StreamKind,
    UpdateKey,
    View,
)
from psrpc.planes.wire import Ring, pack, pack_reply, unpack, unpack_reply

LEASED = UpdateKey(Stream(StreamKind.LEASE, 3, 2**40), 5, 32)
OWN = UpdateKey(Stream(StreamKind.WORKER, 31, 1), 2**50)
VIEW = View(7, ((0, 5), (1, 6)))

REQUESTS: list[Request] = [
    Push(0, 0, LEASED, 128),
    Push(9, 2**40, OWN, 0, pull=False, void=True, loss=0.1, ahead=1, read=2**40 - 1),
    Push(1, 3, LEASED, 4, absent=(0, 7), also=(OWN, LEASED), view=VIEW, read=0),
    Push(1, 3, OWN, 4, overrides=((0, "lr", 0.1), (1, "betas", (0.9, 0.99)))),
    Push(1, 3, OWN, 4, overrides=((0, "lr", torch.tensor(0.1)),)),
    Pull(2, 11),
    Pull(2, 11, ahead=1),
    Pull(2, 11, VIEW),
    Peek(4),
]


@pytest.mark.parametrize("side", [None, 0, 1])
@pytest.mark.parametrize("ahead", [None, False, True])
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_requests(request_: Request, side: int | None, ahead: bool | None) -> None:
    ring = Ring(request_, side, ahead)
    assert unpack(pack(ring)) == ring


@pytest.mark.parametrize(
    "reply",
    [
        Stepped(2**40, 3, duplicate=True),
        Stepped(0, -1),
        Done(4),
        Failure(("ProtocolError", "who are you? \\x00 é")),
    ],
    ids=repr,
)
def test_replies(reply: Reply) -> None:
    assert unpack_reply(pack_reply(reply)) == reply


def test_what_every_step_says_is_short() -> None:
    assert len(pack(Ring(Push(1, 2, LEASED, 128, loss=0.5, read=2), 0, False))) < 100
    assert len(pack_reply(Stepped(1, 2))) < 32


def test_a_reply_that_cannot_be_sent_says_so() -> None:
    unsendable = StateReply((("weight", 0, (("key", None, lambda: None),)),))
    reply = unpack_reply(pack_reply(unsendable))
    assert isinstance(reply, Failure)
