"""`checkpoint`: how long a server stands still for a checkpoint, and how long writing takes."""

from __future__ import annotations

from collections.abc import Sequence

import click

from benchmarks import options
from benchmarks.contender import Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import tabulate

OPTIMIZERS = ("SGD", "momentum", "Adam")


@click.command()
@options.benchmark()
@options.steps_option(5)
@click.option("--mb", "size_mb", type=click.IntRange(1), default=100, show_default=True)
@click.option(
    "--optimizer", "optimizers", type=click.Choice(OPTIMIZERS), multiple=True, default=OPTIMIZERS
)
def checkpoint(run: Run, steps: int, size_mb: int, optimizers: Sequence[str]) -> None:
    """One server, one torch thread: the stall of its image, writing and reading a checkpoint.

    The stall is what training waits for: the copy of weights and optimizer state under the
    server's lock: the worst of all steps, where memory was reserved, and one into fresh memory.
    Writing (with checksums, to the disk) is done by a thread, and measured alone here.
    """
    from benchmarks.contenders.images import FIGURES, Images
    from benchmarks.workload import Cheap

    work = Cheap(size_mb * 1_000_000 // 4)
    contenders = [Images(work, optimizer, run.folder) for optimizer in optimizers]
    samples = measure(contenders, run.rounds, Plan(steps, 0), run.tell, keep=False)
    run.show(tabulate(f"checkpoint: model of {size_mb} MB, 1 server", samples, FIGURES))
