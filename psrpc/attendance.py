"""What the coordinator tells whoever watches: which workers come, and are lost, while it runs."""

from __future__ import annotations

from collections.abc import Callable

from psrpc.coordinator import Coordinator
from psrpc.saying import say


def watched(
    coordinator: Coordinator, lose: Callable[[int, str], None]
) -> Callable[[int, str], None]:
    """Say who comes from now on. The result is `lose`, and says so if the job goes on."""

    def lose_and_say(process: int, why: str) -> None:
        rank = _rank_of(coordinator, process)
        lose(process, why)
        server = coordinator.server
        goes_on = server.failure is None and not server.ended.is_set()
        if rank is not None and goes_on:
            say(f"worker {rank} is lost ({why}): nobody waits for it")

    coordinator.came = lambda rank: say(f"worker {rank} has come")
    return lose_and_say


def _rank_of(coordinator: Coordinator, process: int) -> int | None:
    """The rank of who takes part in a job that has begun."""
    worker, members = coordinator.core.worker_of(process), coordinator.core.members
    try:
        return members.rank(worker) if worker is not None and members.started else None
    except KeyError:
        return None  # it has left
