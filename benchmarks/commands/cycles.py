"""`cycles`: whether a job's processes grow while workers come and die."""

from __future__ import annotations

from collections.abc import Sequence

import click

from benchmarks import options
from benchmarks.contender import Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import tabulate


@click.command()
@options.benchmark()
@options.modes_option("async")
@click.option(
    "--plane", "planes", type=click.Choice(("shm", "rpc")), multiple=True, default=("shm", "rpc")
)
@click.option("--early", type=click.IntRange(1), default=50, show_default=True)
@click.option("--late", type=click.IntRange(2), default=200, show_default=True)
def cycles(run: Run, modes: Sequence[str], planes: Sequence[str], early: int, late: int) -> None:
    """A server and a worker that stay, and workers that come, make four steps and are killed.

    What the two that stay have gained between the `early`-th death and the `late`-th. Workers are
    forks of a process that has imported torch, so that many can come.
    """
    from benchmarks.contenders.cycles import FIGURES, Cycles

    if late <= early:
        raise click.BadParameter("must be more than --early", param_hint="--late")
    contenders = [
        Cycles(f"{mode}, {plane}", mode, plane, run.folder) for mode in modes for plane in planes
    ]
    plan = Plan(late - early, warmup=early)
    samples = measure(contenders, run.rounds, plan, run.tell, keep=False)
    title = f"growth from the {early}th to the {late}th worker that came and was killed"
    run.show(tabulate(title, samples, FIGURES))
