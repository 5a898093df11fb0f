"""Where a checkpoint cuts a shard: what is before, what waits, and what the record says."""

from __future__ import annotations

import pickle

from psrpc.core.decisions import Answer, Apply, Decision, Hold, Image, Same
from psrpc.core.leases import LeaseBook
from psrpc.core.ledger import Ledger
from psrpc.core.newsroom import Newsroom
from psrpc.core.shard import ShardCore
from psrpc.messages import Lease, Push, Stream, StreamKind, UpdateKey, View
from psrpc.modes import Asynchronous, Mode, Synchronous
from psrpc.orders import Cut, Halt, Watch


def push(worker: int, clock: int) -> Push:
    return Push(worker, clock, UpdateKey(Stream(StreamKind.LEASE, 0, worker), clock, 9), 1)


def shard(mode: Mode) -> ShardCore:
    core = ShardCore(mode)
    core.adopt(View(1, ((0, 0), (1, 0))))
    return core


def kinds(decisions: list[Decision]) -> list[type]:
    return [type(decision) for decision in decisions]


def steps(image: Image) -> int:
    """The updates that a record has."""
    return sum(high - low for *_, marks in image.record["ledger"]["open"] for low, high in marks)


def cut(*clocks: tuple[int, int], view: View | None = None) -> Cut:
    return Cut(1, clocks, "folder", view)


def images(decisions: list[Decision]) -> list[Image]:
    return [decision for decision in decisions if isinstance(decision, Image)]


def applied(decisions: list[Decision]) -> list[tuple[int, ...]]:
    return [decision.tokens for decision in decisions if isinstance(decision, Apply)]


def test_a_shard_that_is_halted_takes_no_new_steps() -> None:
    core = shard(Asynchronous())
    core.push(push(0, 0), 10)
    assert core.halt(1) == ((0, 1), (1, 0))
    (hold,) = core.push(push(0, 1), 11)
    assert hold == Hold(11, "checkpoint 1 comes before it")
    assert [type(d) for d in core.push(push(0, 0), 12)] == [Answer], "a repeat is nothing new"


def test_nobody_waits_for_a_step_that_has_not_been_pushed() -> None:
    """Worker 1 computes for long: the cut is made without the step that it is at."""
    core = shard(Asynchronous())
    core.push(push(0, 0), 10)
    core.halt(1)
    core.push(push(0, 1), 11)
    decisions = core.cut(cut((0, 1), (1, 0)))
    (image,) = images(decisions)
    assert decisions[0] == image
    assert applied(decisions) == [(11,)]
    assert [d.token for d in decisions if isinstance(d, Answer)] == [11]


def test_the_record_is_of_the_image_and_not_of_what_waited_for_it() -> None:
    """Another shard had step 0 of worker 1 when it halted: here it is still on its way."""
    core = shard(Asynchronous())
    core.push(push(0, 0), 10)
    core.halt(1)
    core.push(push(0, 1), 11)
    assert core.cut(cut((0, 1), (1, 1))) == []
    decisions = core.push(push(1, 0), 12)
    (image,) = images(decisions)
    assert applied(decisions[: decisions.index(image)]) == [(12,)]
    assert applied(decisions[decisions.index(image) :]) == [(11,)]
    assert (steps(image), image.record["updates"]) == (2, 2)
    restored = ShardCore(Asynchronous())
    restored.restore(image.record)
    assert push(0, 0).key in restored.ledger
    assert push(0, 1).key not in restored.ledger


def test_what_waited_and_comes_before_the_cut_is_applied_before_it() -> None:
    core = shard(Asynchronous())
    core.halt(1)
    core.push(push(0, 0), 10)
    core.push(push(1, 0), 11)
    decisions = core.cut(cut((0, 1), (1, 0)))
    (image,) = images(decisions)
    assert applied(decisions[: decisions.index(image)]) == [(10,)]
    assert applied(decisions[decisions.index(image) :]) == [(11,)]


def test_a_round_that_some_shard_has_closed_comes_before_the_cut() -> None:
    core = shard(Synchronous())
    core.push(push(0, 0), 10)
    core.halt(1)
    core.push(push(1, 0), 11)
    decisions = core.cut(cut((0, 1), (1, 1)))
    (image,) = images(decisions)
    assert applied(decisions[: decisions.index(image)]) == [(10, 11)]


def test_a_round_that_no_shard_has_closed_comes_after_the_cut() -> None:
    core = shard(Synchronous())
    core.push(push(0, 0), 10)
    core.halt(1)
    core.push(push(1, 0), 11)
    decisions = core.cut(cut((0, 0), (1, 0)))
    (image,) = images(decisions)
    assert steps(image) == 0
    assert applied(decisions[decisions.index(image) :]) == [(10, 11)]


def test_a_death_closes_no_round_while_the_shard_is_halted() -> None:
    """It has said how far it is; the others would be cut before that round."""
    core = shard(Synchronous())
    core.push(push(0, 0), 10)
    core.halt(1)
    view = View(2, ((0, 0),))
    assert applied(core.adopt(view)) == []
    decisions = core.cut(cut((0, 0), (1, 0), view=view))
    (image,) = images(decisions)
    assert steps(image) == 0
    assert applied(decisions[decisions.index(image) :]) == [(10,)]


