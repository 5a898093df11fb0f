"""A primary and its backup in one process, with a real connection between them."""

from __future__ import annotations

import collections
import os
import pickle
import queue
import threading
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from psrpc.coordinator import Coordinator
from psrpc.core.replication import Reign
from psrpc.errors import (
    AddressError,
    FencedError,
    JobFailedError,
    PeerLostError,
    ProtocolError,
)
from psrpc.job import PROTOCOL, Job
from psrpc.messages import (
    Acquire,
    GetStats,
    Peek,
    Pull,
    Push,
    PutBuffers,
    Register,
    Stepped,
    Stream,
    StreamKind,
    UpdateKey,
)
from psrpc.modes import Asynchronous, Mode, Synchronous
from psrpc.orders import Cut, Halt
from psrpc.planes import codec
from psrpc.planes.loopback import LoopbackLink
from psrpc.rendezvous import FAREWELL, gone, worker_name
from psrpc.replicas import ReplicaNode
from psrpc.replication import entries
from psrpc.replication.authority import Authority
from psrpc.replication.entries import Beat, Copy, Entry, Has
from psrpc.replication.failover import FailoverLink
from psrpc.replication.follower import HARBOUR, Ending, Follower
from psrpc.replication.lines import Harbour, reach
from psrpc.replication.primary import PrimaryService
from psrpc.replication.state import capture, digest, restore, rows_of, take_rows
from psrpc.secret import Secret
from psrpc.server import ParameterServer
from psrpc.store.blueprint import Blueprint, draw
from psrpc.store.flats import Buffers
from psrpc.store.image import ShardImage
from psrpc.store.layout import ShardLayout
from psrpc.store.shard import ShardStore
from tests import bomb
from tests.bomb import Bomb
from tests.processes import wait_until

PATIENCE_S = 20.0
SECRET = Secret(b"a secret of these tests")


def key_of(worker: int, clock: int) -> UpdateKey:
    """The name of a worker's update."""
    return UpdateKey(Stream(StreamKind.WORKER, worker, 0), clock)


class Model(nn.Module):
    """Parameters of two shapes, one that is frozen, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 3)
        self.out.bias.requires_grad_(False)


class Stage:
    """A coordinator with its shard, and what workers of it say."""

    def __init__(self, mode: Mode, optimizer: Any = None) -> None:
        optimizer = optimizer or partial(torch.optim.Adam, lr=0.1)
        self.job = Job(2, 1, mode)
        model = Model()
        self.blueprint: Blueprint = draw(model, optimizer)
        (self.layout,) = self.blueprint.layouts(1)
        self.store = ShardStore(self.blueprint, self.layout, model, self.job.reduction)
        self.server = ParameterServer(self.job, 0, self.blueprint, self.store)
        self.coordinator = Coordinator(self.job, self.server, self.blueprint, model)


def begin(service: Any, stage: Stage) -> None:
    """Both workers come, and each begins on a lease."""
    link = LoopbackLink(service)
    signature = stage.blueprint.signature
    words = [Register(w, PROTOCOL, signature, stage.job.settings, rank=w) for w in (0, 1)]
    for pending in [link.call(word) for word in words]:
        pending.wait(PATIENCE_S)
    asked = [link.call(Acquire(w, 1, 0, 0, samples=40)) for w in (0, 1)]
    views = [pending.wait(PATIENCE_S)[0].view for pending in asked]  # type: ignore[attr-defined]
    for pending in [link.call(Pull(w, 0, views[w])) for w in (0, 1)]:
        pending.wait(PATIENCE_S)


def push(service: Any, stage: Stage, worker: int, clock: int) -> Any:
    """A worker's push of gradients that only its names make; the answer under way."""
    torch.manual_seed(100 * worker + clock)
    gradients = [torch.randn_like(flat) for flat in stage.store.flats]
    request = Push(worker, clock, key_of(worker, clock), samples=1 + worker)
    return LoopbackLink(service).call(request, gradients)


