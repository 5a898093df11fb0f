"""The lease book: sizes, what is given back, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from psrpc.core.leases import MAX_BATCHES, LeaseBook
from psrpc.core.ledger import Ledger
from psrpc.counts import EpochLeases
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


def export(book: LeaseBook) -> list[tuple[int, int, int]]:
    """Of each epoch: its number, the samples done, the samples given up."""
    return [(epoch.epoch, epoch.done, epoch.skipped) for epoch in book.export()]


def done(steps: int) -> Callable[[Lease], int]:
    """Of the lease that was worked on `steps` updates are in the weights, of others none."""
    return lambda lease: steps if lease.index == 0 else 0


def test_an_epoch_closes_with_its_last_lease() -> None:
    book = LeaseBook()
    leases = take_all(book, 10, 2, 1)
    for lease in leases[:-1]:
        book.finish(0, (lease.id,))
    assert not book.closed(0)
    book.finish(0, (leases[-1].id,))
    assert book.closed(0)
    assert book.export() == (EpochLeases(0, 10, 10, 0, 2, tuple(x.stop for x in leases)),)
    assert not book.closed(1)


def test_only_the_holder_finishes_a_lease_and_only_once() -> None:
    book = LeaseBook()
    lease = book.acquire(0, 0, 10, 1, 1)
    assert lease is not None
    book.finish(1, (lease.id,))
    assert export(book) == [(0, 0, 0)]
    book.finish(0, (lease.id, lease.id, (0, 77, 0)))
    book.finish(0, (lease.id,))
    book.finish(0, ((5, lease.index, 0),))
    assert export(book) == [(0, lease.stop - lease.start, 0)]


def test_leases_of_two_epochs_are_finished_with_one_word() -> None:
    book = LeaseBook()
    leases = [book.acquire(0, epoch, 1, 1, 1) for epoch in (0, 1)]
    book.finish(0, tuple(lease.id for lease in leases if lease))
    assert export(book) == [(0, 1, 0), (1, 1, 0)]


def test_what_is_given_back_goes_on_where_it_was_left() -> None:
    book = LeaseBook()
    lease = book.acquire(0, 0, 100, 5, 2)
    assert lease is not None
    (freed,) = book.give_back(0, done(2))
    again = book.acquire(1, 0, 100, 5, 2)
    assert again == freed == replace(lease, first_step=2, again=True)
    book.give_back(1, done(0))
    third = book.acquire(2, 0, 100, 5, 2)
    assert third == again, "what the first has done stays done"
    book.finish(1, (lease.id,))
    assert export(book) == [(0, 10, 0)], "it is no longer worker 1's"
    book.finish(2, (lease.id,))
    assert export(book) == [(0, 25, 0)]


def test_what_is_given_back_and_done_is_finished() -> None:
    book = LeaseBook()
    lease = book.acquire(0, 0, 100, 5, 2)
    assert lease is not None
    assert book.give_back(0, done(lease.steps)) == []
    assert export(book) == [(0, 25, 0)]
    following = book.acquire(1, 0, 100, 5, 2)
    assert following is not None
    assert (following.index, following.again) == (1, False)


def test_of_a_lease_fetched_ahead_nothing_is_done() -> None:
    book = LeaseBook()
    current, ahead = (book.acquire(0, 0, 100, 5, 1) for _ in range(2))
    assert current is not None
    assert ahead is not None
    freed = book.give_back(0, done(4))
    assert [lease.id for lease in freed] == [current.id, ahead.id], "as they were worked on"
    returned = {lease.index: lease for lease in take_all(book, 100, 5, 1)}
    assert returned[current.index].first_step == 4
    assert returned[ahead.index].first_step == 0


def test_others_leases_stay_theirs() -> None:
    book = LeaseBook()
    mine, theirs = book.acquire(0, 0, 10, 1, 2), book.acquire(1, 0, 10, 1, 2)
    assert mine is not None
    assert theirs is not None
    book.give_back(0, done(1))
    indices = [lease.index for lease in take_all(book, 10, 1, 2)]
    assert mine.index in indices
    assert theirs.index not in indices


def test_what_the_dead_leave_comes_first_the_earliest_epoch_before_all() -> None:
    book = LeaseBook()
    early, late = book.acquire(0, 0, 4, 1, 2), book.acquire(0, 1, 4, 1, 2)
    book.give_back(0, done(0))
    assert early is not None
    assert late is not None
    taken = [book.acquire(1, 1, 4, 1, 2) for _ in range(3)]
    assert [lease.id for lease in taken if lease] == [early.id, late.id, (1, 1, 0)]


def test_what_the_dead_leave_is_not_done_before_its_epoch() -> None:
    book = LeaseBook()
    book.acquire(0, 1, 4, 1, 2)
    book.give_back(0, done(0))
    taken = book.acquire(1, 0, 4, 1, 2)
    assert taken is not None
    assert taken.epoch == 0


def test_a_worker_that_goes_on_gives_back_what_it_asked_for_before() -> None:
    book = LeaseBook()
    early, late = book.acquire(0, 0, 4, 1, 2), book.acquire(0, 1, 4, 1, 2)
    assert early is not None
    assert late is not None
    assert [lease.id for lease in book.give_back(0, done(0), before=1)] == [early.id]
    taken = [book.acquire(1, 1, 4, 1, 2) for _ in range(2)]
    assert [lease.id for lease in taken if lease] == [(1, 1, 0), (1, 2, 0)]
    again = book.acquire(1, 0, 4, 1, 2)
    assert again is not None
    assert again.id == early.id, "it is done within its own epoch only"


def test_a_lease_of_the_dead_is_its_holders_in_the_epoch_in_which_it_took_it() -> None:
    """A holder that is in epoch 1 does not break off epoch 0 by doing a part of it."""
    book = LeaseBook()
    lease = book.acquire(0, 0, 1, 1, 1)
    assert lease is not None
    book.give_back(0, done(0))
    again = book.acquire(1, 1, 4, 1, 1)
    assert again is not None
    assert again.id == lease.id
    assert book.give_back(1, done(0), before=1) == []
    book.finish(1, (lease.id,))
    assert book.closed(0)


def test_what_is_to_be_had_is_known_beforehand() -> None:
    book = LeaseBook()
    assert (book.available(0), book.begun(0)) == (True, False)
    lease = book.acquire(0, 0, 1, 1, 1)
    assert lease is not None
    assert (book.available(0), book.begun(0)) == (False, True)
    assert (book.available(1), book.begun(1)) == (True, False)
    book.give_back(0, done(0))
    assert (book.available(0), book.begun(1)) == (True, True)


def test_deaths_are_counted_until_a_lease_is_done() -> None:
    book = LeaseBook()
    counts = []
    for worker in range(2):
        lease = book.acquire(worker, 0, 1, 1, 1)
        assert lease is not None
        book.give_back(worker, done(0))
        counts.append(book.died_of(lease, worker))
    assert counts == [1, 2]
    last = book.acquire(2, 0, 1, 1, 1)
    assert last is not None
    book.finish(2, (last.id,))
    assert book.died_of(last, 2) == 1


def test_who_comes_back_was_not_killed() -> None:
    book = LeaseBook()
    lease = book.acquire(0, 0, 64, 1, 1)
    assert lease is not None
    assert [book.died_of(lease, process) for process in (1, 2)] == [1, 2]
    book.lived(1)
    book.lived(1)
    book.lived(7)
    assert book.died_of(lease, 3) == 2
    assert book.died_of(lease, 1) == 3


def test_deaths_count_in_a_row_only_at_the_same_batch_or_the_next() -> None:
    """Kills that come now and then, each further on in a lease, are not its samples' fault."""
    book = LeaseBook()
    lease = book.acquire(0, 0, 64, 1, 1)
    assert lease is not None
    steps = [0, 0, 1, 3, 4, 6, 9, 9]
    counts = [book.died_of(replace(lease, first_step=step), n) for n, step in enumerate(steps)]
    assert counts == [1, 2, 3, 1, 2, 1, 1, 2]


