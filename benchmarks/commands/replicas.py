"""`replicas`: what a backup costs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
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
def replicas(
    run: Run,
    given_root: Path | None,
    modes: Sequence[str],
    plane: str,
    workers: int,
    steps: int,
    mbit: int,
    one_host: bool,
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
    with ExitStack() as stack:
        jobs: list[Contender] = []
        for mode in modes:
            for backups in (0, 1):
                fleet = None
                if not one_host:
                    fleet = stack.enter_context(namespaces.fleet(HOSTS, mbit))
                name = _name(mode, backups)
                jobs.append(Paired(name, work, kind, mode, workers, backups=backups, fleet=fleet))
        samples = measure(jobs, run.rounds, Plan(steps), run.tell)
    where = "one host" if one_host else f"{HOSTS} hosts, {mbit} Mbit/s"
    title = f"replicas, {plane}, {where}: {workers} workers, {run.rounds} rounds of {steps} steps"
    without = {_name(mode, 1): _name(mode, 0) for mode in modes}
    run.show(tabulate(title, samples, FIGURES, [Comparison("of none", without, percent=True)]))


def _name(mode: str, backups: int) -> str:
    return f"{mode}, {'a backup' if backups else 'none'}"
