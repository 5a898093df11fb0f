"""Every error survives pickling and a trip to another process."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from psrpc import errors
from psrpc.errors import (
    ConfigError,
    JobFailedError,
    PsrpcError,
    StoppedError,
    UsageError,
    decode,
    encode,
)

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, PsrpcError) and kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", ALL)
def test_it_survives_pickling(kind: type[PsrpcError]) -> None:
    error = kind("worker 3 was lost: start it again")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == "worker 3 was lost: start it again"


@pytest.mark.parametrize("kind", ALL)
def test_it_crosses_as_name_and_text(kind: type[PsrpcError]) -> None:
    again = decode(*encode(kind("worker 3 was lost")))
    assert type(again) is kind
    assert str(again) == "worker 3 was lost"


@pytest.mark.parametrize("kind", ALL)
def test_it_is_drawn_in_the_tree(kind: type[PsrpcError]) -> None:
    assert errors.__doc__ is not None
    assert kind.__name__ in errors.__doc__
    assert kind.__doc__


def test_all_problems_stay_together() -> None:
    error = ConfigError(line for line in ("no port", "no host"))
    assert str(error) == "no port\nno host"
    for again in (pickle.loads(pickle.dumps(error)), decode(*encode(error))):
        assert isinstance(again, ConfigError)
        assert again.problems == ("no port", "no host")


@pytest.mark.parametrize("kind", ALL)
def test_only_the_callers_faults_end_with_2(kind: type[PsrpcError]) -> None:
    usual = 2 if issubclass(kind, UsageError) else 1
    # Whom a signal ended ends as the signal's default would have it in a shell.
    assert kind.exit_code == (143 if kind is StoppedError else usual)


def test_a_foreign_error_fails_the_job_and_keeps_its_name() -> None:
    error = decode(*encode(ZeroDivisionError("division by zero")))
    assert type(error) is JobFailedError
    assert str(error) == "ZeroDivisionError: division by zero"


def test_an_error_without_text_is_described() -> None:
    assert encode(KeyError()) == ("KeyError", "KeyError()")