def test_options_that_were_changed_travel_with_rows() -> None:
    first, second = Stage(Asynchronous()), Stage(Asynchronous())
    begin(first.coordinator, first)
    gradients = [torch.ones_like(flat) for flat in first.store.flats]
    request = Push(0, 0, key_of(0, 0), samples=1, overrides=((0, "lr", 0.5),))
    LoopbackLink(first.coordinator).call(request, gradients).wait(0)
    assert first.store.options()
    state, tensors, _ = capture(first.coordinator)
    restore(second.coordinator, codec.decode(codec.encode(state)), tensors)
    assert second.store.options() == first.store.options()
    rows, tensors = rows_of(1, 1, first.store, b"")
    third = Stage(Asynchronous())
    third.server.new_store = lambda servers: third.store
    third.server.halt(-1)
    take_rows(third.coordinator, codec.decode(codec.encode(rows)), tensors)
    assert third.server.next is not None
    assert third.server.next[2].options() == first.store.options()


@pytest.mark.parametrize("mode", [Synchronous(), Asynchronous()])
def test_a_copy_goes_on_as_the_first(mode: Mode) -> None:
    first, second = Stage(mode), Stage(mode, partial(torch.optim.Adam, lr=0.1))
    begin(first.coordinator, first)
    for clock in range(3):
        for worker in (0, 1):
            push(first.coordinator, first, worker, clock)
    held = push(first.coordinator, first, 0, 3)
    buffers = [torch.full_like(b, 2) for b in (torch.zeros(4), torch.zeros(4), torch.tensor(0))]
    LoopbackLink(first.coordinator).call(PutBuffers(0, 5), buffers)
    state, tensors, release = capture(first.coordinator)
    copied = [tensor.clone() for tensor in tensors]
    release()
    restore(second.coordinator, state, copied)
    assert digest(second.coordinator) == digest(first.coordinator)
    # What was held before the copy is in the copy: one more push completes its round there.
    for stage in (first, second):
        push(stage.coordinator, stage, 1, 3)
    assert digest(second.coordinator) == digest(first.coordinator)
    for stage in (first, second):  # as workers do that have lost their server
        assert push(stage.coordinator, stage, 0, 3).wait(0)[0] == held.wait(0)[0]
    assert torch.equal(second.coordinator.buffers()[0], first.coordinator.buffers()[0])
    for request in (GetStats(0), Peek(0)):
        answers = [LoopbackLink(s.coordinator).call(request).wait(0) for s in (first, second)]
        assert answers[0][0] == answers[1][0]
        assert all(map(torch.equal, answers[0][1], answers[1][1]))


def test_a_digest_tells_a_difference() -> None:
    stage = Stage(Asynchronous())
    begin(stage.coordinator, stage)
    before = digest(stage.coordinator)
    push(stage.coordinator, stage, 0, 0)
    after = digest(stage.coordinator)
    assert after != before
    stage.store.flats[0][0] += 2.0**-20
    assert digest(stage.coordinator) != after


