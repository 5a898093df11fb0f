"""`memory`: what a job's processes hold, and whether it grows."""

from __future__ import annotations

from collections.abc import Sequence

import click

from benchmarks import options
from benchmarks.contender import Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import tabulate
from benchmarks.variants import VARIANTS, chosen, name_of

SIZES = {"4 kB": 4_000, "10 MB": 10_000_000, "400 MB": 400_000_000}
OPTIMIZERS = ("SGD", "momentum", "Adam")
_EARLY = 1_000


@click.command()
@options.benchmark()
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@options.steps_option(10)
@options.planes_option
@click.option("--size", "sizes", type=click.Choice(tuple(SIZES)), multiple=True, default=SIZES)
@click.option(
    "--optimizer", "optimizers", type=click.Choice(OPTIMIZERS), multiple=True, default=OPTIMIZERS
)
@click.option(
    "--long", "long", type=int, default=20_000, show_default=True, help="steps; 0: leave it out"
)
@click.option("--long-rounds", type=click.IntRange(1), default=1, show_default=True)
def memory(
    run: Run,
    workers: int,
    steps: int,
    planes: Sequence[str],
    sizes: Sequence[str],
    optimizers: Sequence[str],
    long: int,
    long_rounds: int,
) -> None:
    """Resident memory of a server and a worker, less that of a process with the model alone.

    The bare process has imported torch and psrpc and built the same model; it runs at the same
    time. `one process` is one that trains by itself. RSS counts shared pages in full, PSS by
    its share of them, USS not at all. The last table is of a job of 4 kB: what all its
    processes have gained from their 1,000th step to their last.
    """
    from benchmarks.contenders import footprints
    from benchmarks.workload import Cheap

    for size in sizes:
        work = Cheap(SIZES[size] // 4)
        jobs = [footprints.of_one(work, optimizer) for optimizer in optimizers]
        for plane in planes:
            jobs += [
                footprints.of_job(work, VARIANTS[plane], optimizer, workers)
                for optimizer in optimizers
            ]
        samples = measure(jobs, run.rounds, Plan(steps, 0), run.tell, keep=False)
        title = f"memory beyond a bare process: model of {size}, {workers} workers, 1 server"
        run.show(tabulate(title, samples, footprints.MEMORY))
    if long > _EARLY:
        _grow(run, workers, planes, long, long_rounds)


def _grow(run: Run, workers: int, planes: Sequence[str], steps: int, rounds: int) -> None:
    from benchmarks.contenders import footprints, ours
    from benchmarks.workload import Cheap

    work = Cheap(SIZES["4 kB"] // 4)
    jobs = [
        footprints.Growth(name_of(variant.name, mode), ours.contender(work, variant, mode, workers))
        for variant, mode in chosen(planes, ("sync", "async"))
    ]
    plan = Plan(steps - _EARLY, warmup=_EARLY)
    samples = measure(jobs, rounds, plan, run.tell, keep=False)
    title = f"growth from step {_EARLY:,} to {steps:,}: 4 kB, {workers} workers, 1 server"
    run.show(tabulate(title, samples, footprints.GROWTH))
