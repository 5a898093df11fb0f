"""Documents through a tuple space: takers read them, an aggregator gathers what they find.

Nobody calls anybody for a document: it is a tuple, and so is its result. A taker holds a document
by a lease until its result is written, and the aggregator holds a result until its own state with
it is saved. So after any death each tuple is still somewhere, and what comes twice is
counted once, by its document. A document at which takers die again and again fails.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from psrpc.actors.handle import actor, kill
from psrpc.actors.pool import Pool
from psrpc.entities.llm import Endpoint, Usage
from psrpc.entities.pipeline import turnstile
from psrpc.entities.processor import Done, Processor
from psrpc.entities.words import Aggregate, Document, Result
from psrpc.errors import SpaceTimeoutError
from psrpc.space import FIELD, Change, Space, SpaceServer

_DOCUMENT, _FOUND, _END = "document", "found", "end"
_JOB = (FIELD.is_in(_DOCUMENT, _END), str, str)
_AT_ONCE = 64  # results that are gathered in one call, and saved together
_LOOK_S = 0.2
_MOST_DEATHS = 1_000
_AHEAD = 4  # documents a taker that may lie in the space


class Taker:
    """An actor that takes documents until it is told to end."""

    def __init__(self, space: Space, endpoint: Endpoint | None, turnstile: Any) -> None:
        self._space = space
        self._processor = Processor(endpoint, turnstile)

    def work(self) -> int:
        """Take documents and write what is in them; returns their number at the end."""
        for count in itertools.count():
            job = self._space.take(_JOB, lease_s=math.inf)
            kind, name, text = job
            if kind == _END:
                job.give_back()  # for the others, and for whoever does this again if we die now
                return count
            with job:
                done = self._read(name, text)
                self._space.write((_FOUND, name, json.dumps(done.as_json())))
        raise AssertionError

    def _read(self, name: str, text: str) -> Done:
        try:
            return self._processor.extract(name, text)
        except Exception as error:
            return Done(Result(name, error=f"{type(error).__name__}: {error}"), Usage())


class Aggregator:
    """An actor that counts results, each document once; it begins again from its saved state."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._aggregate = Aggregate()
        self._usage = Usage()
        self._fresh: deque[tuple[int, str]] = deque()  # new documents, by their place
        self._held: list[Any] = []  # results that are counted, in a state that may not be saved yet

    def gather(self, have: int) -> list[str]:
        """Count some results; returns those of documents from place `have` on, as JSON lines.

        The state is saved after each call, and what was counted in the one before goes for good.
        """
        for each in self._held:
            each.confirm()
        self._held = []
        while self._fresh and self._fresh[0][0] < have:
            self._fresh.popleft()
        while len(self._held) < _AT_ONCE and (found := self._next()) is not None:
            self._held.append(found)
            done = Done.of_json(json.loads(found[2]))
            self._usage.add(done.usage)
            if self._aggregate.add(done.result):
                self._fresh.append((len(self._aggregate) - 1, done.result.as_line()))
        return [line for _, line in self._fresh]

    def counts(self) -> tuple[Aggregate, Usage]:
        """All that was counted."""
        return self._aggregate, self._usage

    def save_state(self) -> Any:
        """What is counted, and not yet told."""
        return self._aggregate, self._usage, self._fresh

    def load_state(self, state: Any) -> None:
        """Go on from there; what was held has come back into the space."""
        self._aggregate, self._usage, self._fresh = state

    def _next(self) -> Any:
        pattern = (_FOUND, str, str)
        if self._held or self._fresh:
            return self._space.try_take(pattern, lease_s=math.inf)
        try:
            return self._space.take(pattern, _LOOK_S, lease_s=math.inf)
        except SpaceTimeoutError:
            return None


class Gathering:
    """A tuple space, its takers and its aggregator. A context manager that ends them.

    The space is kept by this process; takers and the aggregator are actors, and may be anywhere.
    """

    taker: type = Taker
    most_tries = 10  # of a document

    def __init__(self, endpoint: Endpoint | None, workers: int, **options: Any) -> None:
        self._workers = workers
        self._options = options
        self._endpoint = endpoint
        self._server = SpaceServer()
        self._tries: Counter[str] = Counter()  # of documents that came back
        self._withheld: list[Future[Any]] = []

    def __enter__(self) -> Gathering:
        self._space = Space(self._server.start().address)
        self._returns = self._space.watch((_DOCUMENT, str, str), [Change.RETURNED])
        self.aggregator = actor(
            Aggregator, max_restarts=_MOST_DEATHS, max_retries=_MOST_DEATHS, **self._options
        ).remote(self._space)
        self.takers = Pool(
            self.taker,
            self._workers,
            args=(self._space, self._endpoint, turnstile(self._endpoint)),
            max_retries=None,  # that a document is deadly is noticed here
            **{"own_process": False, **self._options},
        )
        self._ends = [self.takers.submit("work") for _ in range(self._workers)]
        return self

    def run(self, documents: Iterable[Document]) -> Iterator[str]:
        """The results as JSON lines, as they come, each document once. To be called once.

        Documents are read no faster than they are done.
        """
        names: set[str] = set()
        told = 0
        for document in documents:
            if document.name in names:
                continue
            names.add(document.name)
            self._space.write((_DOCUMENT, document.name, document.text))
            while len(names) - told > _AHEAD * self._workers:
                for line in self._gather(told):
                    told += 1
                    yield line
        while told < len(names):
            for line in self._gather(told):
                told += 1
                yield line

    def counts(self) -> tuple[Aggregate, Usage]:
        """All that was counted."""
        found: tuple[Aggregate, Usage] = self.aggregator.counts.remote().result()
        return found

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._space.write((_END, "", ""))
            for end in self._ends:
                end.result()
        self.takers.shutdown(wait=False, cancel_futures=True)
        kill(self.aggregator)
        self._space.close()
        self._server.close()

    def _gather(self, told: int) -> list[str]:
        self._heed_deaths()
        # A taker that cannot go on says why, so that nobody waits for it.
        for end in self._ends:
            if end.done():
                end.result()
        lines: list[str] = self.aggregator.gather.remote(told).result()
        return lines

    def _heed_deaths(self) -> None:
        """A document that came back too often fails, and is taken out before more takers die."""
        while True:
            try:
                _, name, text = self._returns.next(0.0).fields
            except SpaceTimeoutError:
                return
            self._tries[name] += 1
            if self._tries[name] == self.most_tries:
                error = f"ActorLostError: whoever read it died, {self.most_tries} times"
                done = Done(Result(name, error=error), Usage())
                self._space.write((_FOUND, name, json.dumps(done.as_json())))
                self._withheld.append(self._space.take_async((_DOCUMENT, name, text)))
