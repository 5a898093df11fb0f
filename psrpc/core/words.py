"""What workers said last: a repeated word is answered like the first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from psrpc.core.decisions import Answer, Decision, Same, Token
from psrpc.errors import FencedError, encode
from psrpc.messages import Done, Failure, Reply


@dataclass
class Word:
    """A numbered request, and its answer once there is one."""

    serial: int
    token: Token
    reply: Reply | None = None

    def again(self, serial: int, token: Token) -> Decision:
        """The same word, or an older one, has come again under another token."""
        if serial < self.serial:
            return Answer(token, Done(), "an old word, answered before")
        if self.reply is None:
            return Same(token, self.token, "said before, and still open")
        return Answer(token, self.reply, "said before, and answered so")


class Words:
    """Every worker's latest word to the coordinator."""

    def __init__(self) -> None:
        self._words: dict[int, Word] = {}

    def repeated(
        self, worker: int, serial: int, token: Token, live: Collection[int]
    ) -> Decision | None:
        """Take a word in, if it is new and its worker one of `live`; else what to say to it."""
        word = self._words.get(worker)
        if word is not None and serial <= word.serial:
            return word.again(serial, token)
        if worker not in live:
            return refuse(worker, token, "it is taken for dead")
        self._words[worker] = Word(serial, token)
        return None

    def open(self, worker: int) -> Token | None:
        """The token of a worker's latest word, if that is not answered yet."""
        word = self._words.get(worker)
        return word.token if word is not None and word.reply is None else None

    def answer(self, worker: int, reply: Reply, reason: str) -> Decision:
        """Answer a worker's latest word."""
        word = self._words[worker]
        word.reply = reply
        return Answer(word.token, reply, reason)

    def lose(self, worker: int, why: str) -> list[Decision]:
        """Forget a worker that is dead; its open word is refused."""
        word = self._words.pop(worker, None)
        return [refuse(worker, word.token, why)] if word is not None and word.reply is None else []


def refuse(number: int, token: Token, why: str) -> Answer:
    """The answer to a worker or process that is taken for dead."""
    text = f"worker {number} does not belong to the job any more ({why})"
    return Answer(token, Failure(encode(FencedError(text))), why)
