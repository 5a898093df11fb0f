"""Answers of several shards, each of which must be taken."""

from __future__ import annotations

from typing import Any

import pytest

from psrpc.errors import FencedError
from psrpc.exchange import Exchange


class Fenced:
    """A shard's answer, that the worker is taken for dead; it waits in its socket till taken."""

    def __init__(self) -> None:
        self.taken = 0

    def arrive(self, timeout_s: float | None = None) -> Any:
        self.taken += 1
        raise FencedError("this worker is taken for dead")

    wait = arrive


class Link:
    def __init__(self, answer: Fenced) -> None:
        self._answer = answer

    def exchange(self, *_: object, **__: object) -> Fenced:
        return self._answer


@pytest.mark.parametrize("asks", ["weights", "peek"])
def test_no_answer_is_left_for_the_next_question_when_one_shard_says_fenced(asks: str) -> None:
    answers = [Fenced(), Fenced(), Fenced()]
    exchange = Exchange.__new__(Exchange)
    exchange._links = [Link(answer) for answer in answers]  # type: ignore[misc]
    exchange._pull_of = lambda server: None  # type: ignore[method-assign, assignment, return-value]
    request: Any = None
    with pytest.raises(FencedError):
        exchange._ask_for_weights() if asks == "weights" else exchange._peek(request)
    assert [answer.taken for answer in answers] == [1, 1, 1]
