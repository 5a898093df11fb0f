"""Documents through a pool of processors: results as they come, each document once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from psrpc.actors.handle import actor
from psrpc.actors.pool import Pool
from psrpc.entities.llm import Endpoint, Usage
from psrpc.entities.processor import Done, Processor, Turnstile
from psrpc.entities.words import Document, Result

_RESTARTS = 1_000
_MOST_TRIES = 10


def processors(endpoint: Endpoint | None, workers: int) -> Pool:
    """A pool of so many processors, which share processes, and the endpoint's rate limit."""
    return Pool(
        Processor,
        workers,
        args=(endpoint, turnstile(endpoint)),
        own_process=False,
        max_retries=_MOST_TRIES,
    )


def turnstile(endpoint: Endpoint | None) -> Any:
    """The actor at which all processors book their calls, if a model is asked."""
    if endpoint is None:
        return None
    kind = actor(Turnstile, max_restarts=_RESTARTS, max_retries=_RESTARTS)
    return kind.remote(endpoint.per_minute)


def run(documents: Iterable[Document], pool: Pool, workers: int) -> Iterator[Done]:
    """The results of a pool of processors, as they come.

    Documents are read no faster than they are done. An exception of a processor, or the deaths of
    several at one document, are that document's failure, and nobody else's.
    """
    open_: dict[Future[Any], str] = {}
    try:
        for document in documents:
            if len(open_) >= 2 * workers:
                yield from _done(open_)
            future = pool.submit("extract", document.name, document.text)
            open_[future] = document.name
        while open_:
            yield from _done(open_)
    finally:
        for left in open_:
            left.cancel()


def _done(open_: dict[Future[Any], str]) -> Iterator[Done]:
    done = wait(open_, return_when=FIRST_COMPLETED).done
    for future in [each for each in open_ if each in done]:
        name = open_.pop(future)
        try:
            yield future.result()
        except Exception as error:
            yield Done(Result(name, error=f"{type(error).__name__}: {error}"), Usage())
