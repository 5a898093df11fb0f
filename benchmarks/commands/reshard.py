"""`reshard`: how long training stands still when a server is added, and when one is removed."""

from __future__ import annotations

from collections.abc import Sequence

import click

from benchmarks import options
from benchmarks.contender import Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import tabulate

PLANES = ("shm", "rpc")
MODES = ("sync", "bounded", "async")


@click.command()
@options.benchmark()
@options.steps_option(10)
@click.option("--mb", "size_mb", type=click.IntRange(1), default=100, show_default=True)
@click.option("--mode", type=click.Choice(MODES), default="sync", show_default=True)
@click.option("--plane", "planes", type=click.Choice(PLANES), multiple=True, default=PLANES)
@click.option("--optimizer", "optimizers", multiple=True, default=("SGD", "Adam"))
def reshard(
    run: Run, steps: int, size_mb: int, mode: str, planes: Sequence[str], optimizers: Sequence[str]
) -> None:
    """Two workers and one server on this host: `psrpc scale` to two servers, and back to one.

    Counted by the coordinator is the time from the moment at which it halts its shard until the
    first step is made by the servers of the new layout, which all workers of a synchronous round
    have found by then. Until the layout is in force, rows and optimizer state move.
    """
    from benchmarks.contenders.resharding import FIGURES, OPTIMIZERS, Resharding

    if unknown := set(optimizers) - set(OPTIMIZERS):
        raise click.BadParameter(f"{', '.join(unknown)}: there are {', '.join(OPTIMIZERS)}")
    folder = run.folder / "job"
    folder.mkdir(exist_ok=True)
    contenders = [
        Resharding(
            f"psrpc {mode}, {plane}, {optimizer}",
            size_mb * 1_000_000,
            plane,
            mode,
            optimizer,
            folder,
        )
        for plane in planes
        for optimizer in optimizers
    ]
    samples = measure(contenders, run.rounds, Plan(steps, 0), run.tell, keep=False)
    run.show(tabulate(f"reshard: model of {size_mb} MB, 2 workers", samples, FIGURES))
