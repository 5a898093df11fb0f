"""Where a checkpoint cuts a shard: what is before, what waits, and what the record says."""

from __future__ import annotations

from psrpc.core.decisions import Answer, Apply, Decision, Hold, Image, Same
from psrpc.core.leases import LeaseBook
from psrpc.core.ledger import Ledger
from psrpc.core.shard import ShardCore
from psrpc.messages import Lease, Push, Stream, StreamKind, UpdateKey, View
from psrpc.modes import Asynchronous, Mode, Synchronous
from psrpc.orders import Cut


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


def test_the_record_is_of_the_image_and_not_of_what_waited_for_it() -> None:
    core = shard(Asynchronous())
    assert core.cut(core.cut_here(1, "folder")) == []
    core.push(push(0, 0), 10)
    (hold,) = core.push(push(0, 1), 11)
    assert isinstance(hold, Hold)
    assert hold.reason == "checkpoint 1 comes before it"
    decisions = core.push(push(1, 0), 12)
    (image,) = [d for d in decisions if isinstance(d, Image)]
    before = decisions[: decisions.index(image)]
    assert [d.tokens for d in before if isinstance(d, Apply)] == [(12,)]
    after = decisions[decisions.index(image) :]
    assert [d.tokens for d in after if isinstance(d, Apply)] == [(11,)]
    assert (steps(image), image.record["updates"]) == (2, 2)
    restored = ShardCore(Asynchronous())
    restored.restore(image.record)
    assert restored.applied(push(0, 0).key)
    assert not restored.applied(push(0, 1).key)


def test_a_round_is_cut_before_the_next() -> None:
    core = shard(Synchronous())
    core.cut(core.cut_here(1, "folder"))
    core.push(push(0, 0), 10)
    decisions = core.push(push(1, 0), 11)
    assert kinds(decisions)[0] is Apply
    assert Image in kinds(decisions)


def test_a_repeat_of_what_waits_for_the_cut_shares_its_answer() -> None:
    core = shard(Asynchronous())
    core.cut(Cut(1, ((0, 0), (1, 1)), "folder"))
    core.push(push(0, 0), 10)
    assert core.push(push(0, 0), 11) == [Same(11, 10, "worker 0 sent step 0 again")]
    decisions = core.push(push(1, 0), 12)
    applied = [token for d in decisions if isinstance(d, Apply) for token in d.tokens]
    assert sorted(applied) == [10, 12]
    assert 10 in [d.token for d in decisions if isinstance(d, Answer)]


def test_a_cut_that_is_given_up_lets_all_go_on() -> None:
    core = shard(Asynchronous())
    core.cut(core.cut_here(3, "folder"))
    core.push(push(0, 0), 10)
    core.push(push(0, 1), 11)
    decisions = core.cut(Cut(3))
    assert [d.tokens for d in decisions if isinstance(d, Apply)] == [(11,)]
    assert Image not in kinds(core.push(push(1, 0), 12))


def test_a_cut_does_not_wait_for_the_dead() -> None:
    core = shard(Asynchronous())
    core.cut(core.cut_here(1, "folder"))
    core.push(push(0, 0), 10)
    core.push(push(0, 1), 11)
    decisions = core.adopt(View(2, ((0, 0),)))
    assert Image in kinds(decisions)
    assert [d.tokens for d in decisions if isinstance(d, Apply)] == [(11,)]


def test_records_of_equal_ledgers_are_equal() -> None:
    orders = [(0, 1), (1, 0)]
    records = []
    for order in orders:
        core = shard(Asynchronous())
        for token, worker in enumerate(order):
            core.push(push(worker, 0), token)
        records.append(core.record()["ledger"])
    assert records[0] == records[1]


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
