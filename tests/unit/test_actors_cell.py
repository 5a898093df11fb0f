"""An actor in its runner, and when its answers are sent: without a head or processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psrpc.actors import messages as m
from psrpc.actors.packing import pack, pack_definition
from psrpc.actors.runner import Runner
from psrpc.core.placement import Want


class Connection:
    """Notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any, at_once: bool = True) -> None:
        self.sent.append(message)


class Now:
    """Threads that do all at once."""

    def take(self, job: Callable[[], None]) -> None:
        job()


class Saving:
    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    def fail(self) -> None:
        raise ValueError(f"at {self.value}")

    def save_state(self) -> int:
        return self.value


class Usual:
    def add(self, amount: int) -> int:
        return amount


class Place:
    """A runner with an actor, the head's connection and a caller's."""

    def __init__(self, kind: type) -> None:
        self.head, self.caller = Connection(), Connection()
        runner: Any = Runner("nowhere")
        runner._head, runner._threads = self.head, Now()
        self.runner = runner
        spec = m.Spec("Thing", pack_definition(kind), pack(((), {})), Want())
        self.hear(m.Embody(1, 1, spec, None))

    def hear(self, *messages: Any) -> None:
        self.runner._told(self.head, list(messages))

    def call(self, number: int, method: str, *args: Any) -> None:
        self.runner._got(self.caller, [(number, 1, method, args, ())])

    @property
    def answers(self) -> list[tuple[int, int]]:
        return [(number, status) for number, status, _ in self.caller.sent]


def test_an_answer_waits_until_the_head_has_the_state_that_goes_with_it() -> None:
    place = Place(Saving)
    place.call(1, "add", 5)
    place.call(2, "add", 5)
    place.call(3, "fail")  # saves nothing, but must not be heard before what was saved
    saved = [message for message in place.head.sent if isinstance(message, m.Saved)]
    assert saved == [m.Saved(1, pack(5)), m.Saved(1, pack(10))]
    assert place.answers == []
    place.hear(m.Kept())
    assert place.answers == [(1, m.PLAIN)]
    place.hear(m.Kept())
    assert place.answers == [(1, m.PLAIN), (2, m.PLAIN), (3, m.RAISED)]
    place.call(4, "fail")
    assert place.answers[3:] == [(4, m.RAISED)]


def test_an_answer_of_an_actor_without_a_state_waits_for_nothing() -> None:
    place = Place(Usual)
    place.call(1, "add", 5)
    assert place.answers == [(1, m.PLAIN)]
