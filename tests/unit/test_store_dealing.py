"""Rows that are dealt out anew: the shards of another layout go on bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from psrpc.planes.giving import Given, Giver, Wanted, take
from psrpc.secret import Secret
from psrpc.store.dealing import Chunk, Dealt, chunks, common, deal
from psrpc.store.layout import Piece
from tests.unit.shards import OPTIMIZERS, Shards, assert_equal, gradients, two_groups

HOST = "127.0.0.1"
# Not elementwise, so that whole tensors go; the others are cut by rows.
MOVES = [(1, 2), (2, 3), (3, 1), (2, 5)]


def dealt_out(old: Shards, new: Shards) -> None:
    """Move everything, as servers do."""
    for store in new.stores:
        dealt = Dealt(store)
        for giver in old.stores:
            for chunk in chunks(giver, store.layout):
                dealt.take(chunk)
        dealt.finish(old.stores[0].options())


@pytest.mark.parametrize(("before", "after"), MOVES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_layout_goes_on_where_another_was(name: str, before: int, after: int) -> None:
    one, other = Shards(OPTIMIZERS[name], before), Shards(OPTIMIZERS[name], after)
    undisturbed = Shards(OPTIMIZERS[name], before)
    for shards in (one, undisturbed):
        shards.train(range(3))
    dealt_out(one, other)
    for shards in (other, undisturbed):
        shards.train(range(3, 6))
    assert_equal(other, undisturbed)


@pytest.mark.parametrize("name", ["sgd-momentum", "adam"])
def test_options_and_what_never_had_a_gradient_move_too(name: str) -> None:
    one, other, undisturbed = (Shards(OPTIMIZERS[name], n, two_groups) for n in (2, 3, 2))
    for shards in (one, undisturbed):
        shards.train([0], absent=["scale"], lr=0.5)
        shards.train([1], absent=["scale", "large"], lr=0.5)
    dealt_out(one, other)
    for shards in (other, undisturbed):
        shards.train([2], absent=["bias"], lr=0.5)
        shards.train([3, 4])
    assert_equal(other, undisturbed)


def test_rows_that_have_not_come_are_missed() -> None:
    old, new = Shards(OPTIMIZERS["adam"], 2), Shards(OPTIMIZERS["adam"], 1)
    dealt = Dealt(new.stores[0])
    for chunk in chunks(old.stores[0], new.layouts[0]):
        dealt.take(chunk)
    with pytest.raises(ValueError, match="some rows have not come"):
        dealt.finish(())


def test_rows_of_another_shard_are_refused() -> None:
    old, new = Shards(OPTIMIZERS["sgd"], 1), Shards(OPTIMIZERS["sgd"], 3)
    (large,) = [c for c in chunks(old.stores[0], old.layouts[0]) if c.weights.dim() == 2][:1]
    first, *_ = [store for store in new.stores if any(p.first_row for p in store.layout.pieces)]
    with pytest.raises(ValueError, match="are not this shard's"):
        Dealt(first).take(Chunk(large.parameter, 0, 1, large.weights[:1]))


def test_pieces_have_rows_in_common() -> None:
    def piece(first_row: int, rows: int, parameter: int = 0) -> Piece:
        return Piece(parameter, (rows, 2), first_row, 0, 0)

    assert common(piece(0, 50), piece(40, 50)) == (40, 50)
    assert common(piece(0, 50), piece(50, 50)) is None
    assert common(piece(0, 5), piece(0, 5, parameter=1)) is None
    assert common(Piece(0, (), 0, 0, 0), Piece(0, (), 0, 0, 7)) == (0, 1)


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_gradients_under_way_are_dealt_out_too(before: int, after: int) -> None:
    old, new = Shards(OPTIMIZERS["sgd"], before), Shards(OPTIMIZERS["sgd"], after)
    whole = gradients(old.blueprint, 1)
    held = [layout.empty() for layout in old.layouts]
    targets = [layout.empty() for layout in new.layouts]
    _fill(old, held, whole)
    deal(old.layouts, held, new.layouts, targets)
    wanted = [layout.empty() for layout in new.layouts]
    _fill(new, wanted, whole)
    for ours, theirs in zip(targets, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _fill(shards: Shards, flats: Sequence[Any], whole: Sequence[torch.Tensor]) -> None:
    for layout, shard in zip(shards.layouts, flats, strict=True):
        for piece, view in zip(layout.pieces, layout.views(shard), strict=True):
            view.copy_(piece.rows(whole[piece.parameter]))


def test_rows_go_over_a_stream_to_who_has_the_secret() -> None:
    secret = Secret(b"k" * 32)
    old, new = Shards(OPTIMIZERS["adam"], 1), Shards(OPTIMIZERS["adam"], 2)
    undisturbed = Shards(OPTIMIZERS["adam"], 1)
    for shards in (old, undisturbed):
        shards.train(range(2))
    asked: list[Wanted] = []

    def look(wanted: Wanted) -> Given:
        asked.append(wanted)
        rows = list(chunks(old.stores[0], new.layouts[wanted.shard]))
        return Given("mark", rows, old.stores[0].options(), b"decisions")

    giver = Giver(HOST, secret, look)
    giver.start()
    for shard, store in enumerate(new.stores):
        dealt = Dealt(store)
        wanted = Wanted(1, shard, 2, fresh=True)
        given = take(giver.address, secret, wanted, dealt, "server 0")
        assert (given.mark, given.decisions) == ("mark", b"decisions")
        dealt.finish(given.options)
    giver.close()
    assert [each.shard for each in asked] == [0, 1]
    for shards in (new, undisturbed):
        shards.train(range(2, 4))
    assert_equal(new, undisturbed)
