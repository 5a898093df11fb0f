"""A worker's bookkeeping: clocks, keys, words and who was told what."""

from __future__ import annotations

from psrpc.core.progress import Progress
from psrpc.counts import WorkerStats
from psrpc.messages import Granted, Lease, Stream, StreamKind, UpdateKey, View

LEASE = Lease(epoch=0, index=4, start=0, stop=6, batch_size=2)


def test_a_lease_is_worked_off() -> None:
    progress = Progress(1)
    progress.begin(LEASE)
    for step in range(3):
        assert progress.next_key() == LEASE.key(step)
        assert progress.lease is LEASE
        progress.finished()
    assert progress.lease is None
    assert progress.clock == 3
    assert progress.acquire(6, 2).done == ((0, 4, 0),)
    assert progress.acquire(6, 2).done == ()


def test_a_lease_begins_where_another_worker_left_it() -> None:
    progress = Progress(1)
    progress.begin(Lease(0, 4, 0, 6, 2, first_step=2))
    assert progress.next_key() == LEASE.key(2)
    progress.finished()
    assert progress.take_done() == ((0, 4, 0),)


def test_without_a_lease_updates_are_numbered_by_the_worker() -> None:
    progress = Progress(3, incarnation=2)
    stream = Stream(StreamKind.WORKER, 3, 2)
    for sequence in range(3):
        assert progress.next_key() == UpdateKey(stream, sequence)
        progress.finished()
    assert progress.clock == 3


def test_own_updates_between_leased_ones_do_not_use_up_the_lease() -> None:
    progress = Progress(3)
    progress.begin(LEASE)
    own = progress.own_key()
    progress.finished(own)
    assert progress.next_key() == LEASE.key(0)
    assert progress.own_key().sequence == own.sequence + 1
    assert progress.clock == 1


def test_a_batch_without_a_step_goes_into_the_next_update() -> None:
    progress = Progress(3)
    progress.begin(LEASE)
    progress.fold()
    assert progress.folded == (LEASE.key(0),)
    assert progress.next_key() == LEASE.key(1)
    assert progress.clock == 0
    progress.finished()
    assert progress.folded == ()
    progress.fold()
    assert progress.folded == (LEASE.key(2),)
    assert progress.take_done() == (), "its last batch is in no update yet"
    following = Lease(epoch=0, index=5, start=6, stop=8, batch_size=2)
    progress.begin(following)
    progress.finished()
    assert progress.take_done() == ((0, 4, 0), (0, 5, 0))


def test_words_are_numbered() -> None:
    progress = Progress(0)
    serials = [progress.acquire(6).serial, progress.idle().serial]
    serials.append(progress.leave(WorkerStats()).serial)
    assert serials == [1, 2, 3]


def test_a_view_makes_active_and_sets_the_clock() -> None:
    progress = Progress(1, clock=3)
    progress.granted(Granted(View(4, ((0, 9), (1, 5))), since=4))
    assert (progress.active, progress.clock, progress.started_in) == (True, 5, 4)
    progress.granted(Granted(View(5, ((1, 2),)), since=4))
    assert (progress.clock, progress.started_in) == (5, 4)
    progress.granted(Granted(View(6, ((0, 9),))))
    assert (progress.active, progress.started_in) == (False, 4)
    progress.granted(Granted(View(9, ((1, 8),)), since=7))
    assert (progress.active, progress.clock, progress.started_in) == (True, 8, 7)


def test_each_server_is_told_of_a_view_once() -> None:
    progress = Progress(0)
    assert progress.news_for(0) is None
    view = View(2, ((0, 0),))
    progress.granted(Granted(view))
    assert [progress.news_for(server) for server in (0, 1, 0, 1)] == [view, view, None, None]
    progress.granted(Granted(View(1)))
    assert progress.news_for(0) is None, "an older view is no news"


def test_leaving_tells_what_is_done_and_how() -> None:
    progress = Progress(0)
    progress.begin(LEASE)
    progress.finished()
    leave = progress.leave(WorkerStats(steps=1), early=True, settled=False)
    assert (leave.done, leave.early, leave.settled) == ((), True, False)
    progress.finished()
    progress.finished()
    leave = progress.leave(WorkerStats(steps=3))
    assert (leave.done, leave.early, leave.settled) == (((0, 4, 0),), False, True)
    assert leave.stats.steps == 3


def test_batches_of_a_lease_that_came_again_are_updates_of_their_own() -> None:
    new = Lease(0, 5, 6, 10, 2)
    again = Lease(0, 4, 0, 6, 2, first_step=1, again=True)
    for current, following, may in ((new, new, True), (again, new, False), (new, again, False)):
        progress = Progress(0)
        progress.begin(current)
        assert progress.may_fold(following) is may


def test_what_is_given_up_counts_as_not_done() -> None:
    progress = Progress(0)
    progress.begin(LEASE)
    progress.finished()
    progress.fold()
    progress.fold()
    progress.abandon()
    assert (progress.lease, progress.folded, progress.clock) == (None, (), 1)
    own = progress.next_key()
    assert own.stream.kind is StreamKind.WORKER
    progress.finished()
    assert progress.take_done() == ()


def test_under_a_new_number_nothing_of_before_counts() -> None:
    progress = Progress(1)
    progress.finished()
    progress.granted(Granted(View(4, ((1, 5),)), since=4))
    told = progress.news_for(0)
    progress.begin(LEASE)
    for _ in range(2):
        progress.finished()
    serial = progress.next_serial()
    progress.fold()
    progress.begin_anew(7)
    assert (progress.worker, progress.clock, progress.active) == (7, 0, False)
    assert (progress.lease, progress.folded, progress.take_done()) == (None, (), ())
    assert progress.own_key() == UpdateKey(Stream(StreamKind.WORKER, 7, 0), 0)
    assert progress.next_serial() > serial, "no word is taken for an old one"
    assert told == progress.view
    assert progress.news_for(0) is None, "servers know what they know"
