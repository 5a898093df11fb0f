"""Who gets which tuple, and when: the decisions of a tuple space's owner."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from psrpc.core.alarms import Alarms
from psrpc.core.patterns import ANY, FIELD, Compare, Joined, OfType, Pattern, holds
from psrpc.core.tuples import Ask, Change, Given, Missed, Seen, TupleStore

INT = OfType("int")


class Owner:
    """A store, with short ways to say things and effects as plain values."""

    def __init__(self) -> None:
        self.store = TupleStore()
        self.now = 0.0

    def write(self, *fields: Any, ttl: float | None = None) -> list[Any]:
        return told(self.store.write(fields, self.now, ttl))

    def ask(
        self, who: str, tag: int, *pattern: Any, wait: float = 0.0, lease: float | None = None
    ) -> list[Any]:
        return told(self.store.ask(Ask(who, tag, Pattern(pattern), True, wait, lease), self.now))

    def read(self, who: str, tag: int, *pattern: Any, wait: float = 0.0) -> list[Any]:
        return told(self.store.ask(Ask(who, tag, Pattern(pattern), False, wait), self.now))

    def at(self, now: float) -> list[Any]:
        self.now = now
        return told(self.store.tick(now))

    def all(self, *pattern: Any) -> list[tuple[Any, ...]]:
        return [entry.fields for entry in self.store.all(Pattern(pattern))]


def told(effects: Sequence[Any]) -> list[Any]:
    """Effects without entries' insides; leases are numbered by whoever looks at them."""
    found: list[Any] = []
    for effect in effects:
        match effect:
            case Given(peer, tag, entry, lease):
                found.append((peer, tag, entry.fields) + (() if lease is None else (lease,)))
            case Missed(peer, tag):
                found.append((peer, tag, None))
            case Seen(peer, tag, change, entry):
                found.append((peer, tag, change.name, entry.fields))
    return found


def test_tuples_come_out_in_the_order_of_their_writing() -> None:
    owner = Owner()
    for number in range(3):
        assert owner.write("job", number) == []
    assert owner.read("a", 1, "job", ANY) == [("a", 1, ("job", 0))]
    assert [owner.ask("a", n, "job", ANY)[0][2] for n in range(3)] == [("job", n) for n in range(3)]
    assert owner.ask("a", 9, "job", ANY) == [("a", 9, None)]


def test_a_value_is_of_its_own_type() -> None:
    owner = Owner()
    for value in (1, 1.0, True, "1", None, b"1"):
        owner.write("x", value)
        owner.write(value, "x")
    assert owner.all("x", 1) == [("x", 1)]
    assert [type(fields[0]) for fields in owner.all(True, "x")] == [bool]
    assert [type(fields[1]) for fields in owner.all("x", INT)] == [int]
    assert owner.all("x", None) == [("x", None)]
    assert len(owner.all(ANY, ANY)) == 12
    assert owner.all(ANY) == owner.all("x") == owner.all("x", ANY, ANY) == []


@pytest.mark.parametrize(
    ("test", "yes", "no"),
    [
        (FIELD > 3, [4, 3.5], [3, "4", None, True]),
        (FIELD <= "b", ["a", "b"], ["c", b"a", 1]),
        ((FIELD >= 0) & (FIELD < 9), [0, 8.5], [-1, 9, "5"]),
        ((FIELD < 0) | (FIELD > 9), [-1, 10], [5]),
        (~(FIELD == 3), [4, "3", True], [3, 3.0]),
        (FIELD != 3, [4, None], [3, 3.0]),
        (FIELD.is_in("a", 2), ["a", 2, 2.0], ["b", 3, True]),
        (FIELD.startswith("doc-"), ["doc-1"], ["a doc-", b"doc-", 1]),
        (FIELD.endswith(b"x"), [b"x"], ["x", b"xy"]),
        (FIELD.contains("b"), ["abc", ["b"], ("a", "b"), {"b": 1}], ["a", b"b", 1, ["ab"]]),
        (math.nan <= FIELD, [], [1, float("nan")]),
    ],
)
def test_comparisons(test: Compare | Joined, yes: list[Any], no: list[Any]) -> None:
    assert [value for value in yes if not holds(test, value)] == []
    assert [value for value in no if holds(test, value)] == []


