"""Entities through a tuple space: takers read documents, an aggregator actor counts what they find.

    python -m psrpc.examples.gathered [FILE ...]

Nobody knows anybody but the space. Who dies gives back what it had taken, so a document may be read
twice; the aggregator counts it once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import psrpc
from psrpc.entities.rules import recognise
from psrpc.entities.words import Aggregate, Entity, Kind, Result
from psrpc.examples.returned import some


class Taker:
    """Takes documents until the space is closed."""

    def __init__(self, space: psrpc.Space) -> None:
        self.space = space

    def work(self) -> None:
        """Take a document, write what is in it, and only then confirm the take."""
        while True:
            with self.space.take(("document", str, str), lease_s=math.inf) as (_, name, text):
                found = [(str(entity.kind), entity.text) for entity in recognise(text)]
                self.space.write(("entities", name, found))


class Aggregator:
    """Counts results; it is made again from its saved state if its process dies."""

    def __init__(self, space: psrpc.Space) -> None:
        self.space = space
        self.counted = Aggregate()
        self.held: list[psrpc.Taken] = []

    def gather(self, most: int) -> Aggregate:
        """Count what there is, and return it all.

        What was counted in the call before is in the saved state now, and may go for good.
        """
        for each in self.held:
            each.confirm()
        self.held = [self.space.take(("entities", str, list), lease_s=math.inf)]
        while len(self.held) < most and (more := self.space.try_take(PATTERN, lease_s=math.inf)):
            self.held.append(more)
        for _, name, found in self.held:
            entities = tuple(Entity(Kind(kind), text) for kind, text in found)
            self.counted.add(Result(name, entities))
        return self.counted

    def save_state(self) -> Aggregate:
        """Asked for after each call."""
        return self.counted

    def load_state(self, state: Aggregate) -> None:
        """After a death; what was held is in the space again."""
        self.counted = state


PATTERN = ("entities", str, list)


def main(names: Sequence[str]) -> Aggregate:
    """Print how many entities of each kind the documents have."""
    with psrpc.SpaceServer() as owner, psrpc.Space(owner.address) as space:
        aggregator = psrpc.actor(Aggregator, max_restarts=3, max_retries=3).remote(space)
        takers = [psrpc.actor(Taker).remote(space) for _ in range(4)]
        for taker in takers:
            taker.work.remote()
        texts = {document.name: document.text for document in some(names)}
        space.write_all(("document", name, text) for name, text in texts.items())
        counted = Aggregate()
        while len(counted) < len(texts):
            counted = aggregator.gather.remote(most=64).result()
    print(counted.as_json(most=3))
    return counted


if __name__ == "__main__":
    main(sys.argv[1:])
