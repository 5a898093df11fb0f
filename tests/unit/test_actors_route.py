"""The way to an actor while its connection ends, and who waits for room: without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from psrpc.actors import messages as m
from psrpc.actors.future import Future
from psrpc.actors.route import Line, Loss, Route
from psrpc.core.placement import Want
from psrpc.errors import ActorLostError
from tests.processes import wait_until

PATIENCE_S = 10.0


class Connection:
    """What a line sends on."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.got: Any = None
        self.over: Any = None

    def send(self, message: Any, at_once: bool = True) -> None:
        self.sent.append(message)

    def send_all(self, messages: Any, at_once: bool = True) -> None:
        self.sent += messages

    def answer(self, *answers: m.Answer) -> None:
        self.got(self, list(answers))


class Office:
    """A client without a head: it notes what is said to that, and its mail has no thread."""

    def __init__(self) -> None:
        self.closed = False
        self.thread: threading.Thread | None = None
        self.said: list[Any] = []
        self.killed: list[int] = []
        self.dropped: list[int] = []

    @property
    def mail(self) -> Any:
        return self

    def connect(self, address: str) -> Any:
        return Connection()

    def say(self, message: Any) -> None:
        self.said.append(message)

    def kill(self, actor: int) -> None:
        self.killed.append(actor)

    def drop(self, actor: int) -> None:
        self.dropped.append(actor)

    def forget(self, address: str, line: Line) -> None:
        pass


class Way(Route):
    """A route that says when it has heard that its connection is lost."""

    def __init__(self, office: Any, **options: Any) -> None:
        super().__init__(office, 1, m.Spec("Thing", b"", (b"", []), Want(), **options))
        self.told = threading.Event()

    def lost(self, futures: list[Future], alone: bool) -> None:
        self.told.set()
        super().lost(futures, alone)


class Slow(list[Future]):
    """Jobs at which whoever sends them stops for a moment."""

    def __init__(self, futures: list[Future], moment: Callable[[], None]) -> None:
        super().__init__(futures)
        self._moment = moment

    def __iter__(self) -> Iterator[Future]:
        self._moment()
        return super().__iter__()


def connected(**options: Any) -> tuple[Way, Any]:
    """A route to an actor that is there, and its connection."""
    office: Any = Office()
    way = Way(office, **options)
    line = Line(office, "somewhere")
    way.located(1, line)
    return way, line._post


def call(way: Route) -> Future:
    return Future(way, ("do", (), ()))


@pytest.mark.parametrize("together", [False, True])
def test_calls_made_while_their_connection_ends_go_where_the_actor_is_then(together: bool) -> None:
    way, connection = connected()
    ends = threading.Thread(target=lambda: connection.over(connection))

    def moment() -> None:  # the sender holds the route's lock, and has seen the line
        if not way.told.is_set():
            ends.start()
        assert way.told.wait(PATIENCE_S)

    futures = [call(way) for _ in range(3)]
    if together:
        assert way.post_all(Slow(futures, moment))
    else:
        del futures[1:]
        spec, way.spec = way.spec, Stops(moment)  # type: ignore[assignment]
        way.post(futures[0])
        way.spec = spec
    ends.join(PATIENCE_S)
    assert not ends.is_alive()
    assert way._office.said == [m.Locate(1, 1)]  # type: ignore[attr-defined]
    line = Line(way._office, "elsewhere")
    way.located(2, line)
    again: Any = line._post
    assert [message[1:] for message in again.sent] == [(1, "do", (), ())] * len(futures)
    again.answer(*((message[0], m.PLAIN, 5) for message in again.sent))
    assert [future.result(0) for future in futures] == [5] * len(futures)
    assert way.open_calls == 0


class Stops:
    """Options of an actor; whoever asks how many calls it takes stops for a moment."""

    def __init__(self, moment: Callable[[], None]) -> None:
        self._moment = moment
        self.title, self.max_retries = "Thing", 0

    @property
    def max_pending(self) -> int:
        self._moment()
        return 100


def test_an_actor_whose_handle_ends_while_its_connection_does_is_retired_afterwards() -> None:
    way, connection = connected()
    line = way.line
    assert line is not None
    line.ended = True  # nobody was told yet
    way.retire()
    connection.over(connection)
    assert way.told.is_set()
    line = Line(way._office, "elsewhere")
    way.located(2, line)
    again: Any = line._post
    assert [message[2] for message in again.sent] == [m.RETIRE]