def test_a_cut_brings_the_view_in_which_it_was_made() -> None:
    """Otherwise a new worker's step would not be waited for."""
    core = shard(Asynchronous())
    core.halt(1)
    view = View(2, ((0, 0), (1, 0), (2, 0)))
    assert images(core.cut(cut((0, 0), (1, 0), (2, 1), view=view))) == []
    assert len(images(core.push(push(2, 0), 10))) == 1


def test_a_repeat_of_what_waits_for_the_cut_shares_its_answer() -> None:
    core = shard(Asynchronous())
    core.halt(1)
    core.push(push(0, 0), 10)
    assert core.push(push(0, 0), 11) == [Same(11, 10, "worker 0 sent step 0 again")]
    decisions = core.cut(cut((0, 0), (1, 0)))
    assert applied(decisions) == [(10,)]
    assert 10 in [d.token for d in decisions if isinstance(d, Answer)]


def test_a_cut_that_is_given_up_lets_all_go_on() -> None:
    core = shard(Asynchronous())
    core.halt(3)
    core.push(push(0, 0), 10)
    assert core.cut(Cut(2)) == [], "another one"
    assert applied(core.cut(Cut(3))) == [(10,)]
    assert Image not in kinds(core.push(push(1, 0), 12))


def test_a_cut_does_not_wait_for_the_dead() -> None:
    core = shard(Asynchronous())
    core.halt(1)
    core.push(push(0, 0), 10)
    core.cut(cut((0, 0), (1, 1)))
    decisions = core.adopt(View(2, ((0, 0),)))
    assert Image in kinds(decisions)
    assert applied(decisions) == [(10,)]


def test_records_of_equal_ledgers_are_equal() -> None:
    orders = [(0, 1), (1, 0)]
    records = []
    for order in orders:
        core = shard(Asynchronous())
        for token, worker in enumerate(order):
            core.push(push(worker, 0), token)
        records.append(core.record()["ledger"])
    assert records[0] == records[1]


# What the coordinator tells the servers.


def test_the_cut_is_at_the_most_that_any_shard_has() -> None:
    room, view = Newsroom(3), View(4, ((0, 0),))
    room.watch(Watch(1, 4), 10)
    room.begin_cut(Cut(7, folder="folder"), ((0, 3), (1, 1)))
    assert [d.reply for d in room.news(view, {}) if isinstance(d, Answer)] == [Halt(7)]
    room.watch(Watch(1, 4, 1, 0, 7, ((0, 2), (1, 2))), 11)
    assert room.cut(view) is None, "server 2 has not said how far it is"
    room.watch(Watch(2, 4, 1, 0, 7, ((5, 1),)), 12)
    made = room.cut(view)
    assert made == Cut(7, ((0, 3), (1, 2), (5, 1)), "folder", view)
    assert room.cut(view) is None, "once"
    assert {d.token: d.reply for d in room.news(view, {}) if isinstance(d, Answer)} == {
        11: made,
        12: made,
    }


def test_one_server_is_cut_at_once() -> None:
    room = Newsroom(1)
    room.begin_cut(Cut(1, folder="folder"), ((0, 3),))
    assert room.cut(View(1)) == Cut(1, ((0, 3),), "folder", View(1))


def test_what_was_said_for_a_cut_that_was_given_up_counts_no_more() -> None:
    room = Newsroom(2)
    room.begin_cut(Cut(1, folder="folder"), ())
    room.give_up_cut(1)
    room.watch(Watch(1, 0, 1, 0, 1, ((0, 9),)), 10)
    assert room.cut(View()) is None
    assert [d.reply for d in room.news(View(), {}) if isinstance(d, Answer)] == [Cut(1)]
    room.begin_cut(Cut(2, folder="folder"), ((0, 3),))
    room.watch(Watch(1, 0, 2), 11)
    assert room.cut(View()) is None
    room.watch(Watch(1, 0, 3, 0, 2, ((0, 4),)), 12)
    assert room.cut(View()) == Cut(2, ((0, 4),), "folder", View())


def test_what_any_shard_lacks_is_handed_out_again() -> None:
    book = LeaseBook()
    lease = book.acquire(0, 0, 8, 2, 1)
    assert lease is not None
    ledgers = []
    for applied in (lease.steps, 1):
        ledger = Ledger()
        for step in range(applied):
            ledger.record(lease.key(step))
        ledgers.append(ledger)
    again = LeaseBook()
    again.restore(book.export(), ledgers)
    assert again.acquire(0, 0, 8, 2, 1) == Lease(
        0, lease.index, lease.start, lease.stop, 2, first_step=1, again=True
    )


def test_a_shard_knows_which_words_about_cuts_have_come() -> None:
    """Another server that has its state asks on from there."""
    core = shard(Asynchronous())
    core.push(push(0, 0), 10)
    assert core.watches(1, 5) == Watch(1, 1, 0, 5)
    core.halt(4)
    copy = pickle.loads(pickle.dumps(core))
    copy.push(push(1, 0), 11)
    assert copy.watches(1, 5) == Watch(1, 1, 1, 5, 4, ((0, 1), (1, 0)))
    copy.cut(Cut(4, ((0, 1), (1, 1)), "folder"))
    assert copy.watches(1, 5) == Watch(1, 1, 2, 5)
    assert copy.latest_cut == 4
