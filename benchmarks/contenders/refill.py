"""A new backup gets a copy of a shard's state over a slow link, while a worker trains."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import psrpc
from benchmarks.contender import BenchmarkError, Figure, Plan, Sample
from benchmarks.member import Go, Here, Ran, Stage, Stop, Warm
from benchmarks.namespaces import Fleet, traffic
from benchmarks.processes import Part, ProcessGroup, Seats
from benchmarks.workload import Cheap
from psrpc.worker import Worker

SHARE = Figure("copy, % of the link")
SECONDS = Figure("copy, s", 2)
SIZE = Figure("MB copied")
BEFORE = Figure("s a step before it", 2)
MEANWHILE = Figure("s a step meanwhile", 2)
SLOWER = Figure("slower by %")
FIGURES = (SHARE, SECONDS, SIZE, BEFORE, MEANWHILE, SLOWER)

_START_S = 240.0
_LOOK_S = 0.02
_EDGE = 0.02  # of the copy: what its begin and its end are told by


@dataclass(frozen=True)
class Work:
    """A model stepped by Adam, whose state is three times its weights."""

    model: Cheap
    computing_s: float

    @property
    def state_bytes(self) -> int:
        """Weights and the optimizer's two moments."""
        return 3 * self.model.size_bytes


class Refill:
    """Primary, backup and one worker, each on a host of its own. A turn has one backup die."""

    def __init__(self, name: str, work: Work, fleet: Fleet, rate_mbit: int) -> None:
        self.name = name
        self._work, self._fleet, self._rate_mbit = work, fleet, rate_mbit
        parts = [Part(play, (work,))] * 3
        self._group = ProcessGroup(name, parts, seats=Seats(fleet, (0, 1, 2)))

    def start(self) -> None:
        """See `Contender`."""
        self._group.start()
        self._group.gather([2], Here, _START_S)

    def run(self, plan: Plan) -> Sample:
        """The backup dies before the first measured step, and another one comes a third later."""
        group = self._group
        group.send([2], plan)
        group.gather([2], Warm, _START_S)
        group.kill(1)
        seen: list[tuple[float, int]] = []
        over = threading.Event()
        looks = threading.Thread(target=self._look, args=(seen, over))
        group.send([2], Go())
        began_s = time.monotonic()
        looks.start()
        try:
            time.sleep(plan.steps / 3 * self._work.computing_s)
            group.replace(1)
            (ran,) = group.gather([2], Ran, _START_S)
        finally:
            over.set()
            looks.join()
        return self._summary(ran, seen, began_s)

    def stop(self) -> None:
        """See `Contender`."""
        self._group.stop(Stop(), 5.0)

    def _look(self, seen: list[tuple[float, int]], over: threading.Event) -> None:
        while not over.wait(_LOOK_S):
            seen.append((time.monotonic(), traffic(self._fleet.names[1])[0]))

    def _summary(self, ran: Ran, seen: Sequence[tuple[float, int]], began_s: float) -> Sample:
        size = self._work.state_bytes
        low, high = seen[0][1] + _EDGE * size, seen[0][1] + (1 - _EDGE) * size
        if seen[-1][1] < high:
            raise BenchmarkError(f"{self.name}: no copy was made within {ran.steps} steps")
        first_s = next(at_s for at_s, count in seen if count > low)
        last_s = next(at_s for at_s, count in seen if count > high)
        edges = [ran.began_s]
        for step_s in ran.times_s:
            edges.append(edges[-1] + step_s)
        steps = list(itertools.pairwise(edges))
        # The first one waits for the authority: the backup is dead.
        before = [end - begin for begin, end in steps[1:] if end < first_s]
        meanwhile = [end - begin for begin, end in steps if end > first_s and begin < last_s]
        if not before:
            raise BenchmarkError(f"{self.name}: the copy came before a step without it")
        usual_s, slow_s = sum(before) / len(before), sum(meanwhile) / len(meanwhile)
        share = (1 - 2 * _EDGE) * size * 8 / (last_s - first_s) / (self._rate_mbit * 1e6)
        return Sample(
            {
                SHARE.name: 100 * share,
                SECONDS.name: (last_s - first_s) / (1 - 2 * _EDGE),
                SIZE.name: size / 1e6,
                BEFORE.name: usual_s,
                MEANWHILE.name: slow_s,
                SLOWER.name: 100 * (slow_s / usual_s - 1),
            }
        )


def play(stage: Stage, work: Work) -> None:
    """Be one process of the job."""
    psrpc.run(
        functools.partial(_train, stage=stage, work=work),
        model=work.model.model,
        optimizer=functools.partial(torch.optim.Adam, lr=1e-3),
        mode=psrpc.Asynchronous(),
        plane="rpc",
        replicas=1,
        device="cpu",
        threads=1,
        elastic=psrpc.Elastic(rejoin_timeout_s=200.0),
    )


def _train(worker: Worker, *, stage: Stage, work: Work) -> None:
    gradients = work.model.gradients(worker.model, worker.rank, worker.num_workers, cleared=True)

    def steps(count: int) -> list[float]:
        times_s = []
        for _ in range(count):
            began_s = time.monotonic()
            gradients()
            time.sleep(work.computing_s)  # on a processor of its own
            worker.step()
            times_s.append(time.monotonic() - began_s)
        return times_s

    stage.conduct(steps, worker.paused)
