"""A tuple that any of several owners may have: who is asked for it, and what an error leaves."""

from __future__ import annotations

import pytest

from psrpc.errors import AddressError, PeerLostError, PsrpcError
from psrpc.space.connection import Question, Reply
from psrpc.space.several import Several, Ways
from psrpc.space.words import Said

GIVEN = Reply(Said.GIVEN, ("a tuple",))
MISSED = Reply(Said.MISSED)


class Owners:
    """Owners that answer when the test says so; `has` answer a look at once."""

    def __init__(self, has: tuple[int, ...] = ()) -> None:
        self.looks: dict[int, Question] = {}
        self.takes: dict[int, Question] = {}
        self.withdrawn: list[int] = []
        self.given_back: list[int] = []
        self.lost: dict[tuple[str, int], PsrpcError] = {}
        self._has = has

    def look(self, shard: int, _: float | None, question: Question) -> None:
        if (error := self.lost.get(("look", shard))) is not None:
            raise error
        self.looks[shard] = question
        if shard in self._has:
            question.told(GIVEN)

    def take(self, shard: int, question: Question) -> None:
        if (error := self.lost.get(("take", shard))) is not None:
            raise error
        self.takes[shard] = question

    def withdraw(self, question: Question) -> None:
        self.withdrawn += [shard for shard, look in self.looks.items() if look is question]

    def ways(self) -> Ways:
        return Ways(
            self.look,
            self.take,
            self.withdraw,
            lambda shard, _: self.given_back.append(shard),
            lambda _, reply: reply.value,
        )


def test_an_owner_that_cannot_be_asked_leaves_nothing_asked_and_nothing_taken() -> None:
    owners = Owners(has=(0,))
    owners.lost["look", 2] = AddressError("nobody there")
    several = Several([0, 1, 2], owners.ways(), None)
    with pytest.raises(AddressError, match="nobody there"):
        several.start()
    assert (owners.takes, owners.withdrawn) == ({}, [1])
    assert several.cancelled()
    owners.looks[1].told(GIVEN)  # its answer was on the way
    assert owners.takes == {}


def test_nothing_is_taken_before_all_are_asked() -> None:
    owners = Owners(has=(0, 1))
    several = Several([0, 1], owners.ways(), None).start()
    assert list(owners.takes) == [0]
    owners.takes[0].told(GIVEN)
    assert several.result(0) == ("a tuple",)
    assert owners.given_back == []


def test_all_may_have_none_before_all_are_asked() -> None:
    owners = Owners()
    owners.look = lambda shard, _, question: question.told(MISSED)  # type: ignore[method-assign]
    with pytest.raises(TimeoutError, match="within 0 s"):
        Several([0, 1], owners.ways(), 0.0).start().result(0)


@pytest.mark.parametrize("asks", ["look", "take"])
def test_an_owner_that_is_lost_meanwhile_is_the_future_s_error(asks: str) -> None:
    owners = Owners(has=(0, 1))
    several = Several([0, 1], owners.ways(), None).start()
    owners.lost[asks, 0 if asks == "look" else 1] = PeerLostError("it is gone")
    owners.takes[0].told(MISSED)  # on a connection that must go on: raises nothing
    with pytest.raises(PeerLostError, match="it is gone"):
        several.result(0)


def test_what_comes_for_a_future_that_was_given_up_goes_back() -> None:
    owners = Owners(has=(1,))
    several = Several([0, 1], owners.ways(), None).start()
    assert several.cancel()
    assert owners.withdrawn == [0]
    owners.takes[1].told(GIVEN)
    assert owners.given_back == [1]
    assert several.cancelled()