class Watched(threading.Condition):
    """Tells how many threads are waiting."""

    def __init__(self, lock: Any) -> None:
        super().__init__(lock)
        self.waiting = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting += 1  # its lock is held
        try:
            return super().wait(timeout)
        finally:
            self.waiting -= 1


def full(callers: int) -> tuple[Way, Any, list[threading.Thread], list[Future]]:
    """A route to an actor that takes one call and has it; so many threads wait to make another."""
    way, connection = connected(max_pending=1)
    room = way._room = Watched(way._lock)
    made = [way.post(call(way))]
    threads = [
        threading.Thread(target=lambda: made.append(way.post(call(way))), daemon=True)
        for _ in range(callers)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: room.waiting == callers, PATIENCE_S, lambda: f"{room.waiting} wait")
    return way, connection, threads, made


def test_all_who_wait_for_room_get_it_in_their_turn() -> None:
    way, connection, threads, made = full(3)
    room: Any = way._room

    def settled() -> bool:
        """One more call was made, and who found no room has gone back to wait for it."""
        with way._lock:
            return len(connection.sent) == count and room.waiting == 4 - count

    for count in range(1, 5):
        wait_until(settled, PATIENCE_S, lambda: f"{len(connection.sent)} calls were made")
        connection.answer((connection.sent[-1][0], m.PLAIN, count))
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert sorted(future.result(0) for future in made) == [1, 2, 3, 4]


def test_a_call_that_is_given_up_before_it_is_sent_makes_room() -> None:
    office: Any = Office()
    way = Way(office, max_pending=1)  # it is not known where the actor is
    room = way._room = Watched(way._lock)
    first = way.post(call(way))
    other = threading.Thread(target=lambda: way.post(call(way)), daemon=True)
    other.start()
    wait_until(lambda: room.waiting == 1, PATIENCE_S, lambda: "nobody waits")
    assert first.cancel()
    other.join(PATIENCE_S)
    assert not other.is_alive()


def test_answers_to_calls_of_an_actor_that_is_gone_are_answers_to_nobody() -> None:
    way, connection = connected()
    other = Way(way._office, max_pending=100)
    other.located(1, way.line)  # type: ignore[arg-type]
    lost, kept = [[each.post(call(each)) for _ in range(3)] for each in (way, other)]
    way.gone(ActorLostError("it was killed"))
    assert [type(future.exception(0)) for future in lost] == [ActorLostError] * 3
    numbers = tuple(message[0] for message in connection.sent)
    connection.answer((0, m.ALL_PLAIN, (numbers, tuple(range(6)))))
    assert [future.result(0) for future in kept] == [3, 4, 5]
    assert (way.open_calls, other.open_calls) == (0, 0)
    connection.over(connection)
    assert not way.told.is_set()


def test_an_actor_that_was_killed_has_no_call_made_again() -> None:
    way, connection = connected(max_restarts=1, max_retries=1)
    line: Any = way.line
    made = way.post(call(way))
    taken, line.waiting = line.waiting, {}  # the connection ends, and this is not told yet
    way.gone(ActorLostError("it was killed"))
    line.waiting = taken
    connection.over(connection)
    assert type(made.exception(0)) is ActorLostError
    assert way.open_calls == 0


@pytest.mark.parametrize("busy", [1, 2])
def test_a_pool_hears_what_was_unanswered_and_what_was_not_sent(busy: int) -> None:
    """Of two members in one process, one or both of which have a job when it dies."""
    way, connection = connected()
    other = Way(way._office)
    other.located(1, way.line)  # type: ignore[arg-type]
    losses: list[Loss] = []
    for each in (way, other):
        each.group, each.on_loss = "a pool", losses.append
    jobs = [each.post(call(each)) for each in (way, other)[:busy]]
    connection.over(connection)
    assert (way.open_calls, other.open_calls) == (1, busy - 1), "they are not given up yet"
    assert way.adrift
    late = way.post(call(way))
    error = ActorLostError("it was killed")
    for each in (way, other):
        each.gone(error, lived=True)
    alone = busy == 1
    assert losses == [
        Loss(jobs[:1], [late], error, lived=True, alone=alone),
        Loss(jobs[1:], [], error, lived=True, alone=alone),
    ]