class Register_:
    """A torch store's part that the authority uses, in this process."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self._lock = threading.Lock()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        with self._lock:
            if self.values.get(key, "") == expected:
                self.values[key] = desired
            return self.values.get(key, expected).encode()


class Pair:
    """A primary (1), whose backup (2) follows in a thread when it is told to."""

    def __init__(self, dead_after_s: float = 30.0, mode: Mode | None = None) -> None:
        mode = mode or Asynchronous()
        self.stage, self.other = Stage(mode), Stage(mode)
        self.authority = Authority(Register_(), 0)
        reign = self.authority.change(None, Reign(1, 1))
        self.primary = PrimaryService(
            self.stage.coordinator, 1, reign, 0, self.authority, dead_after_s
        )
        self.primary.start()
        self.harbour = Harbour("127.0.0.1", self.primary.admit, SECRET)
        self.harbour.start()
        self.authority.post(1, HARBOUR, self.harbour.address)
        self.follower = Follower(self.other.coordinator, 2, self.authority, dead_after_s, SECRET)
        self.ending: Ending | None = None
        self.error: JobFailedError | None = None
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        try:
            self.ending = self.follower.follow(PATIENCE_S, PATIENCE_S, lambda: False)
        except JobFailedError as error:
            self.error = error

    def follow(self) -> None:
        """Let the backup come, and be named."""
        self.thread.start()
        assert self.primary.wait_for_backup(PATIENCE_S)

    def close(self) -> None:
        self.primary.stop()
        self.harbour.close()
        if self.thread.ident is not None:
            self.thread.join(PATIENCE_S)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def test_a_backup_takes_over_with_all_that_was_answered(pair: Pair) -> None:
    pair.follow()
    begin(pair.primary, pair.stage)
    for clock in range(5):
        push(pair.primary, pair.stage, 0, clock).wait(PATIENCE_S)
    before = digest(pair.stage.coordinator)
    pair.primary.stop()  # without a word to those that follow
    pair.thread.join(PATIENCE_S)
    assert pair.ending is Ending.REIGNS
    assert pair.follower.reign == Reign(3, 2) == pair.authority.look()
    assert digest(pair.other.coordinator) == before
    again = push(pair.other.coordinator, pair.other, 0, 4).wait(0)[0]
    assert again == Stepped(5, 5)


def test_a_backup_is_cut_with_its_primary_and_writes_nothing(pair: Pair) -> None:
    pair.follow()
    begin(pair.primary, pair.stage)
    made: list[int] = []

    def picture(cut: Cut, image: ShardImage, record: dict[str, Any]) -> None:
        made.append(cut.number)
        image.release()

    pair.stage.server.pictured = picture
    push(pair.primary, pair.stage, 0, 0).wait(PATIENCE_S)
    pair.primary.begin_cut(4, "folder")
    assert made == [4]
    pair.primary.obey(Halt(5))
    held = push(pair.primary, pair.stage, 0, 1)
    push(pair.primary, pair.stage, 1, 0)
    LoopbackLink(pair.primary).call(GetStats(0)).wait(PATIENCE_S)  # the backup has all before it
    pair.primary.stop()
    pair.thread.join(PATIENCE_S)
    core = pair.other.server.core
    assert (core.latest_cut, core.version) == (5, 1), "it stands halted as well"
    assert not held.done()
    pair.other.coordinator.give_up_cut(5)
    assert core.version == 3


def test_a_job_that_ends_is_taken_over_by_nobody(pair: Pair) -> None:
    pair.follow()
    begin(pair.primary, pair.stage)
    pair.primary.close(PATIENCE_S)
    pair.thread.join(PATIENCE_S)
    assert pair.ending is Ending.OVER


def test_an_answer_waits_until_the_backup_has_it(pair: Pair) -> None:
    """The backup is here a connection in this test's hands."""
    freight = reach(pair.harbour.address, 7, PATIENCE_S, SECRET)
    copy = next_of(freight, Copy)
    entries.send(freight, Has(copy.number))
    assert pair.primary.wait_for_backup(PATIENCE_S)
    assert pair.authority.look() == Reign(2, 1, 7)
    pending = LoopbackLink(pair.primary).call(
        Register(0, PROTOCOL, pair.stage.blueprint.signature, pair.stage.job.settings)
    )
    LoopbackLink(pair.primary).call(
        Register(1, PROTOCOL, pair.stage.blueprint.signature, pair.stage.job.settings)
    )
    entry = next_of(freight, Entry)
    last = next_of(freight, Entry)
    assert (entry.number, last.number) == (copy.number + 1, copy.number + 2)
    entries.send(freight, Has(entry.number))
    assert not pending.done()
    with pytest.raises(TimeoutError):
        pending.wait(0.2)
    entries.send(freight, Has(last.number))
    pending.wait(PATIENCE_S)
    # Without its backup it answers when the authority lets it.
    freight.cut()
    freight.close()
    LoopbackLink(pair.primary).call(GetStats(0)).wait(PATIENCE_S)
    assert pair.authority.look() == Reign(3, 1)


def test_it_is_told_when_a_shard_has_a_backup_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr("psrpc.replication.primary.say", told.put)
    freight = reach(pair.harbour.address, 7, PATIENCE_S, SECRET)
    entries.send(freight, Has(next_of(freight, Copy).number))
    assert pair.primary.wait_for_backup(PATIENCE_S)
    freight.cut()
    freight.close()
    LoopbackLink(pair.primary).call(GetStats(0)).wait(PATIENCE_S)
    assert pair.authority.look() == Reign(3, 1)
    assert told.get(timeout=PATIENCE_S) == "shard 0 has no backup now"
    pair.follow()
    assert told.get(timeout=PATIENCE_S) == "shard 0 has a backup again"
    assert told.empty(), "the first one was no news"


def next_of(freight: Any, kind: type) -> Any:
    """The next message of a kind."""
    while True:
        message, _ = entries.receive(freight)
        if isinstance(message, kind):
            return message


