"""Values as bytes: what comes back is what was sent, and nothing else comes back."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch

from psrpc.errors import ProtocolError
from psrpc.messages import (
    Granted,
    Lease,
    Push,
    Register,
    StateReply,
    Stream,
    StreamKind,
    UpdateKey,
    View,
)
from psrpc.planes import codec
from tests import bomb
from tests.bomb import Bomb

KEY = UpdateKey(Stream(StreamKind.LEASE, 3, 4), 5, 6)
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    (1 << 63) - 1,
    -(1 << 63),
    1 << 63,
    -(1 << 200),
    0.0,
    float("inf"),
    1e-300,
    "",
    "ü\ud800\0",
    b"",
    b"\0\xff",
    (),
    (1, (2, [3, {"a": None, (1,): 2.5}])),
    torch.float32,
    torch.bfloat16,
    StreamKind.WORKER,
    KEY,
    Push(1, 2, KEY, 3, also=(KEY,), overrides=((0, "lr", 0.1), (1, "betas", (0.9, 0.99)))),
    Register(1, 3, (("weight", (2, 3), "float32"),), (("mode", "sync"),), None, 7),
    Granted(View(2, ((0, 1), (1, 1))), Lease(0, 1, 2, 3, 4)),
    StateReply((("w", 0, (("step", None, 1.5), ("exp_avg", 0, None))),)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_comes_back_is_what_was_sent(value: Any) -> None:
    back = codec.decode(codec.encode(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(0.5),
        torch.arange(6, dtype=torch.int16).reshape(2, 3).T,
        torch.zeros(0, 3),
        torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        torch.tensor([True, False]),
    ],
)
def test_tensors_go_among_the_bytes_or_beside(tensor: torch.Tensor) -> None:
    back = codec.decode(codec.encode({"lr": tensor}))["lr"]
    assert torch.equal(back, tensor)
    assert back.dtype == tensor.dtype
    beside: list[torch.Tensor] = []
    data = codec.encode([tensor, 1, tensor], beside)
    assert all(x is tensor for x in beside)
    assert codec.decode(data, beside)[2] is tensor


def test_numbers_of_numpy_become_plain() -> None:
    sent = [np.float64(1.5), np.float32(0.5), np.int64(3), np.bool_(True)]
    back = codec.decode(codec.encode(sent))
    assert back == sent
    assert [type(each) for each in back] == [float, float, int, bool]


@pytest.mark.parametrize("value", [object(), {1, 2}, len, Bomb, Bomb(), [lambda: 0], 1j])
def test_what_is_not_listed_is_not_sent(value: Any) -> None:
    with pytest.raises(ProtocolError, match="cannot be sent: only numbers, strings, tensors"):
        codec.encode(value)


def test_two_kinds_of_one_name_are_an_error() -> None:
    with pytest.raises(ValueError, match="there is another View"):
        codec.know(type("View", (tuple,), {"_fields": (), "__annotations__": {}}))


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"?",
        pickle.dumps(Bomb()),
        b"R" + sized(b"Bomb"),
        b"R" + sized(b"Secret") + b"b" + sized(b""),
        b"R" + sized(b"View") + codec.encode("two") + codec.encode(()),
        b"R" + sized(b"View") + codec.encode(True) + codec.encode(()),
        b"R" + sized(b"View") + codec.encode(2),
        b"R" + sized(b"StreamKind") + sized(b"__class__"),
        b"s" + b"\xff\xff\xff\xff" + b"a",
        b"(" + b"\xff\xff\xff\x7f",
        b"(\x01\0\0\0" * 1000 + b"N",
        b"I" + sized(b"9" * 10_000),
        b"{\x01\0\0\0[\0\0\0\0N",
        b"y" + sized(b"load"),
        b"y" + sized(b"float32\0"),
        b"t" + codec.encode(torch.float32) + codec.encode((1 << 40,)) + sized(b"abcd"),
        b"t" + codec.encode(torch.float32) + codec.encode((-1,)) + sized(b"abc"),
        b"@\0\0\0\0",
        b"NN",
    ],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="a garbled message"):
        codec.decode(data)
    assert not bomb.went_off


def test_nothing_happens_however_a_message_is_changed() -> None:
    """Even one that is signed, or a worker's own, can only be refused or be another message."""
    chance = random.Random(1)
    messages = [codec.encode(value) for value in VALUES] + [pickle.dumps(Bomb())]
    refused = 0
    for _ in range(10_000):
        data = bytearray(chance.choice(messages) + chance.choice(messages))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            data[at : at + chance.choice((0, 1, 4))] = chance.randbytes(chance.choice((0, 1, 4)))
            if not data:
                break
        try:
            codec.decode(bytes(data[: len(data) // 2] if chance.random() < 0.5 else data))
        except ProtocolError:
            refused += 1
    assert refused > 5_000
    assert not bomb.went_off
