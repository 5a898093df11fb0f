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
def churn(run: Run, modes: Sequence[str], planes: Sequence[str], workers: int, kills: int) -> None:
    """Jobs of tiny steps, of which a worker is killed (kill -9) now and then, and another joins.

    A pause is the time from one step's begin to the next one's: the longest of all workers that
    lived on, in the 2.5 s after each kill, and in as long before it. Back is the time from the
    kill until the first step of the process in the dead one's place is over; the joiner's runs
    from the end of its imports (`psrpc join`) to that.
    """
    from benchmarks.contenders.churn import FIGURES, Churn

    contenders = [
        Churn(f"{mode}, {plane}", ["--mode", mode, "--plane", plane], workers, run.folder)
        for plane in planes
        for mode in modes
    ]
    samples = measure(contenders, run.rounds, Plan(kills), run.tell, keep=False)
    run.show(tabulate(f"churn, {workers} workers, {kills} kills a round", samples, FIGURES))
