"""`replicas`: what a backup costs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from benchmarks import namespaces, options
from benchmarks.contender import Contender, Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import Comparison, tabulate
from benchmarks.variants import MODES, VARIANTS


@click.command()
@options.benchmark()
@options.mnist_option
@options.modes_option(*MODES)
@click.option("--plane", type=click.Choice(("rpc", "shm")), default="rpc", show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@options.steps_option(300)
@click.option("--mbit", type=click.IntRange(1), default=10000, show_default=True)
@click.option("--one-host", is_flag=True, help="all processes on this host, without virtual ones")
@click.option("--overlap", is_flag=True, help="also with overlap, in modes that know it")
def replicas(
    run: Run,
    given_root: Path | None,
    modes: Sequence[str],
    plane: str,
    workers: int,
    steps: int,
    mbit: int,
    one_host: bool,
    overlap: bool,
) -> None:
    """Worker steps per second on the ConvNet of Ray's example, with and without a backup.

    The primary, its backup and the workers are each on a virtual host of their own (network
    namespaces, made by root, with links of --mbit), which share this host's processors: what
    the backup computes is taken from the others, as it would not be on hosts of its own. So
    the processor time of each is told as well, how often its threads had to wait and wake up,
    and the bytes, headers included, that the backup's host received and sent; all by step.
    """
    from benchmarks import workload
    from benchmarks.contenders.paired import FIGURES, HOSTS, Paired

    work = workload.held(run.folder, options.data_root(given_root))
    kind = VARIANTS["shm" if one_host and plane == "shm" else "rpc"]
    ahead = replace(kind, arguments={**kind.arguments, "overlap": True})
    shown = {mode: (mode, kind) for mode in modes}
    if overlap:
        shown |= {f"{mode} with overlap": (mode, ahead) for mode in modes if mode != "sync"}
    with ExitStack() as stack:
        jobs: list[Contender] = []
        for title, (mode, variant) in shown.items():
            for backups in (0, 1):
                fleet = None
                if not one_host:
                    fleet = stack.enter_context(namespaces.fleet(HOSTS, mbit))
                name = _name(title, backups)
                jobs.append(
                    Paired(name, work, variant, mode, workers, backups=backups, fleet=fleet)
                )
        samples = measure(jobs, run.rounds, Plan(steps), run.tell)
    where = "one host" if one_host else f"{HOSTS} hosts, {mbit} Mbit/s"
    heading = f"replicas, {plane}, {where}: {workers} workers, {run.rounds} rounds of {steps} steps"
    without = {_name(title, 1): _name(title, 0) for title in shown}
    run.show(tabulate(heading, samples, FIGURES, [Comparison("of none", without, percent=True)]))


def _name(shown: str, backups: int) -> str:
    return f"{shown}, {'a backup' if backups else 'none'}"
