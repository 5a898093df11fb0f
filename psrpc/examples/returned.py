"""Entities by a pool of processors, whose results are returned: as with Ray's actor pools.

    python -m psrpc.examples.returned [FILE ...]

Without files it reads the labelled documents that ship with psrpc.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import psrpc
from psrpc.entities import documents, score
from psrpc.entities.rules import recognise
from psrpc.entities.words import Aggregate, Document, Result


class Processor:
    """Reads documents; each member of the pool is one, in a process of its own."""

    def __init__(self) -> None:
        self.done = 0

    def extract(self, name: str, text: str) -> Result:
        """The entities of a text. What it raises is raised where the result would have come."""
        self.done += 1
        return Result(name, tuple(recognise(text)))


def main(names: Sequence[str]) -> Aggregate:
    """Print what is in each document, and how many entities there are of each kind."""
    aggregate = Aggregate()
    with psrpc.Pool(Processor, size=(1, 4), max_retries=3) as pool:
        # Any member does any document; if its process dies, another does it again.
        texts = [(each.name, each.text) for each in some(names)]
        futures = {pool.submit(Processor.extract, name, text) for name, text in texts}
        for future in psrpc.as_completed(futures):
            result = future.result()
            aggregate.add(result)
            print(result.as_line())
    print(aggregate.as_json(most=3))
    return aggregate


def some(names: Sequence[str]) -> Iterable[Document]:
    """The documents of some files, or those that ship with psrpc."""
    if names:
        return documents.read(names)
    return [Document(str(place), text) for place, (text, _) in enumerate(score.labelled())]


if __name__ == "__main__":
    main(sys.argv[1:])