def test_what_is_given_up_is_what_was_left_of_it() -> None:
    book = LeaseBook()
    lease = book.acquire(0, 0, 10, 3, 1)
    assert lease is not None
    (freed,) = book.give_back(0, done(1))
    book.skip(freed)
    assert export(book) == [(0, 3, lease.stop - 3)]
    rest = take_all(book, 10, 3, 1)
    assert lease.id not in [each.id for each in rest]
    book.finish(0, tuple(each.id for each in rest))
    assert book.closed(0)


def test_what_nobody_has_again_and_what_somebody_may() -> None:
    book = LeaseBook()
    first, second = (book.acquire(worker, 0, 20, 1, 1) for worker in (0, 1))
    assert first is not None
    assert second is not None
    assert (book.skipped, book.unsettled) == ((), ())
    (freed,) = book.give_back(0, done(4))
    book.skip(freed)
    given_up = replace(first, first_step=4, again=True, until=first.steps)
    assert book.skipped == book.unsettled == (given_up,)
    (left,) = book.give_back(1, done(second.first_step + 1))
    assert book.skipped == (given_up,)
    assert book.unsettled == (given_up, left)
    assert book.acquire(2, 0, 20, 1, 1) == left
    assert book.unsettled == (given_up, left), "it is not made again yet"
    book.finish(2, (left.id,))
    assert book.unsettled == (given_up,)


