"""What travels in a process group: sums in a dtype that is wide enough, weights and replies."""

from __future__ import annotations

import pytest
import torch

from psrpc.messages import Done, Stepped
from psrpc.planes.conductor import _Numbers
from psrpc.planes.staging import Staging
from psrpc.store.layout import Segment, ShardLayout

CPU = torch.device("cpu")
DTYPES = ("float32", "bfloat16", "float64", "complex64", "float16", "complex128")
LAYOUT = ShardLayout(tuple(Segment(0, dtype, 3 + i) for i, dtype in enumerate(DTYPES)), ())


def some(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wide = [torch.randn(s.numel, 2, generator=generator) for s in LAYOUT.segments]
    return [
        torch.view_as_complex(w).to(flat.dtype) if flat.is_complex() else w[:, 0].to(flat.dtype)
        for w, flat in zip(wide, LAYOUT.empty(), strict=True)
    ]


def test_two_tensors_are_reduced_however_many_segments_there_are() -> None:
    assert [total.dtype for total in Staging(LAYOUT, 2, CPU).sums] == [torch.float32, torch.float64]
    assert Staging(ShardLayout((), ()), 2, CPU).sums == []


def test_gradients_are_added_up_by_their_weights() -> None:
    staging, first, second = Staging(LAYOUT, 2, CPU), some(1), some(2)
    staging.load(first, 0.25)
    staging.add(second, 0.75)
    for total, a, b in zip(staging.total(), first, second, strict=True):
        assert total.dtype == a.dtype
        wide = torch.complex128 if a.is_complex() else torch.float64
        expected = (a.to(wide) * 0.25 + b.to(wide) * 0.75).to(a.dtype)
        torch.testing.assert_close(total, expected)
    staging.clear()
    assert all(not total.any() for total in staging.total())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(dtype: str) -> None:
    """Added up in its own dtype, each 1 would be lost beside 4096."""
    staging = Staging(ShardLayout((Segment(0, dtype, 1),), ()), 1, CPU)
    one = torch.ones(1, dtype=getattr(torch, dtype))
    staging.load([one * 4096], 1.0)
    for _ in range(32):
        staging.add([one], 1.0)
    assert staging.total()[0].item() == 4128


def test_weights_and_replies_cross_as_bytes() -> None:
    sender, receiver, weights = Staging(LAYOUT, 3, CPU), Staging(LAYOUT, 3, CPU), some(3)
    sender.put(weights, {0: Stepped(7, 2, True), 1: Done(7), 2: Stepped(7)})
    receiver.spread.copy_(sender.spread)
    assert [receiver.reply(worker) for worker in range(3)] == [
        Stepped(7, 2, True),
        None,
        Stepped(7),
    ]
    for landed, sent in zip(receiver.weights, weights, strict=True):
        assert torch.equal(landed, sent)
    sender.put(weights, {})
    assert sender.reply(0) is None


def test_the_oldest_groups_are_forgotten_and_numbers_never_given_twice() -> None:
    numbers = _Numbers()
    first = numbers.of((0, 1))
    assert numbers.of((0, 1)) == first
    others = [numbers.of((worker,)) for worker in range(8)]
    assert numbers.kept == tuple(others)
    assert numbers.of((0, 1)) == 9
    assert others[0] not in numbers.kept
    assert numbers.kept[-1] == 9
