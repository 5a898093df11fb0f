"""`large`: where a step is bytes to move, and little else.

What a step of one worker must move, for S bytes of weights and W workers: through a
parameter server S of gradients to it and S of weights back, 2 S, in every mode and for
any number of servers; by a ring all-reduce 2 (W - 1) / W S received. Whatever else is
copied on the way is the system's own choice; the optimizer's reading and writing is not
counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from benchmarks import options
from benchmarks.commands.rivals import ray_rows
from benchmarks.comparisons import usual
from benchmarks.contender import CPU, OTHERS, RATE, Contender, Figure, Plan, Sample
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import tabulate
from benchmarks.variants import chosen

_RATE = Figure(RATE.name, 1)
_CPU = Figure(CPU.name, 0)
_MOVED = Figure("MB a step")
_BANDWIDTH = Figure("GB/s", 1)
_FIGURES = (_RATE, _BANDWIDTH, _MOVED, _CPU, OTHERS)
# Enough for the gradients and weights of several iterations, which Ray's driver has under way.
_STORE_SIZES = 20


@click.command()
@options.benchmark(("torch", "ray"))
@options.workers_option("2")
@click.option("--servers", type=options.Counts(), default="1,2", show_default=True)
@click.option("--parameters", type=click.IntRange(1), default=25_000_000, show_default=True)
@options.steps_option(15)
@options.planes_option
@options.modes_option("sync", "async")
@options.ray_option
def large(
    run: Run,
    workers: tuple[int, ...],
    servers: tuple[int, ...],
    parameters: int,
    steps: int,
    planes: Sequence[str],
    modes: Sequence[str],
    with_ray: bool,
) -> None:
    """Steps of a model of 100 MB whose gradients cost next to nothing: push, SGD, pull.

    Each contender is started for its turn and stopped after it. `memcpy` copies the same
    bytes between two places of a process's memory: a step's 2 × 100 MB, and nothing else.
    MB a step is what the algorithm must move, GB/s that by the rate.
    """
    for count in workers:
        contenders = _contenders(run, parameters, count, servers, planes, modes, with_ray)
        plan = Plan(steps, warmup=3)
        samples = measure(contenders, run.rounds, plan, run.tell, keep=False)
        title = (
            f"large, {parameters:,} parameters: {count} workers, "
            f"{run.rounds} rounds of {steps} steps a worker"
        )
        shown = {
            name: [_with_bytes(sample, moved_mb(name, 4 * parameters, count)) for sample in series]
            for name, series in samples.items()
        }
        copying = contenders[1].name
        run.show(tabulate(title, shown, _FIGURES, usual(list(shown), copying)))


def moved_mb(name: str, size_bytes: int, workers: int) -> float:
    """What a worker's step must move; see the module's docstring."""
    share = 2 * (workers - 1) / workers if name.startswith("DDP") else 2
    return share * size_bytes / 1e6


def _contenders(
    run: Run,
    parameters: int,
    workers: int,
    servers: Sequence[int],
    planes: Sequence[str],
    modes: Sequence[str],
    with_ray: bool,
) -> list[Contender]:
    from benchmarks.contenders import ddp, memcpy, ours
    from benchmarks.workload import Cheap

    work = Cheap(parameters)
    store_mb = _STORE_SIZES * work.size_bytes // 1_000_000
    several = [
        ours.contender(work, variant, mode, workers, count)
        for count in servers
        for variant, mode in chosen(planes, modes)
        if count == 1 or variant.shards
    ]
    return [
        memcpy.contender(work.size_bytes, 1),
        memcpy.contender(work.size_bytes, max(workers, 2)),
        *several,
        *ray_rows(run, work, workers, with_ray, store_mb),
        ddp.contender(work, workers),
    ]


def _with_bytes(sample: Sample, moved: float) -> Sample:
    bandwidth = sample.figures[RATE.name] * moved / 1000
    return Sample(sample.figures | {_MOVED.name: moved, _BANDWIDTH.name: bandwidth})
