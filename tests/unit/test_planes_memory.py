"""A worker's region of shared memory, written by one side and mapped by the other."""

import os

import torch

from psrpc.planes.memory import Part, Region
from psrpc.store.layout import ParameterSpec, partition


def pair() -> tuple[Region, Region]:
    """The same memory as a server and as a worker have it."""
    specs = [ParameterSpec("weight", (3,), "float32", 0), ParameterSpec("half", (2,), "float16", 0)]
    (layout,) = partition(specs, 1, divisible=True)
    server = Region.create(layout)
    return server, Region(layout, os.dup(server.fd))


def flats(value: float) -> list[torch.Tensor]:
    """In the order of the segments."""
    return [torch.full((2,), value, dtype=torch.float16), torch.full((3,), value)]


def seen(region: Region, part: Part) -> list[list[float]]:
    return [flat.tolist() for flat in region.part(part)]


def test_what_is_written_is_what_the_tensors_hold_then() -> None:
    server, worker = pair()
    weights = flats(1.0)
    server.write(Part.WEIGHTS, weights)
    assert seen(worker, Part.WEIGHTS) == [[1.0] * 2, [1.0] * 3]
    for flat in weights:
        flat.fill_(2.0)
    server.write(Part.WEIGHTS, weights)
    assert seen(worker, Part.WEIGHTS) == [[2.0] * 2, [2.0] * 3]


def test_other_tensors_are_written_in_place_of_the_first() -> None:
    server, worker = pair()
    server.write(Part.WEIGHTS, flats(1.0))
    server.write(Part.AHEAD, flats(3.0))
    assert seen(worker, Part.WEIGHTS) == [[1.0] * 2, [1.0] * 3]
    assert seen(worker, Part.AHEAD) == [[3.0] * 2, [3.0] * 3]


def test_a_stretch_is_written_where_it_belongs() -> None:
    server, worker = pair()
    weights = [torch.tensor([1.0, 2.0]).half(), torch.tensor([3.0, 4.0, 5.0])]
    server.write_stretch(Part.WEIGHTS, weights, 0, 1, 2)
    server.write_stretch(Part.WEIGHTS, weights, 1, 0, 2)
    assert seen(worker, Part.WEIGHTS) == [[0.0, 2.0], [3.0, 4.0, 0.0]]
    server.close()
    server.write_stretch(Part.WEIGHTS, weights, 1, 2, 3)
    assert seen(worker, Part.WEIGHTS) == [[0.0, 2.0], [3.0, 4.0, 0.0]]


def test_nothing_is_written_when_it_is_closed() -> None:
    server, worker = pair()
    server.close()
    server.write(Part.WEIGHTS, flats(1.0))
    assert seen(worker, Part.WEIGHTS) == [[0.0] * 2, [0.0] * 3]


def test_a_region_that_moves_takes_along_what_it_holds_and_leaves_the_old_file() -> None:
    server, worker = pair()
    server.write(Part.WEIGHTS, flats(1.0))
    held = worker.part(Part.WEIGHTS)
    worker.move(-1)
    server.write(Part.WEIGHTS, flats(2.0))
    assert [flat.tolist() for flat in held] == [[1.0] * 2, [1.0] * 3], "nobody else's any more"
    held[1].fill_(3.0)
    other, _ = pair()
    worker.move(os.dup(other.fd))
    assert seen(other, Part.WEIGHTS) == [[1.0] * 2, [3.0] * 3]
    other.write(Part.WEIGHTS, flats(4.0))
    assert [flat.tolist() for flat in held] == [[4.0] * 2, [4.0] * 3], "where they were"


def test_a_part_that_is_first_asked_for_after_a_move() -> None:
    server, worker = pair()
    worker.move(-1)
    worker.part(Part.GRADIENTS)[1].fill_(1.0)
    worker.move(os.dup(server.fd))
    assert seen(server, Part.GRADIENTS) == [[0.0] * 2, [1.0] * 3]
