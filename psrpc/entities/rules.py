"""The built-in recogniser: rules over capital letters and a small lexicon; no model, no network.

It is a simple one: it knows nothing of meaning, and of most names only that they are
written large. `score` says how good it is on the labelled documents that ship with psrpc.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from psrpc.entities import lexicon
from psrpc.entities.words import Entity, Kind

_WORD = r"[A-ZÀ-ÖØ-Þ][\w’'-]*\w|[A-Z]"
# Words written large, with what may stand between those of one name.
_NAME = re.compile(rf"(?:{_WORD})(?:(?:\.? |\. | & | of | van | de | del )(?:{_WORD}))*")
_JOINTS = frozenset({"of", "van", "de", "del", "&"})
_SENTENCE = re.compile(r"[.!?]\s+$")
_SAYS = re.compile(r"^,? (?:said|says|told|wrote|writes|who|was named|won|denied|sings)\b")


def recognise(text: str) -> list[Entity]:
    """The people, organizations and locations in a text, in order, as they stand there."""
    found = []
    for match in _NAME.finditer(text):
        for start, name in _parts(match.group(), match.start()):
            before, after = text[:start], text[start + len(name) :]
            if (kind := _kind(name, before, after)) is not None:
                found.append(Entity(kind, name))
    return found


def _parts(run: str, at: int) -> Iterator[tuple[int, str]]:
    """The names in a run of large words, without titles and what only begins a sentence."""
    pieces = [(m.start(), m.group()) for m in re.finditer(r"\S+", run)]
    current: list[tuple[int, str]] = []
    for place, piece in pieces:
        word = piece.rstrip(".")
        ends = piece.endswith(".") and word not in _short()
        drop = word in lexicon.TITLES or (word in lexicon.NOT_NAMES and not current)
        if drop:
            yield from _name(current, run, at)
            current = []
            continue
        if piece == "of" and (not current or current[-1][1] not in lexicon.ORGANIZATION_STARTS):
            yield from _name(current, run, at)  # Keller of Siemens is two names
            current = []
            continue
        current.append((place, piece))
        if ends or piece.endswith(("'s", "’s")):
            yield from _name(current, run, at)
            current = []
    yield from _name(current, run, at)


def _short() -> frozenset[str]:
    """What ends in a point without ending anything."""
    return lexicon.TITLES | {"St", "Inc", "Ltd", "Co", "Corp"}


def _name(pieces: list[tuple[int, str]], run: str, at: int) -> Iterator[tuple[int, str]]:
    while pieces and pieces[0][1] in _JOINTS:
        pieces = pieces[1:]
    while pieces and pieces[-1][1] in _JOINTS:
        pieces = pieces[:-1]
    if not pieces:
        return
    begin = pieces[0][0]
    end = pieces[-1][0] + len(pieces[-1][1])
    name = run[begin:end].removesuffix("'s").removesuffix("’s")
    yield at + begin, name.rstrip(".") if name.rstrip(".").split()[-1] not in _short() else name


def _kind(name: str, before: str, after: str) -> Kind | None:
    words = [word.rstrip(".") for word in name.split()]
    title = before.rstrip(". ").rsplit(" ", 1)[-1] if before else ""
    if title in lexicon.TITLES:
        return Kind.PERSON
    if words[-1] in lexicon.ORGANIZATION_ENDS and (len(words) > 1 or words[0].isupper()):
        return Kind.ORGANIZATION
    if words[0] in lexicon.ORGANIZATION_STARTS and "of" in words:
        return Kind.ORGANIZATION
    if "&" in words or name in lexicon.ORGANIZATIONS:
        return Kind.ORGANIZATION
    if words[0] in lexicon.FIRST_NAMES and (len(words) > 1 or name not in lexicon.LOCATIONS):
        return Kind.PERSON
    if name in lexicon.LOCATIONS or words[-1] in lexicon.LOCATIONS:
        return Kind.LOCATION
    if len(words) > 1 and (
        words[0] in lexicon.LOCATION_STARTS or words[-1] in lexicon.LOCATION_ENDS
    ):
        return Kind.LOCATION
    return _by_company(words, before, after)


def _by_company(words: list[str], before: str, after: str) -> Kind | None:
    """What the words beside a name say, where its own do not."""
    first = not before or bool(_SENTENCE.search(before))
    previous = before.rstrip().rsplit(" ", 1)[-1]
    if previous in lexicon.PLACE_PREPOSITIONS and len(words) <= 2:
        return Kind.LOCATION
    if len(words) == 1 and words[0].isupper() and len(words[0]) > 2:
        return Kind.ORGANIZATION
    if 2 <= len(words) <= 3 and (_SAYS.match(after) or first) and previous not in ("the", "The"):
        return Kind.PERSON
    if previous == "the" and len(words) > 1:
        return Kind.ORGANIZATION
    if first and len(words) == 1:
        return None  # any word that begins a sentence is written large
    return Kind.PERSON if len(words) == 2 else None
