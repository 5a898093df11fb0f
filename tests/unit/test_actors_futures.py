"""Futures that are cheap until somebody looks at them, and calls that travel in columns."""

from __future__ import annotations

import concurrent.futures as cf
import random
import threading
from typing import Any

import pytest

from psrpc.actors import messages as m
from psrpc.actors.future import Future, settle_all
from psrpc.actors.packing import pack_error

PATIENCE_S = 60.0


class Giver:
    """The way to nowhere."""

    def __init__(self) -> None:
        self.given_up: list[Future] = []

    def give_up(self, future: Future) -> None:
        self.given_up.append(future)


def some(count: int = 1) -> list[Future]:
    return [Future(Giver(), ("method", (n,), ())) for n in range(count)]


def test_all_that_a_future_of_the_standard_library_has_is_there() -> None:
    (future,) = some()
    plain: cf.Future[int] = cf.Future()
    for name, value in vars(plain).items():
        assert type(getattr(future, name)) is type(value), name
    with pytest.raises(AttributeError):
        _ = future.no_such_thing


@pytest.mark.parametrize("look_first", [False, True])
def test_a_future_is_one_of_the_standard_library(look_first: bool) -> None:
    done, failed, cancelled, told = some(4)
    heard: list[cf.Future[Any]] = []
    if look_first:
        for future in (done, failed, cancelled, told):
            future.add_done_callback(heard.append)
            assert not future.done()
    settle_all([done], [3])
    failed.settle(m.RAISED, pack_error(ValueError("no")))
    assert cancelled.cancel()
    told.fail(KeyError("gone"))
    assert not done.cancel()
    assert cancelled.cancel()
    settle_all([cancelled], [4])  # its answer was on the way
    cancelled.settle(m.CANCELLED, None)
    assert done.result() == 3
    assert done.exception() is None
    with pytest.raises(ValueError, match="no"):
        failed.result(0)
    with pytest.raises(KeyError):
        told.result(0)
    with pytest.raises(cf.CancelledError):
        cancelled.result(0)
    assert cancelled.route.given_up == [cancelled]  # type: ignore[attr-defined]
    if not look_first:
        for future in (done, failed, cancelled, told):
            future.add_done_callback(heard.append)
    assert set(heard) == {done, failed, cancelled, told}
    assert cf.wait([done, failed, cancelled, told], 0).not_done == set()
    assert len(list(cf.as_completed([done, failed, cancelled, told], 0))) == 4


def test_whoever_begins_to_look_while_futures_are_settled_misses_none() -> None:
    count = 20_000
    futures = some(count)
    begun = threading.Barrier(4)
    cancelled: list[int] = []

    def settle() -> None:
        begun.wait()
        for place in range(0, count, 50):
            settle_all(futures[place : place + 50], range(place, place + 50))

    def give_up() -> None:
        begun.wait()
        chance = random.Random(1)
        cancelled.extend(n for n in range(count) if chance.random() < 0.1 and futures[n].cancel())

    def look(waits: Any) -> None:
        begun.wait()
        for place in range(0, count, 20):
            waits(futures[place : place + 20])

    looks = (
        lambda some: cf.wait(some, PATIENCE_S),
        lambda some: list(cf.as_completed(some, PATIENCE_S)),
    )
    threads = [threading.Thread(target=act) for act in (settle, give_up)]
    threads += [threading.Thread(target=look, args=(waits,)) for waits in looks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert [n for n in range(count) if futures[n].cancelled()] == cancelled
    assert all(futures[n].result(0) == n for n in set(range(count)) - set(cancelled))


@pytest.mark.parametrize("arity", [0, 1, 3])
def test_calls_that_are_alike_go_in_one_message(arity: int) -> None:
    calls: list[tuple[Any, Any, Any]] = [(7, (n,) * arity, ()) for n in range(100)]
    (message,) = m.calls_together(5, 1, calls)
    assert list(m.calls_apart(message)) == [(5 + n, 1, *call) for n, call in enumerate(calls)]


@pytest.mark.parametrize(
    "other", [("other", (1,), ()), (7, (1, 2), ()), (7, (1,), {"a": 1}), (7, (b"", []), None)]
)
def test_calls_that_are_not_alike_go_as_they_are(other: Any) -> None:
    calls = [(7, (n,), ()) for n in range(10)] + [other]
    messages = m.calls_together(5, 1, calls)
    assert messages == [(5 + n, 1, *call) for n, call in enumerate(calls)]


def test_plain_answers_go_together_and_others_as_they_are() -> None:
    answers = [(n, m.RAISED if n % 3 == 0 else m.PLAIN, n * 2) for n in range(30)]
    *others, (number, status, (numbers, values)) = m.answers_together(answers)
    assert others == [answer for answer in answers if answer[1] == m.RAISED]
    assert (number, status) == (0, m.ALL_PLAIN)
    assert list(zip(numbers, values, strict=True)) == [
        (number, value) for number, status, value in answers if status == m.PLAIN
    ]
    unwanted = [(0, m.PLAIN, None)] * 20  # of calls whose answers nobody waits for
    assert m.answers_together(unwanted) == unwanted
