"""The tuples of one space in the order of their writing, found by length and first field."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from psrpc.core.patterns import Key, Pattern, key_of

_FEW = 32  # tuples that are looked through rather than indexed by their second field


class Entry:
    """A tuple in a space.

    `parcel` is whatever its owner sends in answer; `number` says how many came before it.
    """

    __slots__ = ("alarm", "expires_s", "fields", "key", "number", "parcel", "size_bytes")

    def __init__(self, number: int, fields: tuple[Any, ...], parcel: Any, size_bytes: int) -> None:
        self.number = number
        self.fields = fields
        self.parcel = parcel
        self.size_bytes = size_bytes
        self.key: Key | None = key_of(fields[0]) if fields else None
        self.expires_s: float | None = None
        self.alarm: int | None = None


Row = OrderedDict[int, Entry]  # An OrderedDict, for a dict's first item is slow after removals.


class _Shelf:
    """Tuples of one length and first field, by their second as well once somebody asks for it."""

    __slots__ = ("row", "seconds")

    def __init__(self) -> None:
        self.row: Row = OrderedDict()
        self.seconds: dict[Key | None, Row] | None = None

    def add(self, entry: Entry, first: bool) -> None:
        _put(self.row, entry, first)
        if self.seconds is not None:
            _put(self.seconds.setdefault(_second(entry.fields), OrderedDict()), entry, first)

    def remove(self, entry: Entry) -> None:
        del self.row[entry.number]
        if self.seconds is not None:
            key = _second(entry.fields)
            row = self.seconds[key]
            del row[entry.number]
            if not row:
                del self.seconds[key]

    def candidates(self, pattern: Pattern) -> Row:
        key = _second(pattern.fields)
        if key is None or len(self.row) <= _FEW:
            return self.row
        if self.seconds is None:
            self.seconds = {}
            for entry in self.row.values():
                row = self.seconds.setdefault(_second(entry.fields), OrderedDict())
                row[entry.number] = entry
        return self.seconds.get(key, OrderedDict())


def _put(row: Row, entry: Entry, first: bool) -> None:
    row[entry.number] = entry
    if first:
        row.move_to_end(entry.number, last=False)


def _second(fields: tuple[Any, ...]) -> Key | None:
    """The key of a second field, or of a pattern's if it is a plain value."""
    if len(fields) < 2:
        return None
    try:
        return key_of(fields[1])
    except AttributeError:
        return None  # ANY, a type, a comparison


class Shelves:
    """All tuples of one space."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._count = 0
        self._shelves: dict[tuple[int, Key | None], _Shelf] = {}
        self._rows: dict[int, Row] = {}  # by length

    def __len__(self) -> int:
        return self._count

    def add(self, entry: Entry, first: bool = False) -> None:
        """Put a tuple in, behind all others or before them."""
        arity = len(entry.fields)
        shelf = self._shelves.get((arity, entry.key))
        if shelf is None:
            shelf = self._shelves[arity, entry.key] = _Shelf()
        shelf.add(entry, first)
        row = self._rows.get(arity)
        if row is None:
            row = self._rows[arity] = OrderedDict()
        _put(row, entry, first)
        self.size_bytes += entry.size_bytes
        self._count += 1

    def remove(self, entry: Entry) -> None:
        """Take a tuple out, which must be in."""
        arity = len(entry.fields)
        shelf = self._shelves[arity, entry.key]
        shelf.remove(entry)
        if not shelf.row:
            del self._shelves[arity, entry.key]
        row = self._rows[arity]
        del row[entry.number]
        if not row:
            del self._rows[arity]
        self.size_bytes -= entry.size_bytes
        self._count -= 1

    def first(self, pattern: Pattern) -> Entry | None:
        """The first tuple that matches, or None."""
        if (row := self._candidates(pattern)) is None:
            return None
        if pattern.keyed_only:
            return next(iter(row.values()), None)
        for entry in row.values():
            if pattern.matches(entry.fields):
                return entry
        return None

    def all(self, pattern: Pattern) -> Iterator[Entry]:
        """The tuples that match, in order. Nothing may change meanwhile."""
        if (row := self._candidates(pattern)) is None:
            return iter(())
        if pattern.keyed_only:
            return iter(row.values())
        return (entry for entry in row.values() if pattern.matches(entry.fields))

    def _candidates(self, pattern: Pattern) -> Row | None:
        """Among which those that match are."""
        if pattern.key is None:
            return self._rows.get(pattern.arity)
        shelf = self._shelves.get((pattern.arity, pattern.key))
        return None if shelf is None else shelf.candidates(pattern)

    def count(self, pattern: Pattern) -> int:
        """How many tuples match."""
        if pattern.keyed_only:
            if pattern.key is None:
                return len(self._rows.get(pattern.arity, ()))
            shelf = self._shelves.get((pattern.arity, pattern.key))
            return 0 if shelf is None else len(shelf.row)
        return sum(1 for _ in self.all(pattern))
