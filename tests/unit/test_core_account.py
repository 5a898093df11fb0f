"""The final account: samples that are lost, doubled or skipped, and epochs that are not over."""

from __future__ import annotations

from psrpc.core.account import account
from psrpc.core.leases import LeaseBook
from psrpc.core.ledger import Ledger
from psrpc.core.shard import ShardCore
from psrpc.counts import Coverage, EpochAccount, EpochLeases
from psrpc.messages import Lease, StatsReply
from psrpc.modes import Asynchronous
from psrpc.report import summarize

EPOCH = EpochLeases(0, samples=10, done=10, skipped=0, batch_size=2, stops=(5, 9, 10))
FULL = Coverage(0, closed=((0, 3),))


def of_one(epoch: EpochLeases, *shards: Coverage) -> EpochAccount:
    (found,) = account([epoch], [[shard] for shard in shards])
    return found


def test_what_is_there_once_is_neither_lost_nor_doubled() -> None:
    assert of_one(EPOCH, FULL, FULL) == EpochAccount(0, 10, 0, 0, 0, True)


def test_open_leases_lack_what_their_marks_leave_out() -> None:
    """Lease 0 is of batches 0-2, 2-4, 4-5: what is short in it is its last batch."""
    assert of_one(EPOCH, Coverage(0, ((1, 3),), ((0, ((0, 2),)),))).lost == 1
    assert of_one(EPOCH, Coverage(0, ((1, 3),), ((0, ((1, 3),)),))).lost == 2
    assert of_one(EPOCH, Coverage(0, ((0, 1), (2, 3)), ((1, ((0, 1),)),))).lost == 2


def test_a_lease_that_no_shard_knows_is_lost() -> None:
    assert of_one(EPOCH, Coverage(0, ((0, 2),))).lost == 1
    assert of_one(EPOCH).lost == 0, "there is no shard to lack it"
    assert of_one(EPOCH, Coverage(1, ((0, 3),))).lost == 10, "another epoch's do not count"


def test_a_sample_is_lost_that_any_shard_lacks_and_counted_once() -> None:
    first = Coverage(0, ((0, 2),))
    second = Coverage(0, ((0, 1), (2, 3)), ((1, ((0, 1),)),))
    assert of_one(EPOCH, first, second).lost == 1 + 2
    assert of_one(EPOCH, first, first).lost == 1


def test_what_came_twice_is_doubled() -> None:
    twice = Coverage(0, ((0, 3),), (), ((0, 1), (2, 2)))
    assert of_one(EPOCH, FULL, twice).doubled == 3 * 2
    assert of_one(EPOCH, twice, twice).doubled == 3 * 2, "the worst shard's, not all shards'"


def test_what_was_given_up_is_skipped_and_not_lost() -> None:
    skipping = EpochLeases(0, 10, done=7, skipped=3, batch_size=2, stops=(5, 9, 10))
    there = Coverage(0, ((1, 3),), ((0, ((0, 1),)),))
    assert of_one(skipping, there) == EpochAccount(0, 10, 0, 0, skipped=3, over=True)
    less = Coverage(0, ((1, 2),), ((0, ((0, 1),)),))
    assert of_one(skipping, there, less).lost == 1


def test_what_was_given_up_is_named_by_its_places_in_the_order() -> None:
    spans = ((1, 1, 2), (0, 1, 3))
    skipping = EpochLeases(0, 10, 5, 5, batch_size=2, stops=(5, 9, 10), given_up=spans)
    assert of_one(skipping).skipped_at == ((2, 5), (7, 9))


def test_of_an_epoch_that_is_not_over_nothing_is_lost_but_it_says_so() -> None:
    broken = EpochLeases(0, 10, done=5, skipped=0, batch_size=2, stops=(5, 9))
    twice = Coverage(0, ((0, 1),), (), ((0, 1),))
    assert of_one(broken, twice) == EpochAccount(0, 10, 0, 2, 0, over=False)


def test_epochs_are_accounted_for_one_by_one() -> None:
    second = EpochLeases(1, 10, 10, 0, 2, (10,))
    shards = [[FULL, Coverage(1, ((0, 1),))], [FULL]]
    assert [(a.epoch, a.lost) for a in account([EPOCH, second], shards)] == [(0, 0), (1, 10)]


def test_books_and_ledgers_as_they_are_kept_agree() -> None:
    book, ledgers = LeaseBook(), [Ledger(), Ledger()]
    missed: Lease | None = None
    while (lease := book.acquire(0, 0, 101, 4, 2)) is not None:
        for step in range(lease.steps):
            ledgers[0].record(lease.key(step))
            if step or lease.index != 3:
                ledgers[1].record(lease.key(step))
            else:
                missed = lease
        book.finish(0, [lease.id])
    assert missed is not None
    (found,) = account(book.export(), [ledger.coverage() for ledger in ledgers])
    assert (found.samples, found.lost, found.doubled, found.over) == (101, 4, 0, True)
    ledgers[1].record(missed.key(0))
    (found,) = account(book.export(), [ledger.coverage() for ledger in ledgers])
    assert found.lost == 0


def test_a_report_says_that_samples_are_lost() -> None:
    nothing = ShardCore(Asynchronous()).stats()
    report = summarize([StatsReply(nothing, leases=(EpochLeases(0, 4, 4, 0, 2, (4,)),))])
    assert not report.samples_counted_once
    assert report.samples_lost == 4
