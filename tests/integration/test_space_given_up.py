"""What is left of a tuple space's questions, connections and users that were given up: nothing."""

from __future__ import annotations

import gc
import math
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from psrpc.errors import AddressError, PeerLostError, SpaceTimeoutError
from psrpc.space import ANY, Space, SpaceServer
from psrpc.space.connection import Connection
from tests.processes import PATIENCE_S, Bench, wait_until
from tests.spaces import owner as owner
from tests.spaces import result
from tests.spaces import space as space


def all_is_answered(space: Space) -> None:
    """Wait until no connection of it has a question."""
    lines = tuple(space._connections.values())
    wait_until(
        lambda: not any(line._pending for line in lines),
        PATIENCE_S,
        lambda: f"still asked: {[line._pending for line in lines]}",
    )


class Answers:
    """Keeps a connection's answers on the way until `come`."""

    def __init__(self, space: Space, patch: pytest.MonkeyPatch) -> None:
        line = space._connection(0)
        self._come = threading.Event()
        hear = line._hear

        def late(*reply: Any) -> None:
            assert self._come.wait(PATIENCE_S)
            hear(*reply)

        patch.setattr(line, "_hear", late)

    def come(self) -> None:
        self._come.set()


LATER: list[Callable[[Space], Future[Any]]] = [
    lambda space: space.read_async(("one",)),
    lambda space: space.take_async(("one",)),
    lambda space: space.take_async(("one",), lease_s=math.inf),
]
NOW: list[Callable[[Space], Any]] = [
    lambda space: space.read(("one",)),
    lambda space: space.try_read(("one",)),
    lambda space: space.take(("one",)),
    lambda space: space.try_take(("one",), lease_s=math.inf),
]


@pytest.mark.parametrize("ask", LATER)
def test_a_future_that_is_cancelled_leaves_its_tuple_there_once(
    space: Space, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Space], Future[Any]]
) -> None:
    space.write(("one",))
    answers = Answers(space, monkeypatch)
    future = ask(space)
    assert future.cancel()
    answers.come()
    all_is_answered(space)
    assert space.count(("one",)) == 1
    assert space.about()["leased"] == 0


