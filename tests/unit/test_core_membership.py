"""Who belongs to the job: numbers that are never given twice, ranks, and when it is over."""

from __future__ import annotations

import random

import pytest

from psrpc.core.membership import Membership
from psrpc.messages import View


def started(workers: int, least: int | None = None) -> Membership:
    members = Membership(workers, least)
    for rank in range(workers if least is None else least):
        members.join(rank)
    assert members.started
    return members


def test_those_who_are_expected_have_their_rank_for_a_number() -> None:
    members = Membership(3)
    assert [members.join(rank) for rank in (2, 0)] == [2, 0]
    assert (members.missing, members.to_come, members.started) == ([1], 1, False)
    assert members.join(1) == 1
    assert (members.missing, members.to_come, members.started) == ([], 0, True)


def test_who_has_no_rank_takes_the_lowest_free_one() -> None:
    members = Membership(3)
    members.join(1)
    assert [members.rank(members.join(None)) for _ in range(3)] == [0, 2, 3]


def test_a_rank_that_is_taken_is_not_given_twice() -> None:
    members = Membership(2)
    first, second = members.join(1), members.join(1)
    assert [members.rank(worker) for worker in (first, second)] == [1, 0]


def test_enough_is_enough_to_begin_and_the_rest_may_come_later() -> None:
    members = Membership(4, least=2)
    members.join(3)
    assert (members.to_come, members.started) == (1, False)
    members.join(0)
    assert members.started
    late = members.join(1)
    assert late >= 4, "a number below that may be in some old word"
    assert members.rank(late) == 1


def test_a_number_is_given_once_before_the_start_as_well() -> None:
    members = Membership(2)
    first = members.join(0)
    members.lose(first)
    again = members.join(0)
    assert (first, again, members.rank(again)) == (0, 2, 0)
    assert members.join(1) == 1


@pytest.mark.parametrize("seed", range(30))
def test_numbers_are_never_given_twice_and_ranks_not_at_once(seed: int) -> None:
    draw = random.Random(seed)
    expected = draw.randint(1, 4)
    members = Membership(expected, draw.choice([None, draw.randint(1, expected)]))
    given: list[int] = []
    for _ in range(60):
        if members.live and draw.random() < 0.4:
            end = draw.choice([members.lose, members.leave])
            end(draw.choice(sorted(members.live)))
        given.append(members.join(draw.choice([None, draw.randrange(expected)])))
        ranks = [members.rank(worker) for worker in members.live]
        assert len(ranks) == len(set(ranks))
    assert len(given) == len(set(given))


def test_a_freed_rank_is_given_to_the_next_who_comes() -> None:
    members = started(3)
    members.lose(1)
    assert members.missing == [1]
    assert members.rank(members.join(None)) == 1
    assert members.rank(members.join(None)) == 3


def test_a_job_is_finished_when_all_have_left() -> None:
    members = started(2)
    members.leave(0)
    assert (members.finished, members.deserted, members.short) == (False, False, False)
    members.leave(1)
    assert (members.finished, members.deserted, members.short) == (True, False, False)


def test_a_job_of_which_all_have_died_is_deserted() -> None:
    members = started(2)
    members.lose(0)
    assert (members.lost, members.short, members.deserted) == (1, False, False)
    members.lose(1)
    assert (members.finished, members.deserted, members.short) == (False, True, True)
    members.join(None)
    assert (members.deserted, members.short) == (False, False)


def test_after_a_death_the_work_of_those_who_leave_early_may_be_left() -> None:
    members = started(2)
    members.lose(0)
    members.leave(1, early=True)
    assert (members.finished, members.deserted) == (False, True)
    late = members.join(None)
    members.leave(late)
    assert members.finished, "it has seen the end"


def test_a_job_that_all_leave_early_is_not_finished() -> None:
    members = started(2)
    members.leave(0, early=True)
    assert not members.short
    members.leave(1, early=True)
    assert (members.finished, members.short) == (False, True)
    members.join(None)
    assert (members.finished, members.short) == (False, False)


def test_the_last_ones_death_ends_a_job_that_another_has_finished() -> None:
    members = started(2)
    members.leave(0)
    members.lose(1)
    assert (members.finished, members.short) == (True, False)


def test_nothing_is_short_before_the_start() -> None:
    members = Membership(2, least=2)
    members.join(0)
    members.lose(0)
    assert (members.short, members.deserted, members.finished) == (False, False, False)


def test_a_job_may_need_more_than_one_to_go_on() -> None:
    members = started(3, least=3)
    members.lose(0)
    assert (members.short, members.deserted) == (True, False)
    members.join(None)
    assert not members.short


def test_who_left_because_its_work_was_done_does_not_make_a_job_short() -> None:
    members = started(3, least=3)
    members.leave(0)
    members.lose(1)
    assert not members.short


def test_the_same_death_counts_once() -> None:
    members = started(2)
    members.lose(0)
    members.lose(0)
    members.leave(1)
    members.lose(1)
    assert members.lost == 1


def test_each_change_of_who_steps_is_a_new_view() -> None:
    members = started(2)
    assert members.view == View()
    members.activate({1: 4, 0: 3})
    assert members.view == View(1, ((0, 3), (1, 4)))
    members.deactivate(0)
    members.deactivate(0)
    assert members.view == View(2, ((1, 4),))
    assert members.is_active(1)
    assert [members.since(worker) for worker in (0, 1)] == [0, 1]
    members.lose(1)
    assert members.view == View(3, ())
    members.lose(0)
    assert members.view.epoch == 3, "it was not stepping"
