"""The three modes as values."""

from __future__ import annotations

import pickle

import pytest

from psrpc.errors import UsageError
from psrpc.modes import Aggregation, Asynchronous, BoundedStaleness, Mode, Synchronous


@pytest.mark.parametrize(
    ("mode", "name", "bound", "aggregation"),
    [
        (Synchronous(), "sync", 0, Aggregation.ROUND),
        (BoundedStaleness(), "bounded", 4, Aggregation.PUSH),
        (BoundedStaleness(0), "bounded", 0, Aggregation.PUSH),
        (Asynchronous(), "async", None, Aggregation.PUSH),
    ],
)
def test_a_mode_is_a_bound_and_an_aggregation(
    mode: Mode, name: str, bound: int | None, aggregation: Aggregation
) -> None:
    assert (mode.name, mode.bound, mode.aggregation) == (name, bound, aggregation)
    assert pickle.loads(pickle.dumps(mode)) == mode


@pytest.mark.parametrize("staleness", [-1, 1.5, "4", None, True])
def test_staleness_must_be_a_whole_number_from_0(staleness: object) -> None:
    with pytest.raises(UsageError, match="staleness must be"):
        BoundedStaleness(staleness)  # type: ignore[arg-type]
