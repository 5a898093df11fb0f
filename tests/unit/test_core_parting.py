"""Workers that leave: one reports the results, whoever dies."""

from __future__ import annotations

import itertools

import pytest

from psrpc.core.decisions import Hold, Same
from psrpc.messages import Bye, Leave, Left
from psrpc.modes import Asynchronous
from tests.unit.office import Office, answers, full_office, left


def parted(workers: int = 3) -> Office:
    """All workers have left; that of rank 0 is to report."""
    office = full_office(Asynchronous(), workers)
    for worker in reversed(range(workers)):
        decisions = office.leave(Leave(worker, 1, 0, 0), 10 + worker)
    assert left(decisions) == {10 + worker: worker == 0 for worker in range(workers)}
    return office


def test_farewells_wait_for_the_one_that_reports() -> None:
    office = parted()
    (hold,) = office.bye(Bye(2), 22)
    assert isinstance(hold, Hold)
    assert hold.reason == "worker 0 has not got the results yet"
    assert left(office.bye(Bye(0), 20)) == {20: True, 22: False}
    assert left(office.bye(Bye(1), 21)) == {21: False}, "nothing is waited for any more"
    assert office.core.over


def test_if_it_dies_one_that_waits_takes_its_place() -> None:
    office = parted()
    office.bye(Bye(2), 22)
    assert left(office.lose(0)) == {}, "worker 1 is next, and has not said its farewell"
    assert left(office.bye(Bye(1), 21)) == {21: True, 22: False}
    assert office.core.over


def test_one_that_waits_already_is_told_at_once() -> None:
    office = parted()
    office.bye(Bye(2), 22)
    office.bye(Bye(1), 21)
    assert left(office.lose(0)) == {21: True, 22: False}
    assert office.core.over


def test_the_dead_do_not_report_when_they_come_back() -> None:
    office = parted(2)
    office.lose(0)
    assert left(office.bye(Bye(0), 20)) == {20: False}
    assert left(office.bye(Bye(1), 21)) == {21: True}
    assert left(office.bye(Bye(1), 23)) == {23: True}, "as the first time"


def test_one_that_has_reported_and_dies_has_reported() -> None:
    office = parted(2)
    assert left(office.bye(Bye(0), 20)) == {20: True}
    office.lose(0)
    assert left(office.bye(Bye(0), 21)) == {21: True}
    assert left(office.bye(Bye(1), 22)) == {22: False}


def test_one_that_waits_and_dies_is_not_chosen() -> None:
    office = parted()
    office.bye(Bye(1), 21)
    assert left(office.lose(1)) == {21: False}
    assert left(office.lose(0)) == {}
    assert left(office.bye(Bye(2), 22)) == {22: True}


def test_one_that_is_gone_is_not_chosen() -> None:
    office = parted()
    office.bye(Bye(1), 21)
    assert office.bye(Bye(1), 31) == [Same(31, 21, "said before, and still open")]
    assert left(office.bye(Bye(1, gone=True), 41)) == {21: False, 41: False}
    assert left(office.lose(0)) == {}
    assert left(office.bye(Bye(2), 22)) == {22: True}
    assert office.core.over


def test_nobody_waits_when_all_others_are_dead() -> None:
    office = parted()
    for worker in range(3):
        office.lose(worker)
    assert office.core.over


def test_who_left_early_waits_for_nobody() -> None:
    office = full_office(Asynchronous(), 2)
    office.leave(Leave(1, 1, 0, 0, early=True), 10)
    assert left(office.leave(Leave(0, 1, 0, 0), 11)) == {11: True}
    assert left(office.bye(Bye(1), 21)) == {21: False}
    assert not office.core.over


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_one_of_those_that_live_reports_and_all_are_answered(order: tuple[int, ...]) -> None:
    """Each farewell, and a death before, between or after them: of any worker."""
    for victim, moment in itertools.product(range(3), range(4)):
        office = parted()
        told: dict[int, bool] = {}
        for number, worker in enumerate(order):
            if number == moment:
                told |= left(office.lose(victim))
            told |= left(office.bye(Bye(worker), worker))
        if moment == 3:
            told |= left(office.lose(victim))
        assert set(told) == {0, 1, 2}
        assert sum(told.values()) == 1, (victim, moment)
        was_dead = order.index(victim) >= moment
        assert not (was_dead and told[victim])
        assert all(isinstance(each, Left) for each in answers(office.bye(Bye(1), 99)).values())
        assert office.core.over
