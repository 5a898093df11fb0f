"""Actors, of psrpc and of Ray: the same classes and the same driver, one after the other."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import proc
from benchmarks.contender import BenchmarkError, Figure, Plan, Sample
from benchmarks.contenders import ray_example, tuples
from benchmarks.contenders.calls import percentile
from benchmarks.contenders.target import Target, echo
from benchmarks.member import Go, Here, Stage, Stop
from benchmarks.processes import MARK, Part, ProcessGroup

P50, P99 = Figure("p50 ms", 3), Figure("p99 ms", 3)
ONE, FOUR = Figure("calls/s, 1 caller"), Figure("calls/s, 4 callers")
TASKS, MAPPED = Figure("tasks/s, submit"), Figure("tasks/s, map")
COLD, COLD_OWN = Figure("new actor ms", 1), Figure("own process ms", 1)
KB, MB = Figure("kB an actor", 1), Figure("MB a process", 1)
CALLS = (P50, P99, ONE, FOUR, TASKS, MAPPED)
BIRTHS = (COLD, COLD_OWN, KB, MB)

_START_S = 120.0
_RUN_S = 300.0
_STOP_S = 15.0
_LIGHT = 1_000
_APART = 4
_POOL = 4
_RAY_DOES = 50  # one task of Ray's for so many of psrpc's, so that its turn is no longer


class Psrpc:
    """The driver's way to psrpc."""

    def __init__(self, folder: Path) -> None:
        import psrpc

        self._psrpc = psrpc
        psrpc.init(num_cpus=_APART * 2, num_gpus=0)
        self.get: Callable[..., Any] = psrpc.get
        self.pool = psrpc.Pool(size=_POOL)

    def make(self, *, apart: bool) -> Any:
        """An actor, in a process of its own or in one of those that there are."""
        return self._psrpc.actor(Target, own_process=apart).remote()

    def tasks(self, count: int) -> None:
        """Trivial tasks through a pool, one `submit` each."""
        futures = [self.pool.submit(echo, number) for number in range(count)]
        assert [future.result() for future in futures] == list(range(count))

    def mapped(self, count: int) -> None:
        """Trivial tasks through a pool, by `map`, in chunks of one."""
        assert list(self.pool.map(echo, range(count))) == list(range(count))

    def tuples(self, count: int) -> dict[str, float]:
        """Operations of a tuple space."""

        def make(kind: type, *args: Any) -> Any:
            return self._psrpc.actor(kind, own_process=True).remote(*args)

        return tuples.measure(make, self.get, count)

    def close(self) -> None:
        """End the cluster."""
        self.pool.shutdown()
        self._psrpc.shutdown()


class Ray:
    """The driver's way to Ray. All of its actors have processes of their own."""

    def __init__(self, folder: Path) -> None:
        self._ray = ray_example.start(str(folder), 200, num_cpus=_APART * 2)
        self.get: Callable[..., Any] = self._ray.get
        self._echo = self._ray.remote(num_cpus=1)(echo)
        from ray.util import ActorPool

        self._pool = ActorPool([self.make(apart=True) for _ in range(_POOL)])

    def make(self, *, apart: bool) -> Any:
        """An actor."""
        return self._ray.remote(num_cpus=0)(Target).remote()

    def tasks(self, count: int) -> None:
        """Trivial tasks: Ray's own pool is its workers."""
        assert self.get([self._echo.remote(n) for n in range(count)]) == list(range(count))

    def mapped(self, count: int) -> None:
        """Trivial tasks through a pool of actors."""
        found = self._pool.map(lambda actor, number: actor.echo.remote(number), range(count))
        assert list(found) == list(range(count))

    def close(self) -> None:
        """End the cluster."""
        self._ray.shutdown()


SYSTEMS: dict[str, type[Psrpc] | type[Ray]] = {"psrpc": Psrpc, "Ray": Ray}


class Actors:
    """A driver with a cluster, new for each turn."""

    def __init__(self, name: str, steps: int, folder: Path) -> None:
        self.name = name
        self._group = ProcessGroup(name, [Part(play, (name, steps, folder / name[0]))])

    def start(self) -> None:
        """See `Contender`."""
        self._group.start()
        self._group.gather([0], Here, _START_S)

    def run(self, plan: Plan) -> Sample:
        """See `Contender`."""
        self._group.send([0], Go())
        (figures,) = self._group.gather([0], dict, _RUN_S)
        return Sample(figures)

    def stop(self) -> None:
        """See `Contender`."""
        self._group.stop(Stop(), _STOP_S)


def play(stage: Stage, name: str, steps: int, folder: Path) -> None:
    """Be the driver."""
    system = SYSTEMS[name](folder)
    try:
        stage.once(lambda: measure(system, steps))
    finally:
        system.close()


def measure(system: Any, steps: int) -> dict[str, float]:
    """All figures, one after the other."""
    actor = system.make(apart=True)
    times_s = _calls(system, actor, steps)
    figures = {
        P50.name: 1000 * percentile(times_s, 0.5),
        P99.name: 1000 * percentile(times_s, 0.99),
    }
    pipelined = steps * 10
    figures[ONE.name] = pipelined / _took_s(
        lambda: system.get([actor.echo.remote(n) for n in range(pipelined)])
    )
    callers = [system.make(apart=True) for _ in range(4)]
    system.get([caller.echo.remote(0) for caller in callers])
    each, get = pipelined // 4, system.get
    figures[FOUR.name] = pipelined / _took_s(
        lambda: get([caller.call.remote(actor, each, get) for caller in callers])
    )
    tasks = steps * _RAY_DOES // (_RAY_DOES if isinstance(system, Ray) else 1)
    for figure, act in ((TASKS, system.tasks), (MAPPED, system.mapped)):
        act(tasks)
        figures[figure.name] = tasks / _took_s(partial(act, tasks))
    if isinstance(system, Ray):
        figures |= _births(system, COLD_OWN.name, MB.name, 1e6, _APART, apart=True)
    else:
        # So that each of the processes that they share is there.
        before = [system.make(apart=False) for _ in range(_APART * 4)]
        system.get([actor.echo.remote(0) for actor in before])
        figures |= _births(system, COLD.name, KB.name, 1e3, _LIGHT, apart=False)
        figures |= _births(system, COLD_OWN.name, MB.name, 1e6, _APART, apart=True)
        figures |= system.tuples(steps * 3)
    return figures


def _births(
    system: Any, cold: str, size: str, unit: float, count: int, *, apart: bool
) -> dict[str, float]:
    """How long actors take from nothing to their first answer, and what they hold then."""
    before, kept, times_s = _held_bytes(), [], []
    for _ in range(count):
        began_s = time.perf_counter()
        actor = system.make(apart=apart)
        system.get(actor.echo.remote(0))
        times_s.append(time.perf_counter() - began_s)
        kept.append(actor)
    each = (_held_bytes() - before) / count
    return {cold: 1000 * statistics.median(times_s), size: each / unit}


def _calls(system: Any, actor: Any, steps: int) -> tuple[float, ...]:
    times_s = []
    for number in range(steps + 100):
        began_s = time.perf_counter()
        system.get(actor.echo.remote(number))
        times_s.append(time.perf_counter() - began_s)
    return tuple(times_s[100:])


def _took_s(act: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    act()
    return time.perf_counter() - began_s


def _held_bytes() -> int:
    """The memory of this process and all that it started; what they share is counted once."""
    if MARK not in os.environ:
        raise BenchmarkError("this is to run within the harness")
    total = 0
    for pid in proc.marked(f"{MARK}={os.environ[MARK]}"):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has just ended
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total
