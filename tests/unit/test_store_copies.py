"""Copies whose memory is used again, but never while somebody reads it."""

from __future__ import annotations

import pytest
import torch

from psrpc.store.copies import Copies

DTYPES = [torch.float32, torch.bfloat16, torch.complex128]


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_comes_back_when_the_last_reader_is_gone(dtype: torch.dtype) -> None:
    flat, copies = torch.ones(1 << 20, dtype=dtype), Copies()
    first = copies.of(flat)
    assert torch.equal(first, flat)
    place, part = first.data_ptr(), first[7:]
    del first
    flat.fill_(2)
    second = copies.of(flat)
    assert second.data_ptr() != place
    assert part[0] == 1
    del part
    assert len(copies.free) == 1
    third = copies.of(flat)
    assert third.data_ptr() == place
    assert torch.equal(third, flat)


def test_not_more_memory_is_kept_than_is_of_use() -> None:
    flat, copies = torch.ones(1 << 20), Copies()
    many = [copies.of(flat) for _ in range(5)]
    many.clear()
    assert len(copies.free) == 2


def test_a_small_tensor_is_cloned() -> None:
    flat, copies = torch.ones(3), Copies()
    assert torch.equal(copies.of(flat), flat)
    assert copies.of(flat).data_ptr() != flat.data_ptr()
    assert copies.free == []
