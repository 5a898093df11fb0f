"""The lease book: sizes, what is given back, and what is counted."""

from __future__ import annotations

import pytest

from psrpc.core.leases import MAX_BATCHES, LeaseBook
from psrpc.errors import UsageError
from psrpc.messages import Lease


def take_all(book: LeaseBook, samples: int, batch_size: int, workers: int) -> list[Lease]:
    leases = []
    while (lease := book.acquire(0, 0, samples, batch_size, workers)) is not None:
        leases.append(lease)
    return leases


@pytest.mark.parametrize("samples", [1, 7, 64, 1000, 60_000])
@pytest.mark.parametrize("batch_size", [1, 3, 128])
@pytest.mark.parametrize("workers", [1, 2, 9])
def test_leases_cover_every_sample_once(samples: int, batch_size: int, workers: int) -> None:
    leases = take_all(LeaseBook(), samples, batch_size, workers)
    edges = [(lease.start, lease.stop) for lease in leases]
    assert edges[0][0] == 0
    assert edges[-1][1] == samples
    assert [stop for _, stop in edges[:-1]] == [start for start, _ in edges[1:]]
    assert [lease.index for lease in leases] == list(range(len(leases)))
    assert all(lease.stop - lease.start == batch_size * lease.steps for lease in leases[:-1])


def test_leases_get_smaller() -> None:
    steps = [lease.steps for lease in take_all(LeaseBook(), 1000, 1, 4)]
    assert steps[0] == MAX_BATCHES
    assert steps == sorted(steps, reverse=True)
    assert steps[-4:] == [1, 1, 1, 1]


def test_no_samples_no_lease() -> None:
    book = LeaseBook()
    assert book.acquire(0, 0, 0, 8, 1) is None
    assert book.closed(0)


def test_workers_must_agree_on_the_dataset() -> None:
    book = LeaseBook()
    book.acquire(0, 3, 100, 10, 2)
    with pytest.raises(UsageError, match=r"worker 1 counts 90 samples in epoch 3.* counted 100"):
        book.acquire(1, 3, 90, 10, 2)
    assert book.acquire(1, 4, 90, 10, 2) is not None, "another epoch, another dataset"


def test_an_epoch_closes_with_its_last_lease() -> None:
    book = LeaseBook()
    leases = take_all(book, 10, 2, 1)
    for lease in leases[:-1]:
        book.finish(0, 0, (lease.index,))
    assert not book.closed(0)
    book.finish(0, 0, (leases[-1].index,))
    assert book.closed(0)
    assert book.totals() == ((0, 10),)
    assert not book.closed(1)


def test_only_the_holder_finishes_a_lease_and_only_once() -> None:
    book = LeaseBook()
    lease = book.acquire(0, 0, 10, 1, 1)
    assert lease is not None
    book.finish(1, 0, (lease.index,))
    assert book.totals() == ((0, 0),)
    book.finish(0, 0, (lease.index, lease.index, 77))
    book.finish(0, 0, (lease.index,))
    book.finish(0, 5, (lease.index,))
    assert book.totals() == ((0, lease.stop - lease.start),)


def test_what_is_given_back_goes_on_where_it_was_left() -> None:
    book = LeaseBook()
    lease = book.acquire(0, 0, 100, 5, 2)
    assert lease is not None
    book.give_back(0, steps_done=2)
    again = book.acquire(1, 0, 100, 5, 2)
    assert again == Lease(0, lease.index, lease.start, lease.stop, 5, first_step=2)
    book.give_back(1, steps_done=0)
    third = book.acquire(2, 0, 100, 5, 2)
    assert third == again, "what the first has done stays done"
    book.finish(1, 0, (lease.index,))
    assert book.totals() == ((0, 0),), "it is no longer worker 1's"
    book.finish(2, 0, (lease.index,))
    assert book.totals() == ((0, 25),)


def test_of_a_lease_fetched_ahead_nothing_is_done() -> None:
    book = LeaseBook()
    current, ahead = (book.acquire(0, 0, 100, 5, 1) for _ in range(2))
    assert current is not None
    assert ahead is not None
    book.give_back(0, steps_done=4)
    returned = {lease.index: lease for lease in take_all(book, 100, 5, 1)}
    assert returned[current.index].first_step == 4
    assert returned[ahead.index].first_step == 0


def test_others_leases_stay_theirs() -> None:
    book = LeaseBook()
    mine, theirs = book.acquire(0, 0, 10, 1, 2), book.acquire(1, 0, 10, 1, 2)
    assert mine is not None
    assert theirs is not None
    book.give_back(0, steps_done=1)
    indices = [lease.index for lease in take_all(book, 10, 1, 2)]
    assert mine.index in indices
    assert theirs.index not in indices
