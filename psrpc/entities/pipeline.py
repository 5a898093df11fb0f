"""Documents through a pool of processors: results as they come, each document once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from psrpc.entities.rules import recognise
from psrpc.entities.words import Document, Result

Extract = Callable[[Document], Result]


def offline(document: Document) -> Result:
    """What the built-in recogniser finds."""
    return Result(document.name, tuple(recognise(document.text)))


def run(documents: Iterable[Document], extract: Extract, workers: int) -> Iterator[Result]:
    """The results of `extract`, which is called from `workers` threads, as they come.

    Documents are read no faster than they are done. An exception of `extract` is its
    document's failure, and nobody else's.
    """
    with ThreadPoolExecutor(workers, "psrpc-entities") as pool:
        open_: dict[Future[Result], str] = {}
        for document in documents:
            if len(open_) >= 2 * workers:
                yield from _done(open_)
            open_[pool.submit(extract, document)] = document.name
        while open_:
            yield from _done(open_)


def _done(open_: dict[Future[Result], str]) -> Iterator[Result]:
    done = wait(open_, return_when=FIRST_COMPLETED).done
    for future in [each for each in open_ if each in done]:
        name = open_.pop(future)
        try:
            yield future.result()
        except Exception as error:
            yield Result(name, error=f"{type(error).__name__}: {error}")
