"""A tuple space and its owner, for tests of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from psrpc.space import Space, SpaceServer
from tests.processes import PATIENCE_S


@pytest.fixture
def owner() -> Iterator[SpaceServer]:
    with SpaceServer() as server:
        yield server


@pytest.fixture
def space(owner: SpaceServer) -> Iterator[Space]:
    with Space(owner.address) as space:
        yield space


def result(future: Future[Any]) -> Any:
    """What came of it, within the time that nothing here takes."""
    return future.result(PATIENCE_S)
