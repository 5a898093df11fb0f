"""What a tuple may look like: `ANY`, a type, a comparison, or a value, for each of its fields.

Patterns are data: what is sent to a tuple's owner is an operator's name and a value,
never code. Linda's templates (Gelernter, "Generative communication in Linda", ACM TOPLAS
1985) with comparisons added.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from psrpc.errors import UsageError

MOST_NODES = 64  # of one field's comparisons
DEEPEST = 16  # comparisons within each other


class Array(Protocol):
    """A numpy array or a tensor as its owner keeps it: bytes that nobody looks into."""

    kind: str


class Any_:
    """The one pattern that every field matches."""

    def __repr__(self) -> str:
        return "ANY"

    def __reduce__(self) -> str:
        return "ANY"


ANY = Any_()


@dataclass(frozen=True)
class OfType:
    """Matches fields of one type, by its name; see `TYPES`."""

    name: str


@dataclass(frozen=True)
class Compare:
    """Matches fields that stand so to a value; one that cannot be compared to it never does.

    `name` is one of `OPERATORS`. Numbers are compared with numbers, else types must be the same.
    """

    name: str
    value: Any

    def __bool__(self) -> bool:
        raise _no_truth()

    def __and__(self, other: Test) -> Joined:
        return Joined("and", (self, other))

    def __or__(self, other: Test) -> Joined:
        return Joined("or", (self, other))

    def __invert__(self) -> Joined:
        return Joined("not", (self,))


@dataclass(frozen=True)
class Joined:
    """Matches where all (`and`), some (`or`) or not the one (`not`) of its parts do."""

    name: str
    parts: tuple[Test, ...]

    def __bool__(self) -> bool:
        raise _no_truth()

    def __and__(self, other: Test) -> Joined:
        return Joined("and", (self, other))

    def __or__(self, other: Test) -> Joined:
        return Joined("or", (self, other))

    def __invert__(self) -> Joined:
        return Joined("not", (self,))


Test = Compare | Joined


def _no_truth() -> UsageError:
    """Of `0 < FIELD < 3`, `and`, `or` and `not` Python would keep one half."""
    return UsageError(
        "comparisons of a field are joined by & | ~, in brackets: (FIELD > 0) & (FIELD < 3)"
    )


class Field:
    """The field that a comparison is about: `FIELD > 3`, `(FIELD >= 0) & (FIELD < 9)`."""

    def __gt__(self, value: Any) -> Compare:
        return Compare(">", value)

    def __ge__(self, value: Any) -> Compare:
        return Compare(">=", value)

    def __lt__(self, value: Any) -> Compare:
        return Compare("<", value)

    def __le__(self, value: Any) -> Compare:
        return Compare("<=", value)

    def __eq__(self, value: object) -> Compare:  # type: ignore[override]
        return Compare("==", value)

    def __ne__(self, value: object) -> Compare:  # type: ignore[override]
        return Compare("!=", value)

    __hash__ = None  # type: ignore[assignment]

    def is_in(self, *values: Any) -> Compare:
        """One of these values."""
        return Compare("in", values)

    def startswith(self, start: str | bytes) -> Compare:
        """Text, or bytes, that begin so."""
        return Compare("startswith", start)

    def endswith(self, end: str | bytes) -> Compare:
        """Text, or bytes, that end so."""
        return Compare("endswith", end)

    def contains(self, part: Any) -> Compare:
        """Text or bytes that have this in it, or a list, tuple or dict (its keys) that does."""
        return Compare("contains", part)


FIELD = Field()

TYPES: dict[type, str] = {
    type(None): "none",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    bytes: "bytes",
    tuple: "tuple",
    list: "list",
    dict: "dict",
}
ARRAYS = ("array", "tensor")
TYPE_NAMES = frozenset(TYPES.values()) | frozenset(ARRAYS)


def type_name(value: Any) -> str:
    """The name of a field's type: an exact one, so True is a bool and no int."""
    name = TYPES.get(type(value))
    return value.kind if name is None else name


def same(field: Any, value: Any) -> bool:
    """Whether both are equal and of one type: 1, 1.0 and True are three values."""
    kind = type(field)
    if kind is not type(value):
        return False
    if kind is tuple or kind is list:
        return len(field) == len(value) and all(map(same, field, value))
    if kind is dict:
        return field.keys() == value.keys() and all(same(field[k], value[k]) for k in field)
    return bool(field == value)


