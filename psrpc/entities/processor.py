"""The actors that read documents, and the one that lets them ask a model in turn."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from psrpc.clock import SystemClock
from psrpc.entities.llm import Endpoint, LlmProcessor, Usage
from psrpc.entities.patience import RateLimit
from psrpc.entities.rules import recognise
from psrpc.entities.words import Document, Result


@dataclass(frozen=True)
class Done:
    """A document's result, and what was spent on it."""

    result: Result
    usage: Usage

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"result": self.result.as_json(), "usage": asdict(self.usage)}

    @classmethod
    def of_json(cls, line: dict[str, Any]) -> Done:
        """What `as_json` told."""
        return cls(Result.of_json(line["result"]), Usage(**line["usage"]))


class Turnstile:
    """An actor that all processors ask before they call a model: one rate limit for all of them.

    What an endpoint asks of one of them (Retry-After) holds for all.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._limit = RateLimit(per_minute)
        self._clock = SystemClock()

    def book(self) -> float:
        """Take the next place; how many seconds it is away."""
        return self._limit.book(self._clock.now())

    def hold(self, wait_s: float) -> None:
        """Nobody may call for so many seconds."""
        self._limit.hold(self._clock.now(), wait_s)


class Turn:
    """A processor's way to the turnstile; see `patience.Limit`."""

    def __init__(self, turnstile: Any) -> None:
        self._turnstile = turnstile

    def book(self) -> float:
        """Take the next place; how many seconds it is away. Blocks for the answer."""
        wait_s: float = self._turnstile.book.remote().result()
        return wait_s

    def hold(self, wait_s: float) -> None:
        """Nobody may call for so many seconds."""
        self._turnstile.hold.remote(wait_s)


class Processor:
    """An actor that finds entities, by a model or (without `endpoint`) by the built-in rules."""

    def __init__(self, endpoint: Endpoint | None = None, turnstile: Any = None) -> None:
        self._model: LlmProcessor | None = None
        if endpoint is not None:
            limit = None if turnstile is None else Turn(turnstile)
            self._model = LlmProcessor(endpoint, limit=limit)

    def extract(self, name: str, text: str) -> Done:
        """A document's entities, or why it failed."""
        if self._model is None:
            return Done(Result(name, tuple(recognise(text))), Usage())
        self._model.usage = Usage()
        return Done(self._model.extract(Document(name, text)), self._model.usage)