@pytest.mark.parametrize("ask", NOW)
def test_a_wait_that_is_interrupted_leaves_its_tuple_there_once(
    space: Space, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Space], Any]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    space.write(("one",))
    answers = Answers(space, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ask(space)
    answers.come()
    all_is_answered(space)
    assert space.count(("one",)) == 1
    assert space.about()["leased"] == 0


def test_an_owner_that_cannot_be_asked_costs_the_others_no_tuple(owner: SpaceServer) -> None:
    dead = SpaceServer().start()
    addresses = [owner.address, dead.address]
    dead.close()
    with Space(owner.address) as one, Space(addresses) as both:
        for ask in (both.take_async, both.read_async, both.take):
            with pytest.raises(AddressError, match="no tuple space at"):
                ask((ANY, int))
        one.write(("a tuple", 1))
        all_is_answered(both)
        assert one.count((ANY, int)) == 1
        assert one.about()["waiting"] == 0


def test_a_question_that_is_withdrawn_is_forgotten(space: Space) -> None:
    futures = [space.take_async(("never", n)) for n in range(5)]
    futures += [space.read_async(("never", n)) for n in range(5)]
    assert all(future.cancel() for future in futures)
    all_is_answered(space)
    assert space._connection(0).over
    assert space.about()["waiting"] == 0


def test_who_waited_for_several_owners_leaves_no_question(owner: SpaceServer) -> None:
    with SpaceServer() as second, Space([owner.address, second.address]) as space:
        for ask in (space.take, space.read):
            found: Future[Any] = Future()
            taker = threading.Thread(
                target=lambda ask=ask, found=found: found.set_result(ask((ANY,)))
            )
            taker.start()
            wait_until(lambda: space.about()["waiting"] == 2, PATIENCE_S, lambda: "nobody asks")
            space.write(("a tuple",))
            assert result(found) == ("a tuple",)
            taker.join(PATIENCE_S)
            all_is_answered(space)
            assert all(line.over for line in space._connections.values())


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """All connections that are begun, in their order."""
    begun = []
    start = Connection.start

    def listed(line: Connection) -> Connection:
        begun.append(line)
        return start(line)

    monkeypatch.setattr(Connection, "start", listed)
    return begun


def test_an_owner_that_is_lost_is_not_connected_to_only_to_withdraw(
    owner: SpaceServer, connected: list[Connection]
) -> None:
    with SpaceServer() as second, Space([owner.address, second.address]) as space:
        futures = [space.take_async((ANY, int)) for _ in range(20)]
        second.close()
        for future in futures:
            with pytest.raises(PeerLostError, match="is lost"):
                result(future)
        first = connected[0]
        wait_until(lambda: first.over, PATIENCE_S, lambda: "the other one is still asked")
        assert first.usable
        assert len(connected) == 2


def test_an_interrupt_while_an_owner_is_lost_is_only_that(
    space: Space,
    connected: list[Connection],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupt(line: Connection, _: Any) -> None:
        line.close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            space.take(("never",))
    assert len(connected) == 1
    assert caplog.text == ""


def copy_of(space: Space) -> Space:
    """As another process has it, to which it was sent."""
    copy: Space = pickle.loads(pickle.dumps(space))
    return copy


def is_let_go(owner: SpaceServer, space: Space, spent: Connection) -> None:
    """Wait until only `space` is left of the owner's users, and that one's thread has ended."""
    wait_until(lambda: len(owner._clients) == 1, PATIENCE_S, lambda: "others are connected")
    spent._thread.join(PATIENCE_S)
    assert not spent._thread.is_alive()
    assert space.about()["leased"] == 0


def misses(space: Space) -> None:
    with pytest.raises(SpaceTimeoutError):
        space.take(("never",), 0.0)


USES: list[Callable[[Space], Any]] = [
    lambda space: space.count(("a tuple",)),
    lambda space: space.take(("a tuple",), lease_s=math.inf),
    lambda space: result(space.take_async(("a tuple",), lease_s=math.inf)),
    lambda space: space.watch(("a tuple",)),
    lambda space: space.take_async(("never",)).cancel(),
    misses,
]


@pytest.mark.parametrize("use", USES)
def test_a_space_that_nobody_has_any_more_ends(
    owner: SpaceServer, space: Space, connected: list[Connection], use: Callable[[Space], Any]
) -> None:
    space.write(("a tuple",))
    copy = copy_of(space)
    use(copy)
    assert len(owner._clients) == 2
    del copy
    gc.collect()
    is_let_go(owner, space, connected[1])
    assert space.count(("a tuple",)) == 1


KEPT: list[Callable[[Space], tuple[Any, Callable[[Any], object]]]] = [
    lambda space: (space.take(("a tuple",), lease_s=math.inf), lambda taken: taken.give_back()),
    lambda space: (space.watch(("other",)), lambda watch: watch.next(PATIENCE_S)),
    lambda space: (space.read_async(("other",)), result),
]


@pytest.mark.parametrize("begin", KEPT)
def test_what_is_still_wanted_of_a_space_keeps_it(
    owner: SpaceServer,
    space: Space,
    connected: list[Connection],
    begin: Callable[[Space], tuple[Any, Callable[[Any], object]]],
) -> None:
    space.write(("a tuple",))
    begun, end = begin(copy_of(space))
    gc.collect()
    space.write(("other",))
    assert len(owner._clients) == 2
    end(begun)
    del begun, end
    gc.collect()
    is_let_go(owner, space, connected[1])
    assert space.count(("a tuple",)) == 1


def test_a_space_that_nobody_has_any_more_writes_what_it_was_given(
    owner: SpaceServer, space: Space, connected: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    space.write(("zeroth",))
    copy = copy_of(space)
    answers = Answers(copy, monkeypatch)
    copy.write_async(("first",))
    written = copy.write_async(("second",))  # waits for the first one's answer
    del copy
    gc.collect()
    answers.come()
    result(written)
    del written
    monkeypatch.undo()
    is_let_go(owner, space, connected[1])
    assert space.count((str,)) == 3


FORKED = """
import gc, os, sys
import psrpc

space = psrpc.Space(sys.argv[1])
space.write(("one",))
taken = space.take(("one",), lease_s=99)
child = os.fork()
if child == 0:
    del taken, space
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
taken.give_back()
print(space.count(("one",)))
"""


def test_a_child_that_drops_a_space_leaves_its_parent_s_alone(
    owner: SpaceServer, bench: Bench
) -> None:
    bench.write("forked.py", FORKED)
    ended = bench.run("forked.py", owner.address)
    assert (ended.code, ended.out, ended.err) == (0, "1\n", "")


def test_a_watch_of_a_lost_owner_ends_at_the_others(
    owner: SpaceServer, connected: list[Connection]
) -> None:
    with SpaceServer() as second, Space([owner.address, second.address]) as space:
        watch = space.watch((ANY,))
        second.close()
        with pytest.raises(PeerLostError):
            watch.next(PATIENCE_S)
        watch.close()
        assert connected[0].over
        assert len(connected) == 2


def test_a_watch_that_cannot_begin_leaves_nothing(
    owner: SpaceServer, connected: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    with SpaceServer() as second, Space([owner.address, second.address]) as space:
        space.about()

        def lost(*_: Any, **__: Any) -> Any:
            raise PeerLostError("it is gone")

        monkeypatch.setattr(connected[1], "ask", lost)
        with pytest.raises(PeerLostError, match="it is gone"):
            space.watch((ANY,))
        assert connected[0].over
