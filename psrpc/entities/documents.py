"""Documents from files, JSON lines and standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from psrpc.entities.words import Document
from psrpc.errors import UsageError

STDIN = "-"


def check(names: Iterable[str]) -> None:
    """Raises UsageError for the first file that cannot be read, before anything is begun."""
    for name in names:
        if name != STDIN:
            try:
                Path(name).open("rb").close()
            except OSError as error:
                raise UsageError(f"cannot read {name}: {error.strerror}") from None


def read(names: Iterable[str]) -> Iterator[Document]:
    """The documents of some files: `.jsonl` (and `-`, standard input) has one a line, as
    {"id": ..., "text": ...}; any other file is one, by its name. Raises UsageError.
    """
    for name in names:
        if name == STDIN:
            yield from _lines(sys.stdin, "standard input")
            continue
        try:
            if name.endswith((".jsonl", ".ndjson")):
                with Path(name).open(encoding="utf-8") as file:
                    yield from _lines(file, name)
            else:
                yield Document(name, Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read {name}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"{name} is not text in UTF-8") from None


def _lines(file: Iterable[str], name: str) -> Iterator[Document]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError(f"{name}, line {number} is no JSON") from None
        match found:
            case {"text": str(text), **others}:
                yield Document(str(others.get("id", f"{name}:{number}")), text)
            case _:
                raise UsageError(f'{name}, line {number} has no "text"')
