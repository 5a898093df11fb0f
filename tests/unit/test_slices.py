"""Threads that compute, and how they ask for that."""

from __future__ import annotations

import os
import threading

import pytest

from psrpc.slices import in_long_slices


def policy() -> int:
    return os.sched_getscheduler(0)


def test_a_thread_computes_in_long_slices_and_then_no_more() -> None:
    go, other = threading.Event(), list[int]()
    thread = threading.Thread(target=lambda: (go.wait(), other.append(policy())))
    thread.start()
    with in_long_slices():
        assert policy() == os.SCHED_BATCH
        go.set()
        thread.join()
    assert policy() == os.SCHED_OTHER
    assert other == [os.SCHED_OTHER], "another thread is as it was"


def test_an_error_ends_that_as_well() -> None:
    def fail() -> None:
        with in_long_slices():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert policy() == os.SCHED_OTHER


@pytest.mark.parametrize("before", [True, False])
def test_a_policy_that_the_user_chose_stays(before: bool) -> None:
    seen: list[int] = []

    def work() -> None:
        if before:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with in_long_slices():
            if not before:
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            seen.append(policy())
        seen.append(policy())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [os.SCHED_IDLE, os.SCHED_IDLE]


def test_a_system_that_forbids_it_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbid)
    with in_long_slices():
        assert policy() == os.SCHED_OTHER
