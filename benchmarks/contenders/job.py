"""A contender that is a group of our own processes: what all but foreign systems are."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contender import Plan, Sample
from benchmarks.member import Go, Here, Ran, Stop, Warm
from benchmarks.processes import Part, ProcessGroup

_START_S = 120.0
_ROUND_S = 60.0
_SLOWEST_STEP_S = 0.5
_STOP_S = 10.0


class Job:
    """Processes that stay alive between rounds; those of rank `servers` and above take steps."""

    def __init__(self, name: str, parts: Sequence[Part], servers: int = 0) -> None:
        self.name = name
        self._group = ProcessGroup(name, parts)
        self._workers = range(servers, len(parts))

    def start(self) -> None:
        """See `Contender`."""
        self._group.start()
        self._group.gather(self._workers, Here, _START_S)

    def run(self, plan: Plan) -> Sample:
        """See `Contender`."""
        timeout_s = _ROUND_S + _SLOWEST_STEP_S * (plan.warmup + plan.steps)
        self._group.send(self._workers, plan)
        self._group.gather(self._workers, Warm, timeout_s)
        used_s = self._group.cpu_s()
        self._group.send(self._workers, Go())
        parts = self._group.gather(self._workers, Ran, timeout_s)
        return joined(parts, self._group.cpu_s() - used_s)

    def stop(self) -> None:
        """See `Contender`."""
        self._group.stop(Stop(), _STOP_S)


def joined(parts: Sequence[Ran], cpu_s: float) -> Sample:
    """The round that the workers' parts make up."""
    steps = sum(part.steps for part in parts)
    seconds = max(part.ended_s for part in parts) - min(part.began_s for part in parts)
    return Sample(steps, seconds, cpu_s)
