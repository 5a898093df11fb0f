"""One dock for all modules of this shelf: torch allows one RPC agent a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from psrpc.errors import ConfigError
from psrpc.job import PlaneChoice
from tests.contract.fleet import Dock, Fleet, Plan

PLANES = ["loopback", "rpc", "stream", "shm", "collective"]


@pytest.fixture(scope="session")
def dock() -> Iterator[Dock]:
    """Starts servers; they end with the session."""
    dock = Dock()
    yield dock
    dock.close()


@pytest.fixture(params=PLANES)
def launch(request: pytest.FixtureRequest, dock: Dock) -> Iterator[Callable[[Plan], Fleet]]:
    """Starts a plan's servers afresh on one of the planes; skips what that plane refuses."""
    fleets: list[Fleet] = []

    def start(plan: Plan) -> Fleet:
        if request.param == PlaneChoice.COLLECTIVE.value:
            try:
                replace(plan.job, plane=PlaneChoice.COLLECTIVE).check()
            except ConfigError as refusal:
                pytest.skip(str(refusal))
        fleets.append(dock.fleet(request.param, plan))
        return fleets[-1]

    yield start
    for fleet in fleets:
        fleet.close()
