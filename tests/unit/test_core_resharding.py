"""How the coordinator decides that servers are added or removed, and when that is in force."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from psrpc.core.decisions import Answer, Decision, Hold, Image, Same
from psrpc.core.resharding import MOST_ATTEMPTS
from psrpc.core.shard import ShardCore
from psrpc.messages import (
    Bye,
    Done,
    Failure,
    Lease,
    Pull,
    Push,
    Reply,
    Request,
    Stepped,
    Stream,
    StreamKind,
    UpdateKey,
    View,
)
from psrpc.modes import Asynchronous, BoundedStaleness, OnPoison, Synchronous
from psrpc.moves import (
    Again,
    Agreed,
    Arrived,
    AwaitScale,
    FindServers,
    Offer,
    Ready,
    Retire,
    Scale,
    Seat,
    Servers,
    Settled,
)
from psrpc.orders import Cut, Halt, Watch
from tests.unit.council import FIRST_PROCESS, Council, answers, ask, register

ASKER = 900
SPARE = 901


def seat(index: int) -> Seat:
    return Seat(f"server{index}", index, "url", "door", "berth")


class Parley(Council):
    """A job of two workers whose servers change."""

    latest: Cut

    def about(self, request: Request, token: int) -> list[Decision]:
        """A word about servers; what is due then comes with it."""
        decisions = self.core.reshard(request, token, self.shard)
        return [*decisions, *self.core.news({})]

    def scale(self, servers: int) -> Reply:
        return answers(self.about(Scale(ASKER, servers), 1))[1]

    def why_not(self, servers: int) -> str:
        reply = self.scale(servers)
        assert isinstance(reply, Failure), reply
        assert reply.error[0] == "ScaleError"
        return reply.error[1]

    def cut(self) -> Cut:
        """Have the servers cut for the change under way; the own one stands still then."""
        self.core.resharding.begin(self.shard, "giver0")
        cut = self.core.take_cut()
        assert cut is not None
        (image,) = [d for d in self.shard.cut(cut) if isinstance(d, Image)]
        assert image.cut is cut
        return cut

    def cut_of_two(self) -> Cut:
        """Have two servers cut for a change that needs no new one."""
        self.core.resharding.begin(self.shard, "giver0")
        number = self.core.resharding.next_layout - 1
        self.core.watch(Watch(1, 0, halted=-number, giver="giver1"), 90, self.shard)
        cut = self.core.take_cut()
        assert cut is not None
        self.latest = cut
        return cut

    def ready(self, index: int, cut: Cut, token: int, **more: object) -> list[Decision]:
        words = {"seat": seat(index), "marks": (self.shard.ledger.mark(cut),), **more}
        return self.about(Ready(index, cut.layout, **words), token)  # type: ignore[arg-type]


def held(decisions: list[Decision]) -> list[int]:
    return [d.token for d in decisions if isinstance(d, Hold)]


def agreed(servers: int = 2, before: int = 1) -> Parley:
    """A job that is to have `servers` servers, in place of so many."""
    parley = Parley(Asynchronous(), 2, servers=before)
    assert parley.scale(servers) == Agreed(before, servers)
    return parley


def test_a_change_is_in_force_when_the_last_server_is_ready() -> None:
    parley = agreed()
    resharding = parley.core.resharding
    assert not resharding.may_cut
    assert held(parley.about(AwaitScale(ASKER), 2)) == [2]
    assert held(parley.about(Offer(1, SPARE, 2), 3)) == [3]
    assert resharding.may_cut
    cut = parley.cut()
    assert (cut.layout, cut.servers, cut.givers, cut.given_up) == (1, 2, ("giver0",), False)
    assert answers(parley.core.news({})) == {3: cut}
    assert answers(parley.ready(0, cut, 4)) == {4: Done()}
    assert resharding.layout == 0, "a server is missing"
    settled = Settled(1, 2, heard=2)
    assert answers(parley.ready(1, cut, 5)) == {2: settled, 5: settled}
    assert (resharding.layout, resharding.servers, resharding.under_way) == (1, 2, False)
    assert resharding.take_own() == [settled]
    again = answers(parley.ready(1, cut, 7))
    assert again == {7: settled}, "the first answer may be lost"
    found = answers(parley.about(FindServers(0), 6))[6]
    assert found == Servers(1, (seat(0), seat(1)))


def test_who_takes_a_new_servers_place_later_hears_that_it_was_one() -> None:
    """After another change, too, of which the heir has not heard: by then workers may follow it."""
    parley = agreed()
    parley.about(Offer(1, SPARE, 2), 3)
    first = parley.cut()
    parley.ready(0, first, 4)
    parley.ready(1, first, 5)
    assert parley.scale(1) == Agreed(2, 1)
    parley.shard.cut(parley.cut_of_two())
    parley.ready(0, parley.latest, 6)
    assert parley.core.resharding.layout == 2
    heir = Ready(1, first.layout, error="it has died")
    assert answers(parley.about(heir, 7)) == {7: Settled(1, 2, heard=2)}


def test_a_worker_that_lost_a_server_hears_what_becomes_of_the_change() -> None:
    parley = agreed(servers=1, before=2)
    resharding = parley.core.resharding
    parley.shard.cut(parley.cut_of_two())
    assert held(parley.about(FindServers(0, lost=True), 3)) == [3]
    assert answers(parley.about(FindServers(0), 4)) == {4: Servers(0, ())}
    assert resharding.doubted
    told = answers(parley.ready(0, parley.latest, 5))
    assert told[3] == Servers(1, (seat(0),))
    assert not resharding.doubted
    assert parley.scale(2) == Agreed(1, 2)
    assert answers(parley.about(FindServers(0, lost=True), 6)) == {6: Servers(1, (seat(0),))}


def test_it_hears_of_a_change_that_is_given_up() -> None:
    parley = agreed(servers=1, before=2)
    parley.cut_of_two()
    parley.about(FindServers(0, lost=True), 3)
    assert answers(parley.core.resharding.give_up("a server is lost")) == {3: Servers(0, ())}


def test_a_checkpoint_meanwhile_deals_nothing_out() -> None:
    parley = agreed()
    parley.about(Offer(1, SPARE, 2), 3)
    parley.core.begin_cut(7, "folder", parley.shard)
    cut = parley.core.take_cut()
    assert cut is not None
    parley.shard.cut(cut)
    assert answers(parley.core.news({})) == {}
    cut = parley.cut()
    assert answers(parley.core.news({})) == {3: cut}
    assert answers(parley.about(Offer(1, SPARE, 2), 4)) == {4: cut}, "the answer may be lost"


def test_servers_that_go_hear_of_it_and_end_when_nobody_needs_them() -> None:
    parley = agreed(servers=1, before=2)
    assert parley.core.resharding.may_cut, "nobody has to come"
    watch = Watch(1, parley.core.members.view.epoch)
    parley.core.watch(watch, 10, parley.shard)
    parley.core.resharding.begin(parley.shard, "giver0")
    assert answers(parley.core.news({})) == {10: Halt(-1, 1)}
    assert parley.core.take_cut() is None
    view = parley.core.members.view.epoch
    parley.core.watch(Watch(1, view, 1, 0, -1, (), "giver1"), 11, parley.shard)
    cut = parley.core.take_cut()
    assert cut is not None
    assert cut.givers == ("giver0", "giver1")
    parley.shard.cut(cut)
    parley.core.news({})
    parley.core.watch(Watch(1, view, 2), 12, parley.shard)
    assert answers(parley.ready(0, cut, 13)) == {12: Settled(1, 1, heard=3), 13: Done()}
    parley.core.watch(Watch(1, view, 3), 14, parley.shard)
    assert answers(parley.about(Arrived(0, 1), 15)) == {15: Done()}
    assert answers(parley.about(Arrived(1, 1), 16)) == {14: Retire(1), 16: Done()}
    assert parley.core.resharding.take_own() == [Settled(1, 1, heard=3), Retire(1)]


def test_a_worker_that_comes_late_or_goes_is_counted() -> None:
    parley = agreed(servers=1, before=1 + 1)
    parley.core.resharding.begin(parley.shard, "")
    parley.core.watch(Watch(1, 0, 1, 0, -1), 10, parley.shard)
    cut = parley.core.take_cut()
    assert cut is not None
    parley.ready(0, cut, 11)
    parley.say(register(None, process=FIRST_PROCESS + 7), 12)  # it knows of the first layout only
    parley.say(replace(register(None, process=FIRST_PROCESS + 8), layout=1), 14)  # needs no other
    parley.core.resharding.take_own()
    parley.about(Arrived(0, 1), 13)
    parley.lose(1)
    assert parley.core.resharding.take_own() == []
    parley.say(Bye(parley.core.worker_of(FIRST_PROCESS + 7) or 0), 15)
    assert parley.core.resharding.take_own() == [Retire(1)]


def test_what_cannot_be_is_refused() -> None:
    parley = Parley(Asynchronous(), 2, servers=2, come=False)
    assert "it has not begun: workers [0, 1] have not come yet" in parley.why_not(3)
    parley = Parley(Asynchronous(), 2, servers=2)
    assert "at least 1 server, not 0" in parley.why_not(0)
    assert "it has 2 servers already" in parley.why_not(2)
    assert parley.scale(3) == Agreed(2, 3)
    assert parley.scale(3) == Agreed(2, 3), "the same word again"
    other = answers(parley.about(Scale(ASKER + 1, 4), 2))[2]
    assert isinstance(other, Failure)
    assert "it is being changed to 3 servers" in other.error[1]
    parley = Parley(Asynchronous(), 2, servers=2)
    parley.core.resharding.refusal = "it has backups"
    assert "it has backups" in parley.why_not(3)


def test_nobody_else_is_taken_for_a_new_server() -> None:
    parley = Parley(Asynchronous(), 2)
    for offer in (Offer(1, SPARE, 2), Offer(0, SPARE, 3), Offer(1, SPARE, 4)):
        reply = answers(parley.about(offer, 2))[2]
        assert isinstance(reply, Failure)
        parley.core.resharding.give_up("")
        parley.scale(3)
    parley.about(Offer(1, SPARE, 3), 3)
    assert isinstance(answers(parley.about(Offer(1, SPARE + 1, 3), 4))[4], Failure)
    assert parley.about(Offer(1, SPARE, 3), 5)[0] == Same(5, 3, "it has offered itself before")


def test_the_death_of_a_new_server_or_of_the_command_gives_it_up() -> None:
    for process, who in ((SPARE, "the new server 1 is lost"), (ASKER, "the command that asked")):
        parley = agreed()
        parley.about(AwaitScale(ASKER), 2)
        parley.about(Offer(1, SPARE, 2), 3)
        cut = parley.cut()
        parley.core.news({})
        parley.ready(1, cut, 4)
        decisions = parley.core.lose(process, "its connection was closed", parley.shard)
        told = answers(decisions)
        for token in (2, 4):
            reply = told[token]
            assert isinstance(reply, Failure)
            assert f"the job goes on with 1 server: {who}" in reply.error[1]
        assert parley.core.resharding.take_own() == [Cut(-1)]
        assert isinstance(answers(parley.ready(0, cut, 5))[5], Again), "too late"
        assert (parley.core.resharding.layout, parley.core.resharding.servers) == (0, 1)


def test_after_the_point_of_commit_nothing_is_given_up() -> None:
    parley = agreed()
    parley.about(Offer(1, SPARE, 2), 3)
    cut = parley.cut()
    for index in (0, 1):
        parley.ready(index, cut, 10 + index)
    parley.core.lose(SPARE, "its connection was closed", parley.shard)
    parley.core.lose(ASKER, "its connection was closed", parley.shard)
    assert parley.core.resharding.layout == 1
    assert answers(parley.about(AwaitScale(ASKER), 20)) == {20: Settled(1, 2, heard=2)}


def test_a_server_that_cannot_have_its_rows_gives_it_up() -> None:
    parley = agreed()
    parley.about(AwaitScale(ASKER), 2)
    parley.about(Offer(1, SPARE, 2), 3)
    cut = parley.cut()
    told = answers(parley.ready(1, cut, 4, seat=None, error="PeerLostError: it died"))
    assert all(isinstance(told[token], Failure) for token in (2, 4))
    assert not parley.core.resharding.under_way


def test_shards_with_different_updates_are_cut_again() -> None:
    parley = agreed()
    parley.about(AwaitScale(ASKER), 2)
    for attempt in range(MOST_ATTEMPTS):
        parley.about(Offer(1, SPARE, 2, attempt), 3)
        cut = parley.cut()
        parley.core.news({})
        assert cut.layout == attempt + 1, "a number is never given twice"
        told = answers(parley.ready(1, cut, 4, marks=("another",)))
        parley.shard.cut(Cut(-cut.layout))
        if attempt + 1 < MOST_ATTEMPTS:
            assert told == {4: Again()}
            assert parley.core.resharding.under_way
    assert isinstance(told[2], Failure)
    assert "different updates at each cut" in told[2].error[1]


class Halves(Parley):
    """A job of two servers that is to have one; one of its two workers dies amid a push."""

    def __init__(self, samples: int | None, **options: Any) -> None:
        super().__init__(Asynchronous(), 2, servers=2, **options)
        assert self.scale(1) == Agreed(2, 1)
        self.other = ShardCore(Asynchronous(), follows=True)
        for worker in (0, 1):
            self.say(ask(worker, 1, samples=samples), 10 + worker)

    def both(self, worker: int, clock: int, key: UpdateKey) -> None:
        self.other.adopt(self.core.members.view)
        self.push(worker, clock, key)
        self.other.push(Push(worker, clock, key, 1), 700 + clock)

    def make_cut(self) -> dict[int, Reply]:
        """Cut both servers; server 0 takes the rows of both. Returns what is answered."""
        cut = self.cut_of_two()
        marks = set()
        for shard in (self.shard, self.other):
            (image,) = [d for d in shard.cut(cut) if isinstance(d, Image)]
            assert image.cut is cut
            marks.add(shard.ledger.mark(cut))
        told = answers(self.ready(0, cut, 40, marks=tuple(marks)))
        for word in self.core.resharding.take_own():
            if isinstance(word, Cut):
                self.shard.cut(word)
                self.other.cut(word)
        return told

    @property
    def layout(self) -> int:
        return self.core.resharding.layout


def own(worker: int, sequence: int) -> UpdateKey:
    return UpdateKey(Stream(StreamKind.WORKER, worker, 0), sequence)


def test_a_step_that_nobody_makes_again_holds_no_change_up() -> None:
    halves = Halves(None)
    halves.both(0, 0, own(0, 0))
    halves.both(1, 0, own(1, 0))
    halves.push(1, 1, own(1, 1))
    halves.lose(1)
    halves.make_cut()
    assert halves.layout == 1


def test_one_of_a_worker_that_may_push_again_does() -> None:
    """The view in which it is dead came to the shards when they were cut in the one before."""
    halves = Halves(None)
    halves.both(0, 0, own(0, 0))
    halves.push(1, 0, own(1, 0))
    cut = halves.cut_of_two()
    marks = {shard.ledger.mark(cut) for shard in (halves.shard, halves.other)}
    assert len(marks) == 2
    halves.lose(1)
    halves.ready(0, cut, 40, marks=tuple(marks))
    assert (halves.layout, halves.core.resharding.under_way) == (0, True)
    for word in halves.core.resharding.take_own():
        assert isinstance(word, Cut)
        halves.shard.cut(word)
    halves.make_cut()
    assert halves.layout == 2


def test_what_is_given_up_of_a_lease_holds_no_change_up() -> None:
    halves = Halves(12, on_poison=OnPoison.SKIP)
    (lease,) = (each.lease for each in halves.core.leases._epochs[0].held.values() if each.worker)
    halves.both(1, 0, lease.key(0))
    halves.push(1, 1, lease.key(1))
    (left,) = halves.core.leases.give_back(1, lambda lease: 1)
    halves.lose(1)
    halves.make_cut()
    assert (halves.layout, halves.core.resharding.under_way) == (0, True), "others do it again"
    halves.core.leases.skip(left)
    halves.make_cut()
    assert halves.layout == 2


def test_what_is_left_of_an_epoch_that_was_broken_off_does_so_for_a_while() -> None:
    halves = Halves(12)
    (lease,) = (each.lease for each in halves.core.leases._epochs[0].held.values() if each.worker)
    halves.both(1, 0, lease.key(0))
    halves.push(1, 1, lease.key(1))
    halves.lose(1)
    halves.say(ask(0, 2, epoch=1), 12)
    for _ in range(MOST_ATTEMPTS // 2):
        assert halves.core.leases.skipped == ()
        halves.make_cut()
        assert (halves.layout, halves.core.resharding.under_way) == (0, True)
    halves.make_cut()
    assert halves.layout == 1 + MOST_ATTEMPTS // 2


def test_the_end_of_the_job_ends_the_change() -> None:
    parley = agreed()
    parley.about(AwaitScale(ASKER), 2)
    for worker in (0, 1):
        parley.say(Bye(worker), 90 + worker)
        parley.core.members.leave(worker)
    (told,) = answers(parley.core.news({})).values()
    assert isinstance(told, Failure)
    assert "it is over" in told.error[1]
    assert "it is over" in parley.why_not(3)


# What a shard does at such a cut, and after it.

LEASE = Lease(0, 0, 0, 40, 1)


def push(worker: int, clock: int) -> Push:
    stream = Stream(StreamKind.LEASE, 0, worker)
    return Push(worker, clock, UpdateKey(stream, clock, 90), 1)


def moved_to(core: ShardCore, *clocks: tuple[int, int]) -> list[Decision]:
    core.halt(-1)
    return core.cut(Cut(-1, clocks, layout=1, servers=2))


def test_a_shard_stands_still_at_the_cut_until_it_is_given_up() -> None:
    core = ShardCore(BoundedStaleness(1))
    core.adopt(View(1, ((0, 0), (1, 0))))
    core.push(push(0, 0), 10)
    assert [type(d) for d in moved_to(core, (0, 1), (1, 0))] == [Image]
    assert held(core.push(push(0, 1), 11)) == [11]
    assert held(core.push(push(1, 0), 12)) == [12]
    assert held(core.pull(Pull(1, 0), 13)) == [13]
    assert core.version == 1
    assert core.push(push(0, 0), 14)[0] == Answer(14, Stepped(1, 1), "step 0 of worker 0 is done")
    decisions = core.cut(Cut(-1))
    assert set(answers(decisions)) == {11, 12, 13}
    assert core.version == 3


def test_a_worker_is_answered_by_the_new_shard_as_its_mode_lets_it() -> None:
    """Its step is in the weights, but it is too far ahead to be told so."""
    core = ShardCore(BoundedStaleness(0))
    core.adopt(View(1, ((0, 0), (1, 0))))
    assert held(core.push(push(0, 0), 10)) == [10]
    moved_to(core, (0, 1), (1, 0))
    core.settle(fresh=True)
    assert held(core.push(push(0, 0), 20)) == [20]
    assert core.push(push(0, 0), 21)[0] == Same(21, 20, "worker 0 sent step 0 again")
    assert set(answers(core.push(push(1, 0), 22))) == {20, 22}
    assert (core.version, core.stats().updates_applied) == (2, 2)


def test_a_round_that_was_not_complete_is_collected_anew() -> None:
    core = ShardCore(Synchronous())
    core.adopt(View(1, ((0, 0), (1, 0))))
    core.push(push(0, 0), 10)
    moved_to(core, (0, 0), (1, 0))
    core.settle()
    assert held(core.push(push(1, 0), 20)) == [20]
    assert set(answers(core.push(push(0, 0), 21))) == {20, 21}
    assert (core.version, core.stats().updates_applied) == (1, 2)


def test_a_push_that_no_round_had_taken_may_come_too_late_for_it() -> None:
    """With backup workers others go on meanwhile: it is no repetition then, and is done again."""
    core = ShardCore(Synchronous(1))
    core.adopt(View(1, ((0, 0), (1, 0), (2, 0))))
    core.push(push(0, 0), 10)
    moved_to(core, (0, 0), (1, 0), (2, 0))
    core.settle()
    core.push(push(1, 0), 20)
    core.push(push(2, 0), 21)
    (reply,) = answers(core.push(push(0, 0), 22)).values()
    assert isinstance(reply, Stepped)
    assert reply.late
    assert core.dropped == [(0, push(0, 0).key)]
