"""`refill`: how fast a new backup has a shard's state, and what training loses by that."""

from __future__ import annotations

import click

from benchmarks import namespaces, options
from benchmarks.contender import Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import tabulate


@click.command()
@options.benchmark()
@options.steps_option(20)
@click.option("--mbit", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--size-mb", type=click.IntRange(3), default=400, show_default=True)
@click.option("--computing", type=float, default=3.0, show_default=True, help="seconds a step")
def refill(run: Run, steps: int, mbit: int, size_mb: int, computing: float) -> None:
    """A shard's backup dies, and another one gets a copy of its state while training goes on.

    The state is a model and Adam's two moments of it, `size-mb` in all. Primary, backup and one
    worker are on virtual hosts with links of `mbit`; the worker computes (sleeps) for as long as
    said, then pushes gradients and takes weights, a third of `size-mb` each. The copy's time is
    told by the bytes that come to the new backup's host.
    """
    from benchmarks.contenders.refill import FIGURES, Refill, Work
    from benchmarks.workload import Cheap

    work = Work(Cheap(size_mb * 1_000_000 // 12), computing)
    with namespaces.fleet(3, mbit) as fleet:
        job = Refill(f"{mbit} Mbit/s", work, fleet, mbit)
        samples = measure([job], run.rounds, Plan(steps, 2), run.tell, keep=False)
    title = f"refill, {size_mb} MB of state: {run.rounds} rounds of {steps} steps"
    run.show(tabulate(title, samples, FIGURES))