def test_what_is_left_of_an_epoch_that_was_broken_off_may_be_given_up() -> None:
    book = LeaseBook()
    for worker, epoch in enumerate((0, 0, 1)):
        assert book.acquire(worker, epoch, 20, 1, 1) is not None
    book.give_back(0, done(2))
    book.skip_broken_off()
    assert book.skipped == (), "others have that"
    book.give_back(1, done(0), before=1)
    book.give_back(2, done(0))
    book.skip_broken_off()
    assert {lease.epoch for lease in book.skipped} == {0}
    assert len(book.skipped) == 2
    again = book.acquire(3, 0, 20, 1, 1)
    assert again is not None
    assert not again.again
    (left,) = (lease for lease in book.unsettled if lease not in book.skipped)
    assert left.epoch == 1


# After a checkpoint.


def resumed(book: LeaseBook, applied: dict[int, int]) -> LeaseBook:
    """The book that goes on from `book`'s record, with so many updates of each lease."""
    ledger, start = Ledger(), 0
    (record,) = book.export()
    for index, stop in enumerate(record.stops):
        lease = Lease(0, index, start, stop, record.batch_size)
        start = stop
        for step in range(applied.get(index, 0)):
            ledger.record(lease.key(step))
    again = LeaseBook()
    again.restore([record], [ledger])
    return again


def test_what_was_given_up_stays_given_up() -> None:
    book = LeaseBook()
    lease = book.acquire(0, 0, 100, 5, 1)
    assert lease is not None
    assert lease.steps == 10
    (freed,) = book.give_back(0, done(4))
    book.skip(freed)
    again = resumed(book, {0: 4})
    assert export(again) == export(book) == [(0, 20, 30)]
    assert again.export() == book.export()
    assert lease.id not in [each.id for each in take_all(again, 100, 5, 1)]


def test_what_was_given_up_after_the_cut_is_given_up_and_the_rest_done_again() -> None:
    book = LeaseBook()
    lease = book.acquire(0, 0, 20, 1, 1)
    assert lease is not None
    (freed,) = book.give_back(0, done(4))
    book.skip(freed)
    again = resumed(book, {0: 2})
    assert export(again) == [(0, 2, lease.stop - 4)]
    parts = [each for each in take_all(again, 20, 1, 1) if each.index == 0]
    assert sorted((each.first_step, each.end) for each in parts) == [(2, 3), (3, 4)]
    again.finish(0, [each.id for each in parts])
    assert export(again) == [(0, 4, lease.stop - 4)]


def test_an_epoch_that_was_broken_off_stays_so() -> None:
    book = LeaseBook()
    assert book.acquire(0, 0, 20, 1, 1) is not None
    book.give_back(0, done(0), before=1)
    again = resumed(book, {})
    assert again.export()[0].broken_off
    following = again.acquire(0, 1, 20, 1, 1)
    assert following is not None
    assert following.epoch == 1


def test_after_a_checkpoint_what_is_left_comes_in_the_epochs_order() -> None:
    """Also where several leases were begun, or a batch in one was given up."""
    record = EpochLeases(0, 24, 0, 0, 2, (8, 16, 20), given_up=((1, 1, 2),))
    ledger = Ledger()
    ledger.record(Lease(0, 0, 0, 8, 2).key(0))
    book = LeaseBook()
    book.restore([record], [ledger])
    taken = []
    while (lease := book.acquire(0, 0, 24, 2, 1)) is not None:
        taken += [lease.batch(step)[0] for step in range(lease.first_step, lease.end)]
    assert taken == [2, 4, 6, 8, 12, 14, 16, 18, 20, 22]


def test_a_book_that_goes_back_hands_out_what_earlier_epochs_lack_first() -> None:
    """Workers are in epoch 2; the checkpoint is of epoch 0's middle."""
    book = LeaseBook()
    book.goes_back = True
    ledger = Ledger()
    book.restore([EpochLeases(0, 6, 0, 0, 2, (4,), False, ())], [ledger])
    leases = []
    while (lease := book.acquire(0, 2, 6, 2, 1)) is not None:
        leases.append((lease.epoch, lease.start + 2 * lease.first_step, lease.stop))
        assert not book.closed(2)
        book.finish(0, (lease.id,))
    assert leases == [(0, 0, 4), (0, 4, 6), (1, 0, 2), (1, 2, 4), (1, 4, 6), *leases[5:]]
    assert [epoch for epoch, *_ in leases[5:]] == [2, 2, 2]
    assert book.closed(2)
    assert book.unfinished == []


def test_an_epoch_is_not_over_before_what_went_back_is() -> None:
    book = LeaseBook()
    book.goes_back = True
    first = book.acquire(0, 1, 1, 1, 1)
    second = book.acquire(1, 1, 1, 1, 1)
    assert first is not None
    assert second is not None
    assert (first.epoch, second.epoch) == (0, 1)
    book.finish(1, (second.id,))
    assert not book.closed(1)
    assert book.unfinished == [0]
    assert book.begun(1), "a synchronous worker that comes need not wait for all"
    book.finish(0, (first.id,))
    assert book.closed(1)
