"""`convnet`: how many steps a second, where computing costs little and data nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks import options
from benchmarks.contender import CPU, RATE, Contender, Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import Comparison, against, tabulate
from benchmarks.variants import MODES, chosen

if TYPE_CHECKING:
    from benchmarks.workload import Workload


@click.command()
@options.benchmark(("torch", "ray"))
@options.workers_option("2")
@click.option("--servers", type=click.IntRange(1), default=1, show_default=True)
@options.steps_option(300)
@options.planes_option
@options.modes_option(*MODES)
@options.keep_option
@options.ray_option
@options.mnist_option
def convnet(
    run: Run,
    workers: tuple[int, ...],
    servers: int,
    steps: int,
    planes: Sequence[str],
    modes: Sequence[str],
    keep: bool,
    with_ray: bool,
    given_root: Path | None,
) -> None:
    """Worker steps per second, over all workers, on the ConvNet of Ray's example.

    Batches of 128 MNIST images (or synthetic ones) lie in memory; one torch thread a
    process. `limit` computes gradients and talks to nobody. Ratios to Ray and to the RPC
    tutorials are to their rows of the same mode (bounded: to the asynchronous ones).
    """
    from benchmarks import workload

    work = workload.held(run.folder, options.data_root(given_root))
    for count in workers:
        title = (
            f"convnet on {work.dataset}: {count} workers, {servers} server(s), "
            f"{run.rounds} rounds of {steps} steps a worker"
        )
        contenders = _contenders(run, work, count, servers, chosen(planes, modes), with_ray)
        samples = measure(contenders, run.rounds, Plan(steps), run.tell, keep=keep)
        run.show(tabulate(title, samples, (RATE, CPU), comparisons(list(samples))))


def _contenders(
    run: Run, work: Workload, workers: int, servers: int, wanted: Sequence, with_ray: bool
) -> list[Contender]:
    from benchmarks.contenders import ddp, limit, ours, rpc_tutorials

    return [
        limit.contender(work, workers),
        *(ours.contender(work, variant, mode, workers, servers) for variant, mode in wanted),
        *foreign(run, work, workers, with_ray),
        ddp.contender(work, workers),
        *rpc_tutorials.contenders(work, workers),
    ]


def foreign(
    run: Run, work: Workload, workers: int, with_ray: bool, store_mb: int = 200
) -> list[Contender]:
    """Ray's two rows, or a line that says why they are left out."""
    from benchmarks.contenders import ray_example

    if not with_ray:
        return []
    if why := ray_example.missing():
        run.tell(why)
        return []
    return [*ray_example.contenders(work, workers, run.folder, store_mb)]


def comparisons(names: Sequence[str], reference: str = "limit") -> list[Comparison]:
    """Every row by the limit, and by those of other systems that do the same."""
    sync = [name for name in names if "sync" in name.split(", ")[0].split() or "DDP" in name]
    rest = [name for name in names if name not in sync and name != reference]
    ours = [name for name in names if name.startswith("psrpc")]
    ours_sync = [name for name in ours if name in sync]
    return [
        against(f"of {reference}", reference, names, percent=True),
        _by_mode("× Ray", sync, rest, "Ray"),
        against("× DDP", "DDP on Gloo", ours_sync),
        _by_mode("× RPC tutorial", ours_sync, [n for n in ours if n in rest], "RPC tutorial"),
    ]


def _by_mode(title: str, sync: Sequence[str], rest: Sequence[str], rival: str) -> Comparison:
    pairs = dict.fromkeys(sync, f"{rival} sync") | dict.fromkeys(rest, f"{rival} async")
    return Comparison(title, pairs)