def test_one_that_is_deposed_answers_nobody(pair: Pair) -> None:
    pair.follow()
    begin(pair.primary, pair.stage)
    held = pair.authority.look()
    assert held is not None
    pair.authority.change(held, Reign(9, 5))
    for line in list(pair.primary._lines):
        line.close()
    with pytest.raises(PeerLostError, match="another server has shard 0"):
        push(pair.primary, pair.stage, 0, 0).wait(PATIENCE_S)
    assert pair.primary.ended.wait(PATIENCE_S)
    assert pair.primary.deposed
    with pytest.raises(PeerLostError, match="another server has shard 0"):
        push(pair.primary, pair.stage, 0, 1).wait(PATIENCE_S)


def test_one_that_is_deposed_and_does_not_know_it_yet_learns_it_at_its_end(pair: Pair) -> None:
    """As one that stood still, and takes its successor's questions for the end of the job."""
    freight = reach(pair.harbour.address, 7, PATIENCE_S, SECRET)
    copy = next_of(freight, Copy)
    entries.send(freight, Has(copy.number))
    assert pair.primary.wait_for_backup(PATIENCE_S)
    pending = LoopbackLink(pair.primary).call(GetStats(0))
    pair.authority.change(Reign(2, 1, 7), Reign(3, 7))
    pair.primary.close(0.0)
    assert pair.primary.deposed
    with pytest.raises(PeerLostError, match="another server has shard 0"):
        pending.wait(PATIENCE_S)
    freight.close()


def test_a_death_is_told_when_no_failure_can_undo_it(pair: Pair) -> None:
    """Nor by one that is deposed: it may be cut off from those who live."""
    told: list[int] = []

    def tell(process: int) -> None:
        pair.primary.when_safe(partial(told.append, process))

    pair.stage.coordinator.lost = tell
    freight = reach(pair.harbour.address, 7, PATIENCE_S, SECRET)
    entries.send(freight, Has(next_of(freight, Copy).number))
    assert pair.primary.wait_for_backup(PATIENCE_S)
    pair.primary.lose(50, "it is silent")
    death = next_of(freight, Entry)
    assert told == []
    entries.send(freight, Has(death.number))
    wait_until(lambda: told == [50], PATIENCE_S, lambda: str(told))
    pair.primary.lose(51, "it is silent")
    pair.authority.change(Reign(2, 1, 7), Reign(3, 7))
    pair.primary.close(0.0)
    assert pair.primary.deposed
    assert told == [50]
    freight.close()


