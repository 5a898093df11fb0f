"""Documents, what is found in them, and what is said of a document that failed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What an entity is."""

    PERSON = "person"
    ORGANIZATION = "organization"
    LOCATION = "location"


@dataclass(frozen=True)
class Entity:
    """A name in a document, as it stands there."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Document:
    """A text with the name by which its result is known."""

    name: str
    text: str


@dataclass(frozen=True)
class Result:
    """What became of a document: its entities in their order, or why it failed."""

    document: str
    entities: tuple[Entity, ...] = ()
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As one of the JSON lines that come out."""
        if self.error is not None:
            return {"id": self.document, "error": self.error}
        found = [{"kind": str(entity.kind), "text": entity.text} for entity in self.entities]
        return {"id": self.document, "entities": found}

    def as_line(self) -> str:
        """As a line of JSON."""
        return json.dumps(self.as_json(), ensure_ascii=False)

    @classmethod
    def of_json(cls, line: dict[str, Any]) -> Result:
        """The result that `as_json` told."""
        found = tuple(Entity(Kind(e["kind"]), e["text"]) for e in line.get("entities", ()))
        return cls(line["id"], found, line.get("error"))


@dataclass
class Aggregate:
    """Results counted: each document once, however often its result comes."""

    counts: dict[Kind, Counter[str]] = field(default_factory=lambda: {k: Counter() for k in Kind})
    failed: dict[str, str] = field(default_factory=dict)
    duplicates: int = 0
    _seen: set[str] = field(default_factory=set)

    def add(self, result: Result) -> bool:
        """Count a result; False if its document has been counted."""
        if result.document in self._seen:
            self.duplicates += 1
            return False
        self._seen.add(result.document)
        if result.error is not None:
            self.failed[result.document] = result.error
        for entity in result.entities:
            self.counts[entity.kind][entity.text] += 1
        return True

    def __len__(self) -> int:
        return len(self._seen)

    def as_json(self, most: int = 20) -> dict[str, Any]:
        """The counts, with the `most` frequent names of each kind."""
        return {
            "documents": len(self),
            "failed": len(self.failed),
            "entities": {str(kind): names.total() for kind, names in self.counts.items()},
            "frequent": {str(k): dict(_frequent(names, most)) for k, names in self.counts.items()},
        }


def _frequent(names: Counter[str], most: int) -> Iterable[tuple[str, int]]:
    """By their number, then by name, so that the order of results does not matter."""
    return sorted(names.items(), key=lambda pair: (-pair[1], pair[0]))[:most]