def test_a_comparison_that_is_none_is_refused() -> None:
    deep: Compare | Joined = FIELD > 1
    for _ in range(20):
        deep = ~deep
    wide = (FIELD > 1) & (FIELD > 2)
    for _ in range(6):
        wide = wide & wide
    for bad in (Compare("eval", "1"), Joined("nand", ()), Joined("and", ()), deep, wide):
        with pytest.raises(ValueError, match="comparison"):
            Pattern([bad])


def test_a_tuple_goes_to_all_readers_and_the_taker_who_waited_longest() -> None:
    owner = Owner()
    assert owner.ask("slow", 1, "job", ANY, wait=9) == []
    assert owner.read("reader", 1, ANY, ANY, wait=9) == []
    assert owner.ask("late", 1, ANY, INT, wait=9) == []
    assert owner.read("other", 1, "else", ANY, wait=9) == []
    assert owner.write("job", 7) == [("reader", 1, ("job", 7)), ("slow", 1, ("job", 7))]
    assert owner.write("job", "x") == []
    assert owner.write("job", 8) == [("late", 1, ("job", 8))]
    assert owner.all("job", ANY) == [("job", "x")]
    assert owner.store.waiting == 1


def test_takers_with_and_without_a_first_field_wait_in_one_queue() -> None:
    owner = Owner()
    for who, first in (("a", ANY), ("b", "job"), ("c", ANY), ("d", "job")):
        owner.ask(who, 1, first, ANY, wait=math.inf)
    order = [owner.write("job", number)[0][0] for number in range(4)]
    assert order == ["a", "b", "c", "d"]


def test_waiting_has_an_end() -> None:
    owner = Owner()
    owner.ask("a", 1, "job", wait=5)
    owner.ask("b", 1, "job", wait=7)
    assert owner.store.next_s == 5
    assert owner.at(4.9) == []
    assert owner.at(5) == [("a", 1, None)]
    assert owner.write("job") == [("b", 1, ("job",))]
    assert owner.at(8) == []
    assert owner.store.next_s is None


def test_who_withdraws_gets_nothing() -> None:
    owner = Owner()
    owner.ask("a", 1, "job", wait=5)
    owner.ask("a", 2, "job", wait=5)
    assert owner.store.withdraw("a", 1)
    assert not owner.store.withdraw("a", 1)
    assert not owner.store.withdraw("b", 2)
    assert owner.write("job") == [("a", 2, ("job",))]


def test_a_tuple_lives_for_its_time() -> None:
    owner = Owner()
    owner.write("job", 1, ttl=5)
    owner.write("job", 2)
    assert owner.at(4.9) == []
    assert owner.all("job", ANY) == [("job", 1), ("job", 2)]
    owner.at(5)
    assert owner.all("job", ANY) == [("job", 2)]


def test_a_dead_takers_tuples_come_back_in_their_order() -> None:
    owner = Owner()
    for number in range(5):
        owner.write("job", number)
    for number in range(3):
        owner.ask("dead", number, "job", ANY, lease=math.inf)
    owner.ask("dead", 9, "none", wait=math.inf)
    owner.ask("alive", 1, "job", ANY, lease=math.inf)
    assert owner.store.leased == 4
    assert owner.all("job", ANY) == [("job", 4)]
    assert told(owner.store.gone("dead", 0)) == []
    assert owner.all("job", ANY) == [("job", n) for n in (0, 1, 2, 4)]
    assert (owner.store.leased, owner.store.waiting) == (1, 0)


def test_what_comes_back_goes_to_who_waits_the_earliest_first() -> None:
    owner = Owner()
    for number in range(2):
        owner.write("job", number)
        owner.ask("dead", number, "job", ANY, lease=math.inf)
    for who in ("a", "b"):
        owner.ask(who, 1, "job", ANY, wait=math.inf)
    assert told(owner.store.gone("dead", 0)) == [("a", 1, ("job", 0)), ("b", 1, ("job", 1))]


def test_a_lease_ends_by_itself_unless_it_is_renewed_or_confirmed() -> None:
    owner = Owner()
    for number in range(4):
        owner.write("job", number)
    leases = [owner.ask("a", number, "job", ANY, lease=10)[0][3] for number in range(4)]
    store = owner.store
    assert store.confirm("a", leases[0])
    assert not store.confirm("a", leases[0])
    assert not store.confirm("b", leases[1])
    assert store.give_back("b", leases[1], 0) is None
    assert told(store.give_back("a", leases[1], 0) or []) == []
    assert owner.at(9) == []
    assert store.renew("a", leases[2], 10, 9)
    assert not store.renew("b", leases[2], 99, 9)
    owner.at(10)
    assert owner.all("job", ANY) == [("job", 3), ("job", 1)]
    assert not store.confirm("a", leases[3])
    assert not store.renew("a", leases[3], 10, 10)
    owner.at(19)
    assert owner.all("job", ANY) == [("job", 2), ("job", 3), ("job", 1)]


