"""`churn`: how long others wait at a kill, and how soon who comes makes its first step."""

from __future__ import annotations

from collections.abc import Sequence

import click

from benchmarks import options
from benchmarks.contender import Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import tabulate
from benchmarks.variants import MODES


@click.command()
@options.benchmark()
@options.modes_option(*MODES)
@click.option(
    "--plane", "planes", type=click.Choice(("shm", "rpc")), multiple=True, default=("shm", "rpc")
)
@click.option("--workers", type=click.IntRange(2), default=4, show_default=True)
@click.option("--kills", type=click.IntRange(1), default=3, show_default=True, help="a round")
@click.option(
    "--kill",
    type=click.Choice(("workers", "servers")),
    default="workers",
    show_default=True,
    help="who dies; the server has a backup then (--replicas 1), and it is the primary that dies",
)
def churn(
    run: Run,
    modes: Sequence[str],
    planes: Sequence[str],
    workers: int,
    kills: int,
    kill: str,
) -> None:
    """Jobs of tiny steps, of which a process is killed (kill -9) now and then, and a worker joins.

    A pause is the time from one step's begin to the next one's: the longest of all workers that
    lived on, in the 2.5 s after each kill, and in as long before it. Back is the time from the
    kill until the first step of the process in the dead one's place is over; the joiner's runs
    from the end of its imports (`psrpc join`) to that.
    """
    from benchmarks.contenders.churn import FIGURES, NOT_BACK, Churn

    contenders = [
        Churn(
            f"{mode}, {plane}",
            ["--mode", mode, "--plane", plane],
            workers,
            run.folder,
            servers=kill == "servers",
        )
        for plane in planes
        for mode in modes
    ]
    samples = measure(contenders, run.rounds, Plan(kills), run.tell, keep=False)
    figures = [each for each in FIGURES if kill == "workers" or each is not NOT_BACK]
    title = f"churn of {kill}, {workers} workers, {kills} kills a round"
    run.show(tabulate(title, samples, figures))
