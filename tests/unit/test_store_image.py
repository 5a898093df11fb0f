"""A shard's image, and a shard that goes on from one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from psrpc.store import optim as shard_optim
from psrpc.store.state import same
from tests.unit.shards import OPTIMIZERS, Shards, assert_equal, two_groups


def resumed(old: Shards, new: Shards) -> None:
    for before, after in zip(old.stores, new.stores, strict=True):
        image = before.image()
        after.restore(image)
        image.release()


@pytest.mark.parametrize("groups", [None, two_groups], ids=["one group", "two groups"])
@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_shard_goes_on_bit_by_bit(name: str, servers: int, groups: Any) -> None:
    one, other = (Shards(OPTIMIZERS[name], servers, groups) for _ in range(2))
    one.train(range(3))
    resumed(one, other)
    for shards in (one, other):
        shards.train(range(3, 6))
    assert_equal(one, other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restored_pieces_keep_the_state_that_is_their_own(name: str) -> None:
    """`scale` never had a gradient, `large` missed a step."""
    one, other = (Shards(OPTIMIZERS[name]) for _ in range(2))
    one.train([0], absent=["scale"])
    one.train([1], absent=["scale", "large"])
    resumed(one, other)
    for shards in (one, other):
        shards.train([2], absent=["bias"])
        shards.train([3, 4])
    assert_equal(one, other)


@pytest.mark.parametrize("name", ["sgd-momentum", "adam", "adamw", "adagrad"])
def test_a_restored_shard_runs_its_kernel_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_optim, "STRETCH", 64)
    one, other = (Shards(OPTIMIZERS[name]) for _ in range(2))
    one.train(range(2))
    resumed(one, other)
    one.train([2, 3])
    calls: list[object] = []
    monkeypatch.setattr(shard_optim, "plain_step", lambda kind: calls.append)
    other.train([2, 3])
    assert calls == []
    assert_equal(one, other)


def test_a_shard_that_has_not_stepped_has_an_image() -> None:
    one, other = (Shards(OPTIMIZERS["adam"]) for _ in range(2))
    resumed(one, other)
    for shards in (one, other):
        shards.train(range(2))
    assert_equal(one, other)


def test_options_of_the_last_push_hold_until_the_next() -> None:
    one, other = (Shards(OPTIMIZERS["adam"]) for _ in range(2))
    one.train([0, 1], lr=0.5, betas=(0.1, 0.2))
    image = one.stores[0].image()
    assert [(o.key, o.value, o.overridden) for o in image.options] == [
        ("lr", 0.5, True),
        ("betas", (0.1, 0.2), True),
    ]
    resumed(one, other)
    for shards in (one, other):
        shards.train([2])
    assert one.stores[0].image().options == other.stores[0].image().options == ()
    assert_equal(one, other)


def test_what_a_class_counts_in_its_groups_goes_along() -> None:
    shards = Shards(OPTIMIZERS["own"])
    shards.train(range(3))
    (option,) = shards.stores[0].image().options
    assert (option.key, option.value, option.overridden) == ("seen", 3, False)


@pytest.mark.parametrize("name", ["adam", "own"])
def test_an_image_does_not_change(name: str) -> None:
    shards = Shards(OPTIMIZERS[name], groups=two_groups)
    shards.train(range(2), absent=["bias"])
    (store,) = shards.stores
    image = store.image()
    weights = [piece.weights.clone() for piece in image.pieces]
    states = [
        {key: shard_optim.own(value) for key, value in piece.state.items()}
        for piece in image.pieces
    ]
    assert any(states)
    shards.train(range(2, 4))
    again = store.image()
    for piece, old, state, new in zip(image.pieces, weights, states, again.pieces, strict=True):
        assert torch.equal(piece.weights, old)
        assert all(same(piece.state[key], value) for key, value in state.items())
        assert not torch.equal(new.weights, old)


def test_memory_is_used_again_once_released() -> None:
    shards = Shards(OPTIMIZERS["adam"])
    (store,) = shards.stores
    shards.train([0])
    first = store.image()
    second = store.image()
    assert second.frame is not first.frame
    second.release()
    third = store.image()
    assert third.frame is second.frame
    first.release()
    assert store.image().frame not in (first.frame, third.frame)


def test_memory_grows_with_the_state() -> None:
    shards = Shards(OPTIMIZERS["adam"])
    (store,) = shards.stores
    store.image().release()
    shards.train([0])
    other = Shards(OPTIMIZERS["adam"])
    image = store.image()
    other.stores[0].restore(image)
    assert_equal(shards, other)


def test_reserved_memory_is_what_the_next_image_takes() -> None:
    shards = Shards(OPTIMIZERS["adam"])
    (store,) = shards.stores
    small = store.image_bytes()
    shards.train([0])
    assert store.image_bytes() > 2 * small
    store.reserve(store.image_bytes())
    frame = store._frame
    image = store.image()
    assert image.frame is frame
    store.reserve(store.image_bytes())
    assert store._frame is not frame
    image.release()
    ready = store._frame
    store.reserve(small)
    assert store._frame is ready
