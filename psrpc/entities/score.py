"""How good a recogniser is: precision and recall on the labelled documents that ship with psrpc.

`python -m psrpc.entities.score` prints them for the built-in one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from importlib import resources
from typing import NamedTuple

from psrpc.entities.rules import recognise
from psrpc.entities.words import Entity, Kind


class Score(NamedTuple):
    """Of one kind: how many were found rightly, found, and there to be found."""

    right: int
    found: int
    there: int

    @property
    def precision(self) -> float:
        """The share of what was found that is right."""
        return self.right / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """The share of what is there that was found."""
        return self.right / self.there if self.there else 1.0


def labelled() -> list[tuple[str, list[Entity]]]:
    """The labelled documents: texts, and the entities in them."""
    text = resources.files("psrpc.entities").joinpath("labelled.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return [
        (line["text"], [Entity(Kind(e["kind"]), e["text"]) for e in line["entities"]])
        for line in lines
    ]


def score(find: Callable[[str], Iterable[Entity]]) -> dict[Kind, Score]:
    """Compare what `find` finds in the labelled documents; text and kind must be the same."""
    tally = {kind: [0, 0, 0] for kind in Kind}
    for text, expected in labelled():
        found, there = Counter(find(text)), Counter(expected)
        for column, entities in enumerate((found & there, found, there)):
            for entity, count in entities.items():
                tally[entity.kind][column] += count
    return {kind: Score(*columns) for kind, columns in tally.items()}


def table(scores: dict[Kind, Score]) -> str:
    """The scores as lines of text."""
    lines = [f"{'kind':13} precision recall   of"]
    for kind, each in scores.items():
        lines.append(f"{kind:13} {each.precision:9.2f} {each.recall:6.2f} {each.there:4}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(score(recognise)))
