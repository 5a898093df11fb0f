"""`loader`: what is left of the differences where loading the data is most of the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks import options
from benchmarks.commands.rivals import ray_rows
from benchmarks.comparisons import usual
from benchmarks.contender import CPU, OTHERS, RATE, Contender, Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import tabulate
from benchmarks.variants import chosen


@click.command()
@options.benchmark(("torch", "torchvision", "ray"))
@options.workers_option("2")
@options.steps_option(100)
@options.planes_option
@options.modes_option("sync", "async")
@options.ray_option
@options.mnist_option
def loader(
    run: Run,
    workers: tuple[int, ...],
    steps: int,
    planes: Sequence[str],
    modes: Sequence[str],
    with_ray: bool,
    given_root: Path | None,
) -> None:
    """As convnet, fed as Ray's example is: image by image through torchvision's transforms.

    Every worker has the same DataLoader (128 a batch, shuffled, no processes of its own),
    whichever system it belongs to.
    """
    from benchmarks import workload
    from benchmarks.contenders import limit, ours

    work = workload.loaded(run.folder, options.data_root(given_root))
    for count in workers:
        contenders: list[Contender] = [
            limit.contender(work, count),
            *(ours.contender(work, *choice, count) for choice in chosen(planes, modes)),
            *ray_rows(run, work, count, with_ray),
        ]
        title = (
            f"loader on {work.dataset}: {count} workers, "
            f"{run.rounds} rounds of {steps} steps a worker"
        )
        samples = measure(contenders, run.rounds, Plan(steps, warmup=5), run.tell)
        run.show(tabulate(title, samples, (RATE, CPU, OTHERS), usual(list(samples), "limit")))
