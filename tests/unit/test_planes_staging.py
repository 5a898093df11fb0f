"""What travels in a process group: sums in a dtype that is wide enough, weights and replies."""

from __future__ import annotations

import pytest
import torch

from psrpc.messages import Stepped, View
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


def reduce(mine: Staging, other: Staging) -> None:
    for total, addends in zip(mine.sums, other.sums, strict=True):
        total += addends


def test_two_tensors_are_reduced_however_many_segments_there_are() -> None:
    assert [total.dtype for total in Staging(LAYOUT, CPU).sums] == [torch.float32, torch.float64]
    assert Staging(ShardLayout((), ()), CPU).sums == []


def test_sums_and_what_is_spread_are_one_memory_unless_apart() -> None:
    """A server's sums are used when weights are sent; a worker's weights may be its model's."""
    staging = Staging(LAYOUT, CPU)
    held = {total.untyped_storage().data_ptr() for total in (*staging.sums, staging.spread)}
    assert len(held) == 1
    apart, weights = Staging(LAYOUT, CPU, apart=True), some(3)
    apart.put(weights, None)
    apart.load(some(1), 1.0)
    for kept, put in zip(apart.weights, weights, strict=True):
        assert torch.equal(kept, put)


@pytest.mark.parametrize("dtypes", [("bfloat16",), ("float32",), ("float64", "float16"), ()])
def test_there_is_room_for_either(dtypes: tuple[str, ...]) -> None:
    layout = ShardLayout(tuple(Segment(0, dtype, 1001) for dtype in dtypes), ())
    staging = Staging(layout, CPU)
    ones = [torch.ones_like(flat) for flat in layout.empty()]
    staging.load(ones, 1.0)
    assert all(torch.equal(total, one) for total, one in zip(staging.total(), ones, strict=True))
    assert staging.put(ones, Stepped(1, 0))
    assert staging.reply() == Stepped(1, 0)
    assert all(torch.equal(got, one) for got, one in zip(staging.weights, ones, strict=True))


def test_gradients_are_added_up_by_their_weights() -> None:
    staging, other, first, second = Staging(LAYOUT, CPU), Staging(LAYOUT, CPU), some(1), some(2)
    staging.load(first, 0.25)
    other.load(second, 0.75)
    reduce(staging, other)
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
    layout = ShardLayout((Segment(0, dtype, 1),), ())
    staging, other = Staging(layout, CPU), Staging(layout, CPU)
    one = torch.ones(1, dtype=getattr(torch, dtype))
    staging.load([one * 4096], 1.0)
    for _ in range(32):
        other.load([one], 1.0)
        reduce(staging, other)
    assert staging.total()[0].item() == 4128


def test_weights_and_replies_cross_as_bytes() -> None:
    sender, receiver, weights = Staging(LAYOUT, CPU), Staging(LAYOUT, CPU), some(3)
    reply = Stepped(7, 2, view=View(3, ((0, 5), (4, 6))))
    assert sender.put(weights, reply)
    receiver.spread.copy_(sender.spread)
    assert receiver.reply() == reply
    for landed, sent in zip(receiver.weights, weights, strict=True):
        assert torch.equal(landed, sent)
    sender.put(weights, None)
    assert sender.reply() is None


def test_a_reply_that_is_too_long_does_not_go_with_the_weights() -> None:
    staging, weights = Staging(LAYOUT, CPU), some(3)
    crowd = View(3, tuple((worker, 10**12) for worker in range(1000)))
    assert not staging.put(weights, Stepped(7, view=crowd))
    assert staging.reply() is None
    assert torch.equal(staging.weights[0], weights[0])


def test_the_oldest_groups_are_forgotten_and_numbers_never_given_twice() -> None:
    numbers = _Numbers()
    first = numbers.of((0, 1))
    assert numbers.of((0, 1)) == first
    others = [numbers.of((worker,)) for worker in range(8)]
    assert numbers.kept == tuple(others)
    assert numbers.of((0, 1)) == 9
    assert others[0] not in numbers.kept
    assert numbers.kept[-1] == 9
