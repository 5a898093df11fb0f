"""Ranges of numbers, and the ledger that is made of them."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from psrpc.core.ledger import Ledger
from psrpc.core.ranges import Ranges
from psrpc.counts import Coverage
from psrpc.errors import ProtocolError
from psrpc.messages import Lease, Stream, StreamKind, UpdateKey


def ranges_of(*numbers: int) -> Ranges:
    ranges = Ranges()
    for number in numbers:
        ranges.add(number)
    return ranges


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((), []),
        ((3,), [(3, 4)]),
        ((3, 3), [(3, 4)]),
        ((1, 2, 3), [(1, 4)]),
        ((3, 2, 1), [(1, 4)]),
        ((1, 3), [(1, 2), (3, 4)]),
        ((1, 3, 2), [(1, 4)]),
        ((5, 1, 3, 2, 2), [(1, 4), (5, 6)]),
    ],
)
def test_ranges_join(numbers: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    ranges = ranges_of(*numbers)
    assert list(ranges) == expected
    assert len(ranges) == len(set(numbers))


def test_ranges_are_a_set() -> None:
    for seed in range(50):
        draw = random.Random(seed)
        numbers = [draw.randrange(60) for _ in range(draw.randrange(80))]
        ranges = ranges_of(*numbers)
        assert [n in ranges for n in range(-1, 61)] == [n in numbers for n in range(-1, 61)]
        assert len(ranges) == len(set(numbers))
        edges = [edge for low_high in ranges for edge in low_high]
        assert edges == sorted(set(edges)), "ranges are disjoint and do not touch"


def own_key(sequence: int, worker: int = 0, incarnation: int = 0) -> UpdateKey:
    return UpdateKey(Stream(StreamKind.WORKER, worker, incarnation), sequence)


def test_a_key_is_known_once_recorded() -> None:
    ledger = Ledger()
    assert own_key(0) not in ledger
    ledger.record(own_key(0))
    assert own_key(0) in ledger
    assert own_key(1) not in ledger
    assert own_key(0, worker=1) not in ledger
    assert own_key(0, incarnation=1) not in ledger


def test_a_closed_lease_is_known_and_small() -> None:
    ledger = Ledger()
    lease = Lease(epoch=2, index=5, start=0, stop=10, batch_size=3)
    for step in (1, 0, 3):
        ledger.record(lease.key(step))
    assert [lease.key(step) in ledger for step in range(4)] == [True, True, False, True]
    assert ledger.size == 2
    ledger.record(lease.key(2))
    assert all(lease.key(step) in ledger for step in range(4))
    assert ledger.size == 1
    other = Lease(epoch=2, index=6, start=10, stop=20, batch_size=3)
    assert other.key(0) not in ledger


def test_an_epoch_of_closed_leases_is_one_range() -> None:
    ledger = Ledger()
    leases = [Lease(0, index, 2 * index, 2 * index + 2, 1) for index in range(100)]
    random.Random(0).shuffle(leases)
    for lease in leases:
        for step in range(lease.steps):
            ledger.record(lease.key(step))
    assert ledger.size == 1


def test_streams_of_data_and_of_workers_differ() -> None:
    ledger = Ledger()
    lease = Lease(epoch=1, index=1, start=0, stop=1, batch_size=1)
    ledger.record(lease.key(0))
    assert own_key(0, worker=1, incarnation=1) not in ledger


@pytest.mark.parametrize(
    ("samples", "batch_size", "batches"),
    [(7, 3, [(10, 13), (13, 16), (16, 17)]), (3, 3, [(10, 13)]), (1, 8, [(10, 11)])],
)
def test_a_lease_is_cut_into_batches(
    samples: int, batch_size: int, batches: list[tuple[int, int]]
) -> None:
    lease = Lease(0, 0, 10, 10 + samples, batch_size)
    assert [lease.batch(step) for step in range(lease.steps)] == batches
    assert {lease.key(step).total for step in range(lease.steps)} == {len(batches)}


def test_coverage_tells_which_batches_of_which_lease_are_there() -> None:
    ledger = Ledger()
    leases = [Lease(1, index, 6 * index, 6 * index + 6, 2) for index in range(4)]
    for lease in (leases[0], leases[1], leases[3]):
        for step in range(3):
            ledger.record(lease.key(step))
    for step in (0, 2):
        ledger.record(leases[2].key(step))
    ledger.record(Lease(0, 7, 0, 6, 2).key(1))
    ledger.record(own_key(0))
    assert ledger.coverage() == (
        Coverage(0, (), ((7, ((1, 2),)),)),
        Coverage(1, ((0, 2), (3, 4)), ((2, ((0, 1), (2, 3))),)),
    )


def test_what_is_recorded_twice_is_counted_by_lease() -> None:
    ledger = Ledger()
    lease = Lease(1, 4, 0, 6, 2)
    for step in (0, 0, 1, 2, 2, 2):
        ledger.record(lease.key(step))
    ledger.record(own_key(0))
    ledger.record(own_key(0))
    assert ledger.coverage() == (Coverage(1, ((4, 5),), (), ((4, 3),)),)
    assert ledger.size == 2


def test_an_empty_ledger_covers_nothing() -> None:
    assert Ledger().coverage() == ()


def filled_ledger(seed: int) -> tuple[Ledger, list[UpdateKey]]:
    """A ledger with half of many keys, and all of them."""
    draw = random.Random(seed)
    keys = [own_key(n, worker=w, incarnation=i) for n in range(6) for w in (0, 3) for i in (0, 1)]
    for epoch in (0, 2):
        leases = [Lease(epoch, index, 4 * index, 4 * index + 4, 2) for index in range(8)]
        keys += [lease.key(step) for lease in leases for step in range(lease.steps)]
    draw.shuffle(keys)
    ledger = Ledger()
    for key in keys[: len(keys) // 2]:
        ledger.record(key)
    return ledger, keys


@pytest.mark.parametrize("seed", range(5))
def test_a_ledger_goes_through_json_and_goes_on(seed: int) -> None:
    ledger, keys = filled_ledger(seed)
    text = json.dumps(ledger.to_json())
    restored = Ledger.from_json(json.loads(text))
    assert [key in restored for key in keys] == [key in ledger for key in keys]
    assert restored.size == ledger.size
    for key in keys:
        for each in (ledger, restored):
            if key not in each:
                each.record(key)
    assert restored.to_json() == ledger.to_json()
    assert len(text) < 2_000


def test_a_digest_is_of_what_may_come_again() -> None:
    lease = Lease(0, 1, 8, 20, 2)
    one, other = Ledger(), Ledger()
    for ledger in (one, other):
        ledger.record(own_key(0, worker=3))
        ledger.record(lease.key(0))
    one.record(own_key(0, worker=4))
    assert one.digest((3,), ()) == other.digest((3,), ())
    assert one.digest((3, 4), ()) != other.digest((3, 4), ())
    other.record(own_key(1, worker=3))
    assert one.digest((3,), ()) != other.digest((3,), ())
    assert one.digest((), ()) == other.digest((), ())
    one.record(lease.key(1))
    one.record(lease.key(2))
    given_up = replace(lease, first_step=1, until=4)
    assert one.digest((), ()) != other.digest((), ())
    assert one.digest((), [given_up]) == other.digest((), [given_up])
    for step in range(3, 6):
        one.record(lease.key(step))
    assert one.digest((), [given_up]) != other.digest((), [given_up]), "the last steps count"
    rest = replace(given_up, until=0)
    assert one.digest((), [rest]) == other.digest((), [rest]), "it is closed on one"
    assert (lease.key(5) in one, lease.key(5) in other) == (True, False), "they stay as they are"


def test_what_workers_have_made_of_their_own_data_is_dropped_with_them() -> None:
    ledger, _ = filled_ledger(0)
    assert ledger.only_of((0, 3)).to_json() == ledger.to_json()
    kept = ledger.only_of(()).to_json()
    assert [kind for kind, *_ in kept["open"]] == ["lease"] * len(kept["open"])
    assert kept["closed"] == ledger.to_json()["closed"]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"open": []},
        {"open": [["nobody", 0, 0, []]], "closed": []},
        {"open": [], "closed": [[0, [[3, 2]]]]},
        {"open": [], "closed": [[0, [[0, 2], [1, 4]]]]},
        {"open": [], "closed": [["0", [[0, 2]]]]},
        {"open": [], "closed": [[0, 7]]},
        {"open": [[1]], "closed": []},
    ],
    ids=str,
)
def test_what_is_no_record_of_a_ledger_is_refused(record: dict[str, list[list[object]]]) -> None:
    with pytest.raises(ProtocolError, match="no record of a ledger"):
        Ledger.from_json(record)


def test_ranges_are_made_of_what_they_gave() -> None:
    ranges = ranges_of(1, 2, 5)
    again = Ranges(ranges)
    again.add(3)
    assert list(again) == [(1, 4), (5, 6)]
    assert list(ranges) == [(1, 3), (5, 6)]
    with pytest.raises(ValueError, match="does not follow"):
        Ranges([(0, 2), (2, 3)])