def test_a_difference_ends_the_job_with_both_digests(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psrpc.replication.primary.CHECK_EVERY", 1)
    pair.follow()
    begin(pair.primary, pair.stage)
    pair.other.store.flats[0][0] += 1.0
    push(pair.primary, pair.stage, 0, 0)
    assert pair.primary.ended.wait(PATIENCE_S)
    with pytest.raises(JobFailedError, match=r"digests are [0-9a-f-]{17} and [0-9a-f-]{17};"):
        push(pair.primary, pair.stage, 0, 1).wait(PATIENCE_S)
    pair.thread.join(PATIENCE_S)
    assert "digests are" in str(pair.error), "the one that differs takes over from nobody"
    assert pair.authority.look() == Reign(3, 1)


def raise_halfway(stage: Stage) -> None:
    """Let the next step fail when some of the weights are written."""

    def step(*given: Any) -> None:
        stage.store.flats[0][0] += 1.0
        raise MemoryError("no room")

    stage.store.step = step  # type: ignore[method-assign]


def test_a_half_made_step_of_the_primary_is_seen_by_nobody(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psrpc.replication.primary.CHECK_EVERY", 1)
    pair.follow()
    begin(pair.primary, pair.stage)
    pictured: list[Any] = []
    pair.stage.server.pictured = lambda cut, *more: pictured.append(cut)
    raise_halfway(pair.stage)
    for asked in (push(pair.primary, pair.stage, 0, 0), LoopbackLink(pair.primary).call(Peek(0))):
        with pytest.raises(JobFailedError, match="server 0: MemoryError: no room"):
            asked.wait(PATIENCE_S)
    assert pair.primary.ended.is_set()
    pair.primary.begin_cut(1, "folder")
    assert not pictured
    late = Follower(Stage(Asynchronous()).coordinator, 3, pair.authority, PATIENCE_S, SECRET)
    assert late.follow(PATIENCE_S, PATIENCE_S, lambda: False) is Ending.DROPPED
    assert late.core.last == -1, "it got no copy"
    pair.primary.close(PATIENCE_S)
    pair.thread.join(PATIENCE_S)
    assert (pair.ending, pair.error) == (Ending.OVER, None)


def test_a_backup_that_is_busy_says_that_it_lives() -> None:
    """Who is slow is not silent, and stays the backup."""
    pair = Pair(dead_after_s=5.0)
    busy, go_on = threading.Event(), threading.Event()
    words: queue.Queue[Any] = queue.Queue()
    hear, step = pair.primary._hear, pair.other.store.step

    def slow(*given: Any) -> Any:
        busy.set()
        go_on.wait(PATIENCE_S)
        return step(*given)

    def heard(line: Any, message: Any) -> None:
        words.put(message)
        hear(line, message)

    pair.other.store.step = slow  # type: ignore[method-assign]
    pair.primary._hear = heard  # type: ignore[method-assign]
    try:
        pair.follow()
        begin(pair.primary, pair.stage)
        # More than may lie.
        pushes = [push(pair.primary, pair.stage, 0, clock) for clock in range(40)]
        assert busy.wait(PATIENCE_S)
        pushes.append(push(pair.primary, pair.stage, 0, 40))  # it has not come with the others
        while not words.empty():
            words.get()
        while words.get(timeout=PATIENCE_S) != Beat():
            pass
        assert not pushes[-1].done()
        go_on.set()
        for pending in pushes:
            pending.wait(PATIENCE_S)
        assert pair.primary.paired
    finally:
        go_on.set()
        pair.close()


def test_a_backup_that_makes_half_a_step_leaves(pair: Pair) -> None:
    pair.follow()
    begin(pair.primary, pair.stage)
    raise_halfway(pair.other)
    for clock in range(3):
        push(pair.primary, pair.stage, 0, clock).wait(PATIENCE_S)
    pair.thread.join(PATIENCE_S)
    assert pair.ending is Ending.OVER
    assert "MemoryError: no room" in str(pair.other.server.failure)
    LoopbackLink(pair.primary).call(GetStats(0)).wait(PATIENCE_S)
    assert pair.authority.look() == Reign(3, 1)
    assert pair.primary.server.failure is None


def test_equal_ones_are_compared_in_peace(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psrpc.replication.primary.CHECK_EVERY", 1)
    pair.follow()
    begin(pair.primary, pair.stage)
    for clock in range(20):
        push(pair.primary, pair.stage, 0, clock).wait(PATIENCE_S)
    pair.primary.close(PATIENCE_S)
    pair.thread.join(PATIENCE_S)  # it may answer for an entry before it has done what that says
    assert pair.ending is Ending.OVER
    assert digest(pair.stage.coordinator) == digest(pair.other.coordinator)


def test_strangers_are_not_let_in(pair: Pair) -> None:
    with pytest.raises(AddressError, match="hung up"):
        reach(pair.harbour.address, 3, PATIENCE_S, Secret(b"another"))
    pair.harbour.close()
    with pytest.raises(AddressError):
        reach(pair.harbour.address, 3, PATIENCE_S, SECRET)


class Moving:
    """A place whose server is replaced by the next of `services`, each time that it is lost."""

    def __init__(self, *services: Any) -> None:
        self.services = list(services)
        self.reached: list[Losing] = []
        self.gone = False

    def reach(self, buffers: Buffers | None, layout: ShardLayout) -> Losing:
        if not self.services:
            raise PeerLostError("nobody reigns")
        link = Losing(self.services.pop(0))
        if buffers is not None:
            link._buffers = buffers
        self.reached.append(link)
        return link

    def moved(self) -> bool:
        return self.reached[-1].silent and bool(self.services)

    def over(self) -> bool:
        return self.gone

    def leave(self, link: Any) -> None:
        link.left = True


class Losing(LoopbackLink):
    """A link whose server may be lost, or silent, at any exchange."""

    def __init__(self, service: Any) -> None:
        super().__init__(service)
        self.lost = self.silent = self.left = False
        self.sent: list[float] = []

    def exchange(self, request: Any, *, send: bool, land: bool, at_once: bool = True) -> Any:
        if self.lost:
            raise PeerLostError("it died")
        self.sent.append(float(self._buffers.gradients[0][0]))
        if self.silent:
            return LoopbackLink(Silent()).call(request)
        return super().exchange(request, send=send, land=land, at_once=at_once)


class Silent:
    def handle(self, *anything: Any) -> None: ...


@pytest.mark.parametrize("how", ["lost", "silent"])
def test_a_link_sends_again_what_was_under_way(how: str) -> None:
    first, second = Stage(Asynchronous()), Stage(Asynchronous())
    for stage in (first, second):
        begin(stage.coordinator, stage)
    place = Moving(first.coordinator, second.coordinator)
    link = FailoverLink(place, PATIENCE_S)
    buffers = link.open(first.layout)
    for flat in buffers.gradients:
        flat.fill_(3.0)
    setattr(place.reached[0], how, True)
    request = Push(0, 0, key_of(0, 0), samples=1)
    pending = link.exchange(request, send=True, land=True, at_once=False)
    buffers.turn()  # the other gradients are filled meanwhile
    for flat in buffers.gradients:
        flat.fill_(7.0)
    assert pending.wait(PATIENCE_S)[0] == Stepped(1, 1)
    assert place.reached[1].sent == [3.0]
    assert place.reached[0].left
    assert buffers.side == 1
    assert all(map(torch.equal, buffers.weights, second.store.flats))
    assert second.server.core.stats().updates_applied == 1


def test_a_link_gives_up_in_the_end_and_says_so_at_once_from_then_on() -> None:
    stage = Stage(Asynchronous())
    begin(stage.coordinator, stage)
    place = Moving(stage.coordinator)
    link = FailoverLink(place, 0.1)
    link.open(stage.layout)
    place.reached[0].lost = True
    for _ in range(2):
        with pytest.raises(PeerLostError, match="nobody reigns"):
            link.exchange(Pull(0, 0), send=False, land=True).wait()


def test_a_link_waits_for_nobody_when_the_job_is_over() -> None:
    stage = Stage(Asynchronous())
    begin(stage.coordinator, stage)
    place = Moving(stage.coordinator)
    link = FailoverLink(place, 1e9)
    link.open(stage.layout)
    place.reached[0].lost = place.gone = True
    with pytest.raises(PeerLostError, match="nobody reigns"):
        link.exchange(Pull(0, 0), send=False, land=True).wait()


def test_what_a_server_answers_is_no_loss() -> None:
    stage = Stage(Asynchronous())
    begin(stage.coordinator, stage)
    link = FailoverLink(Moving(stage.coordinator), PATIENCE_S)
    link.open(stage.layout)
    with pytest.raises(FencedError):
        link.exchange(Pull(9, 0), send=False, land=True).wait()


def test_a_state_is_made_of_listed_types_alone() -> None:
    """Whoever sends it: a primary has proved who it is, and could still have been taken over."""
    stage = Stage(Asynchronous())
    state, tensors, release = capture(stage.coordinator)
    release()
    restore(Stage(Asynchronous()).coordinator, state, tensors)
    for poison in (Bomb(), os.system, collections.namedtuple, print):
        with pytest.raises(ProtocolError, match="is no part of a server's state"):
            restore(stage.coordinator, {**state, "shard": pickle.dumps(poison)}, tensors)
    assert not bomb.went_off


def test_an_heir_hears_farewells_from_the_workers_alone() -> None:
    """One that was taken for dead, and came back, may have been called gone by the coordinator."""
    node = ReplicaNode.__new__(ReplicaNode)
    heard: list[int] = []
    primary: Any = SimpleNamespace(handle=lambda bye, *more: heard.append(bye.worker))
    node._heir, node._departed, node._primary = True, set(), primary
    finished = SimpleNamespace(finished=True)
    core = SimpleNamespace(members=finished, processes=[2, 3, 4], worker_of=lambda process: process)
    coordinator: Any = SimpleNamespace(core=core, look=lambda asks: asks(core))
    said = {gone(worker_name(2)): FAREWELL, gone(worker_name(3)): ""}
    store: Any = SimpleNamespace(heard=lambda key, hush: said.get(key))
    node._hear_farewells(coordinator, store)
    assert heard == [2]
