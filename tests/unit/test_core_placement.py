"""Placement: one pure function over what nodes have and what is wanted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from psrpc.core.placement import (
    Busy,
    Impossible,
    Offer,
    Placed,
    Resources,
    Strategy,
    Want,
    place,
)

GB = 10**9
SMALL = Offer("small", Resources(2, 0, 4 * GB), labels={"zone": "a"})
LARGE = Offer("large", Resources(8, 2, 64 * GB), labels={"zone": "b"})
ONE_CPU = Want(Resources(cpus=1))


def used(offer: Offer, **amounts: float) -> Offer:
    return replace(offer, used=Resources(**amounts))  # type: ignore[arg-type]


def node_of(*offers: Offer, want: Want) -> str:
    verdict = place(offers, want)
    assert isinstance(verdict, Placed), verdict
    return verdict.node


@pytest.mark.parametrize(
    ("strategy", "expected"), [(Strategy.SPREAD, "large"), (Strategy.PACK, "small")]
)
def test_spread_takes_the_emptiest_and_pack_the_fullest(strategy: Strategy, expected: str) -> None:
    offers = (used(SMALL, cpus=1), used(LARGE, cpus=1))
    assert node_of(*offers, want=replace(ONE_CPU, strategy=strategy)) == expected


@pytest.mark.parametrize("strategy", [Strategy.SPREAD, Strategy.PACK])
def test_guests_that_asked_for_nothing_are_counted_too(strategy: Strategy) -> None:
    offers = (replace(SMALL, guests=3), LARGE)
    expected = "large" if strategy is Strategy.SPREAD else "small"
    assert node_of(*offers, want=Want(strategy=strategy)) == expected


def test_even_counts_guests_and_not_how_large_a_node_is() -> None:
    offers = (replace(used(SMALL, cpus=1), guests=1), replace(used(LARGE, cpus=2), guests=2))
    assert node_of(*offers, want=replace(ONE_CPU, strategy=Strategy.SPREAD)) == "large"
    assert node_of(*offers, want=replace(ONE_CPU, strategy=Strategy.EVEN)) == "small"


def test_what_is_to_be_apart_is_where_there_is_room() -> None:
    apart = replace(ONE_CPU, apart_from=frozenset({"large"}))
    assert node_of(SMALL, LARGE, want=apart) == "small"
    assert node_of(used(SMALL, cpus=2), LARGE, want=apart) == "large"


def test_what_only_one_node_has_decides() -> None:
    assert node_of(SMALL, LARGE, want=Want(Resources(gpus=1))) == "large"
    assert node_of(SMALL, LARGE, want=Want(labels={"zone": "a"})) == "small"
    near = Want(strategy=Strategy.AFFINITY, near="small")
    assert node_of(LARGE, SMALL, want=near) == "small"


def test_parts_of_a_cpu_add_up_to_a_whole_one() -> None:
    third = Resources(cpus=1 / 3)
    offer = Offer("one", Resources(1, 0, 0), used=third.plus(third))
    assert node_of(offer, want=Want(third)) == "one"
    full = replace(offer, used=offer.used.plus(third))
    assert isinstance(place([full], Want(third)), Busy)


def test_what_is_in_use_is_waited_for_and_the_reason_names_it() -> None:
    verdict = place([used(SMALL, cpus=2), used(LARGE, cpus=7.5)], ONE_CPU)
    assert verdict == Busy("waits for 1 CPUs: large is 0.5 CPUs short, others use it")


@pytest.mark.parametrize(
    ("want", "said"),
    [
        (Want(Resources(cpus=16)), "16 CPUs; the nearest is large, which has 8 CPUs, 2 GPUs"),
        (Want(Resources(gpus=4, cpus=1)), "the nearest is large"),
        (Want(labels={"zone": "c"}), "zone=c; the nearest is small, which has zone=a"),
        (Want(Resources(gpus=1), {"zone": "a"}), "the nearest is small"),
        (
            Want(strategy=Strategy.AFFINITY, near="gone"),
            "no node is named gone; there are small, large",
        ),
        (Want(labels={"disk": "ssd"}), "has no label disk"),
    ],
)
def test_what_no_node_can_give_names_the_nearest(want: Want, said: str) -> None:
    verdict = place([SMALL, LARGE], want)
    assert isinstance(verdict, Impossible)
    assert said in verdict.reason


def test_without_nodes_nothing_has_a_place() -> None:
    assert place([], Want()) == Impossible("there is no node")
