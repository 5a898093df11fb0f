"""`latency`: how long one exchange takes, and what it costs either side."""

from __future__ import annotations

from collections.abc import Sequence

import click

from benchmarks import options
from benchmarks.contender import Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import tabulate
from benchmarks.variants import VARIANTS

SIZES = {"4 kB": 4_000, "1 MB": 1_000_000, "16 MB": 16_000_000}
CALLS = ("step", "push_pull")


@click.command()
@options.benchmark()
@options.steps_option(500)
@options.planes_option
@click.option("--size", "sizes", type=click.Choice(tuple(SIZES)), multiple=True, default=SIZES)
@click.option("--call", "calls", type=click.Choice(CALLS), multiple=True, default=CALLS)
def latency(
    run: Run, steps: int, planes: Sequence[str], sizes: Sequence[str], calls: Sequence[str]
) -> None:
    """Milliseconds of `worker.push_pull().result()` and of `worker.step()`, by plane and size.

    One worker, one server, SGD, asynchronous where the plane knows that (for one worker all
    modes are alike); `size` is that of the weights, and of the gradients. Both calls push, step
    and pull. CPU ms is processor time a call, of all threads of that process.
    """
    from benchmarks.contenders import calls as contenders
    from benchmarks.workload import Cheap

    for size in sizes:
        work = Cheap(SIZES[size] // 4)
        jobs = [
            contenders.contender(f"{call}, {plane}", work, VARIANTS[plane], call)
            for call in calls
            for plane in planes
        ]
        samples = measure(jobs, run.rounds, Plan(steps), run.tell)
        figures = (contenders.P50, contenders.P99, contenders.WORKER_CPU, contenders.SERVER_CPU)
        title = f"latency, {size}: {run.rounds} rounds of {steps} calls"
        run.show(tabulate(title, samples, figures))
