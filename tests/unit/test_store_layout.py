"""How parameters are laid out over servers: everything once, evenly, alike on every node."""

from __future__ import annotations

from random import Random

import pytest

from psrpc.store.layout import ParameterSpec, ShardLayout, partition


def spec(*shape: int, name: str = "w", dtype: str = "float32", group: int = 0) -> ParameterSpec:
    return ParameterSpec(name, shape, dtype, group)


def random_specs(random: Random) -> list[ParameterSpec]:
    shapes = [(), (0, 3), (1,), (10,), (300,), (1, 64), (100, 7), (1000, 64), (64, 3, 3)]
    return [
        spec(
            *random.choice(shapes),
            name=f"p{number}",
            dtype=random.choice(["float32", "float32", "bfloat16", "float64"]),
            group=random.randrange(3),
        )
        for number in range(random.randint(1, 12))
    ]


def loads_of(layouts: tuple[ShardLayout, ...], specs: list[ParameterSpec]) -> list[int]:
    sizes = []
    for layout in layouts:
        pieces = ((piece, specs[piece.parameter]) for piece in layout.pieces)
        sizes.append(
            sum(piece.numel * s.size_bytes // s.numel for piece, s in pieces if piece.numel)
        )
    return sizes


@pytest.mark.parametrize("divisible", [True, False])
@pytest.mark.parametrize("seed", range(100))
def test_every_element_has_one_place(seed: int, divisible: bool) -> None:
    random = Random(seed)
    specs, servers = random_specs(random), random.randint(1, 8)
    layouts = partition(specs, servers, divisible=divisible)
    assert len(layouts) == servers
    for number, whole in enumerate(specs):
        pieces = [p for layout in layouts for p in layout.pieces if p.parameter == number]
        pieces.sort(key=lambda piece: piece.first_row)
        if len(pieces) == 1:
            assert (pieces[0].shape, pieces[0].first_row) == (whole.shape, 0)
            continue
        assert divisible
        row = 0
        for piece in pieces:
            assert piece.first_row == row
            assert piece.shape[1:] == whole.shape[1:]
            row += piece.shape[0]
        assert row == whole.shape[0]


@pytest.mark.parametrize("seed", range(100))
def test_pieces_fill_their_segments_without_gap_or_overlap(seed: int) -> None:
    specs = random_specs(Random(seed))
    for layout in partition(specs, 3, divisible=True):
        for number, segment in enumerate(layout.segments):
            end = 0
            for piece in (p for p in layout.pieces if p.segment == number):
                whole = specs[piece.parameter]
                assert (whole.group, whole.dtype) == (segment.group, segment.dtype)
                assert piece.offset == end
                end += piece.numel
            assert end == segment.numel


@pytest.mark.parametrize("servers", range(1, 9))
@pytest.mark.parametrize("shape", [(1000,), (999, 7), (50_000, 64)])
def test_one_large_tensor_is_shared_evenly(shape: tuple[int, ...], servers: int) -> None:
    specs = [spec(*shape), spec(5, name="small")]
    loads = loads_of(partition(specs, servers, divisible=True), specs)
    assert max(loads) <= 1.02 * sum(loads) / servers


@pytest.mark.parametrize("seed", range(100))
def test_no_server_keeps_much_more_than_a_fair_share(seed: int) -> None:
    """Whole tensors are at most one fair share; the fullest server has less than two."""
    random = Random(seed)
    specs = [
        spec(random.choice([100, 1000, 5000]), random.choice([1, 3, 64]), name=f"p{number}")
        for number in range(random.randint(1, 9))
    ]
    servers = random.randint(2, 8)
    loads = loads_of(partition(specs, servers, divisible=True), specs)
    assert max(loads) < 1.6 * sum(loads) / servers


def test_tensors_stay_whole_where_they_must() -> None:
    specs = [spec(1000, 64), spec(10, name="b")]
    layouts = partition(specs, 4, divisible=False)
    assert sorted(len(layout.pieces) for layout in layouts) == [0, 0, 1, 1]
    empty = next(layout for layout in layouts if not layout.pieces)
    assert empty.segments == ()
    assert empty.empty() == []


def test_all_nodes_lay_out_alike() -> None:
    specs = random_specs(Random(5))
    assert partition(specs, 3, divisible=True) == partition(list(specs), 3, divisible=True)


def test_cut_tensors_leave_room_for_whole_ones() -> None:
    """Two tensors are cut to fill up shard after shard, so that the third has one for itself."""
    specs = [spec(1000, 500, name="a"), spec(1000, 500, name="b"), spec(5000, 64, name="c")]
    loads = loads_of(partition(specs, 4, divisible=True), specs)
    assert max(loads) <= 1.02 * sum(loads) / 4