def _numbers(field: Any, value: Any) -> bool:
    return type(field) in (int, float) and type(value) in (int, float)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def holds(field: Any, value: Any) -> bool:
        if not _numbers(field, value) and (
            type(field) is not type(value) or type(field) not in (str, bytes)
        ):
            return False
        return compare(field, value)

    return holds


def _equal(field: Any, value: Any) -> bool:
    return bool(field == value) if _numbers(field, value) else same(field, value)


def _contains(field: Any, part: Any) -> bool:
    if type(field) in (str, bytes):
        return type(part) is type(field) and part in field
    return type(field) in (list, tuple, dict) and any(_equal(each, part) for each in field)


def _affix(name: str) -> Callable[[Any, Any], bool]:
    def holds(field: Any, value: Any) -> bool:
        same_text = type(field) is type(value) and type(field) in (str, bytes)
        return same_text and bool(getattr(field, name)(value))

    return holds


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">": _ordered(operator.gt),
    ">=": _ordered(operator.ge),
    "<": _ordered(operator.lt),
    "<=": _ordered(operator.le),
    "==": _equal,
    "!=": lambda field, value: not _equal(field, value),
    "in": lambda field, values: any(_equal(field, each) for each in values),
    "startswith": _affix("startswith"),
    "endswith": _affix("endswith"),
    "contains": _contains,
}
JOINS = {"and": all, "or": any}


def holds(test: Test, field: Any) -> bool:
    """Whether a field passes a test."""
    if type(test) is Compare:
        return OPERATORS[test.name](field, test.value)
    assert isinstance(test, Joined)
    if test.name == "not":
        return not holds(test.parts[0], field)
    return JOINS[test.name](holds(part, field) for part in test.parts)


def problems_of(test: Test) -> Iterator[str]:
    """What is wrong with a test, if anything; nothing too deep is looked into."""
    nodes, level = 0, [test]
    for _ in range(DEEPEST):
        nodes += len(level)
        below: list[Test] = []
        for each in level:
            match each:
                case Compare(name, value) if name in OPERATORS:
                    if name == "in" and not isinstance(value, tuple):
                        yield "is_in takes values"
                case Joined("not", (part,)):
                    below.append(part)
                case Joined("and" | "or", parts) if parts:
                    below += parts
                case _:
                    yield f"no comparison that a tuple space knows: {each!r}"
        level = below
    if level or nodes > MOST_NODES:
        yield f"a comparison of more than {MOST_NODES} parts, or {DEEPEST} within each other"


Key = tuple[str, Any]


def key_of(value: Any) -> Key | None:
    """What tuples are indexed by where their first field is this; None: not by itself."""
    name = type_name(value)
    return None if name in _UNINDEXED else (name, value)


_UNINDEXED = frozenset({"tuple", "list", "dict", *ARRAYS})


class Pattern:
    """Matches tuples of one length, field by field.

    Its `fields` are `ANY`, `OfType`, `Compare`, `Joined`, or values. Raises ValueError for a
    comparison that is none.
    """

    __slots__ = ("_tests", "_types", "_values", "arity", "fields", "key")

    def __init__(self, fields: Sequence[Any]) -> None:
        self.fields = tuple(fields)
        self.arity = len(self.fields)
        self._values: list[tuple[int, Any]] = []
        self._types: list[tuple[int, str]] = []
        self._tests: list[tuple[int, Test]] = []
        self.key: Key | None = None
        for place, each in enumerate(self.fields):
            kind = type(each)
            if kind is Any_:
                continue
            if kind is OfType:
                self._types.append((place, each.name))
            elif kind is Compare or kind is Joined:
                for problem in problems_of(each):
                    raise ValueError(problem)
                self._tests.append((place, each))
            elif place == 0 and (key := key_of(each)) is not None:
                self.key = key
            else:
                self._values.append((place, each))

    @property
    def keyed_only(self) -> bool:
        """Whether every tuple of its length and key matches."""
        return not (self._values or self._types or self._tests)

    def matches(self, fields: Sequence[Any]) -> bool:
        """Whether a tuple, of its length and with its key, matches."""
        for place, value in self._values:
            if not same(fields[place], value):
                return False
        for place, name in self._types:
            if type_name(fields[place]) != name:
                return False
        return all(holds(test, fields[place]) for place, test in self._tests)
