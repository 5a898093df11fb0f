"""A contender that is a group of processes of ours, and what they start."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks import proc
from benchmarks.contender import CPU, OTHERS, RATE, Plan, Sample
from benchmarks.member import Go, Here, Ran, Stop, Warm
from benchmarks.processes import Part, ProcessGroup, Seats

_START_S = 120.0
_ROUND_S = 60.0
_SLOWEST_STEP_S = 0.5
_STOP_S = 10.0
_BROKEN_STOP_S = 1.0


@dataclass(frozen=True)
class Turn:
    """One measured turn: what the workers say, and the processor time meanwhile.

    `cpu_s` is everyone's, `member_cpu_s` that of each member by rank, `host_cpu_s` that of
    the whole host.
    """

    parts: tuple[Ran, ...]
    cpu_s: float
    member_cpu_s: tuple[float, ...]
    host_cpu_s: float

    @property
    def steps(self) -> int:
        """All workers' steps."""
        return sum(part.steps for part in self.parts)

    @property
    def seconds(self) -> float:
        """From the first worker's begin to the last one's end."""
        ended_s = max(part.ended_s for part in self.parts)
        return ended_s - min(part.began_s for part in self.parts)


def rates(turn: Turn) -> Sample:
    """Steps per second over all workers, milliseconds of processor time for each, and noise."""
    others_s = max(turn.host_cpu_s - turn.cpu_s, 0.0)
    return Sample(
        {
            RATE.name: turn.steps / turn.seconds,
            CPU.name: 1000 * turn.cpu_s / turn.steps,
            OTHERS.name: 100 * others_s / (turn.seconds * len(os.sched_getaffinity(0))),
        }
    )


class Job:
    """Processes that stay alive between turns; those of rank `servers` and above take steps.

    With `freezes` the kernel stops them all between turns: for those that would use
    processor time while they have nothing to do.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Part],
        servers: int = 0,
        *,
        freezes: bool = False,
        summary: Callable[[Turn], Sample] = rates,
        seats: Seats | None = None,
    ) -> None:
        self.name = name
        self.group = ProcessGroup(name, parts, seats=seats)
        self._workers = range(servers, len(parts))
        self._freezes = freezes
        self._summary = summary
        self._stop_s = _STOP_S

    def start(self) -> None:
        """See `Contender`."""
        self.group.start()
        self.group.gather(self._workers, Here, _START_S)
        if self._freezes:
            self.group.freeze()

    def run(self, plan: Plan) -> Sample:
        """See `Contender`."""
        # Who is cut off in the middle of a turn waits for others who are gone.
        self._stop_s = _BROKEN_STOP_S
        with self._awake():
            turn = self._turn(plan)
        self._stop_s = _STOP_S
        return self._summary(turn)

    def stop(self) -> None:
        """See `Contender`."""
        self.group.stop(Stop(), self._stop_s)

    def _turn(self, plan: Plan) -> Turn:
        timeout_s = _ROUND_S + _SLOWEST_STEP_S * (plan.warmup + plan.steps)
        self.group.send(self._workers, plan)
        self.group.gather(self._workers, Warm, timeout_s)
        before = self._cpu()
        self.group.send(self._workers, Go())
        parts = self.group.gather(self._workers, Ran, timeout_s)
        after = self._cpu()
        everyone, host, *members = (late - early for late, early in zip(after, before, strict=True))
        return Turn(tuple(parts), everyone, tuple(members), host)

    def _cpu(self) -> list[float]:
        members = [proc.cpu_s(pid) for pid in self.group.pids()]
        return [self.group.cpu_s(), proc.host_cpu_s(), *members]

    @contextmanager
    def _awake(self) -> Iterator[None]:
        if not self._freezes:
            yield
            return
        self.group.thaw()
        yield
        self.group.freeze()