def test_a_tuple_whose_time_is_over_does_not_come_back() -> None:
    owner = Owner()
    owner.write("job", ttl=5)
    owner.ask("dead", 1, "job", lease=math.inf)
    assert owner.at(6) == []
    owner.store.gone("dead", 6)
    assert owner.all("job") == []
    assert not owner.store.used


def test_watchers_see_what_happens() -> None:
    owner = Owner()
    owner.store.watch("w", 1, Pattern(["job", INT]), Change)
    owner.store.watch("w", 2, Pattern([ANY, 1]), [Change.TAKEN])
    assert owner.write("job", "x") == []
    assert owner.write("job", 1, ttl=3) == [("w", 1, "WRITTEN", ("job", 1))]
    _, *seen = owner.ask("a", 1, "job", 1, lease=1)
    assert seen == [("w", 1, "TAKEN", ("job", 1)), ("w", 2, "TAKEN", ("job", 1))]
    assert owner.at(1) == [("w", 1, "RETURNED", ("job", 1))]
    assert owner.at(3) == [("w", 1, "EXPIRED", ("job", 1))]
    owner.ask("a", 2, "job", 2, wait=9)
    assert [each[2] for each in owner.write("job", 2)] == ["WRITTEN", ("job", 2), "TAKEN"]
    assert owner.store.unwatch("w", 1)
    assert not owner.store.unwatch("w", 1)
    owner.store.gone("w", 3)
    assert owner.write("job", 1) == []


class Plain:
    """The plainest space: a list, looked through."""

    def __init__(self) -> None:
        self.tuples: list[tuple[Any, ...]] = []
        self.leased: list[tuple[int, tuple[Any, ...]]] = []

    def find(self, pattern: Pattern) -> list[tuple[Any, ...]]:
        return [
            each
            for each in self.tuples
            if len(each) == pattern.arity
            and all(_plainly(want, field) for want, field in zip(pattern.fields, each, strict=True))
        ]


def _plainly(want: Any, field: Any) -> bool:
    if want is ANY:
        return True
    if isinstance(want, OfType):
        return type(field).__name__ == want.name
    if isinstance(want, Compare):
        return holds(want, field)
    return type(want) is type(field) and want == field


@pytest.mark.parametrize("seed", range(8))
def test_the_index_finds_what_looking_through_finds(seed: int) -> None:
    chance = random.Random(seed)
    owner, plain = Owner(), Plain()
    values = [0, 1, 2, True, 1.0, "a", "b", None]
    for step in range(1500):
        fields = tuple(chance.choice(values) for _ in range(chance.choice((1, 2, 2, 2, 3))))
        if chance.random() < 0.45:
            owner.write(*fields)
            plain.tuples.append(fields)
            continue
        wildcards = [ANY, INT, FIELD >= 1]
        pattern = [f if chance.random() < 0.6 else chance.choice(wildcards) for f in fields]
        found = plain.find(Pattern(pattern))
        # `repr`, for Python takes 1, 1.0 and True for one.
        assert repr(owner.all(*pattern)) == repr(found), (seed, step)
        assert owner.store.count(Pattern(pattern)) == len(found)
        if chance.random() < 0.6:
            (answer,) = owner.ask("a", step, *pattern)
            assert repr(answer[2]) == repr(found[0] if found else None)
            if found:
                place = next(i for i, each in enumerate(plain.tuples) if each is found[0])
                del plain.tuples[place]
    assert len(owner.store) == len(plain.tuples)
    assert len(plain.tuples) > 50  # so that rows were indexed by their second field


def test_alarms_that_are_called_off_take_no_memory() -> None:
    alarms: Alarms[int] = Alarms()
    for moment in range(10_000):
        alarms.call_off(alarms.set(moment, moment))
    kept = alarms.set(5, -1)
    assert len(alarms._heap) < 200
    assert (alarms.next_s, len(alarms)) == (5, 1)
    alarms.call_off(kept + 1)
    assert alarms.due(4) == []
    assert alarms.due(5) == [-1]
    assert alarms.next_s is None
