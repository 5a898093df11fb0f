"""SLURM's short forms: `node[1-3,5],gpu7` for names, `2(x3),1` for numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def names(text: str) -> list[str]:
    """All names that a list of nodes stands for, in its order; leading zeros stay."""
    return [name for word in _words(text) for name in _expand(word)]


def counts(text: str) -> list[int]:
    """All numbers that a list of tasks (or processors) per node stands for."""
    found = _COUNT.findall(text)
    return [int(number) for number, times in found for _ in range(int(times or 1))]


def _words(text: str) -> Iterator[str]:
    """Cut at commas that are not within brackets."""
    word, depth = "", 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            yield word
            word = ""
        else:
            word += letter
    if word:
        yield word


def _expand(word: str) -> list[str]:
    begin, bracket, rest = word.partition("[")
    if not bracket:
        return [word]
    inside, _, end = rest.partition("]")
    middles = [middle for span in inside.split(",") for middle in _span(span)]
    return [begin + middle + tail for middle in middles for tail in _expand(end)]


def _span(text: str) -> list[str]:
    low, dash, high = text.partition("-")
    if not dash:
        return [low]
    return [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
