"""What a launcher and its processes let each other know."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from psrpc.errors import JobFailedError, ModelError
from psrpc.notes import Notes, confess, failed_already, over_already


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Notes]:
    with closing(Notes()) as notes:
        for name, value in notes.variables().items():
            monkeypatch.setenv(name, value)
        yield notes


def test_the_first_failure_counts(notes: Notes) -> None:
    assert not notes.failed
    assert not failed_already()
    assert notes.failure() is None
    assert confess(ModelError("a: no such model"))
    assert confess(JobFailedError("b"))
    assert notes.failed
    assert failed_already()
    failure = notes.failure()
    assert isinstance(failure, ModelError)
    assert str(failure) == "a: no such model"


def test_the_end_is_told(notes: Notes) -> None:
    assert not over_already()
    notes.end()
    assert over_already()
    assert not notes.failed


def test_another_process_can_write_there(notes: Notes) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0 if confess(JobFailedError("a child")) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert str(notes.failure()) == "a child"


def test_a_launcher_that_is_gone_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    for name, value in notes.variables().items():
        monkeypatch.setenv(name, value)
    notes.close()
    assert not confess(JobFailedError("late"))
    assert not failed_already()
    assert not over_already()


def test_without_a_launcher_of_ours_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PSRPC_FAILURE_FILE", raising=False)
    assert not confess(JobFailedError("who asked?"))
    assert not failed_already()
