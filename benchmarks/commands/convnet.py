"""`convnet`: how many steps a second, where computing costs little and data nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks import options
from benchmarks.commands.rivals import ray_rows
from benchmarks.comparisons import usual
from benchmarks.contender import CPU, OTHERS, RATE, Contender, Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import tabulate
from benchmarks.variants import MODES, Variant, chosen

if TYPE_CHECKING:
    from benchmarks.workload import Workload

# A process holds some 400 MB of its own, and a table has ten contenders.
_KEPT_WORKERS = 2


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
    keep: bool | None,
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
        alive = count <= _KEPT_WORKERS if keep is None else keep
        samples = measure(contenders, run.rounds, Plan(steps), run.tell, keep=alive)
        run.show(tabulate(title, samples, (RATE, CPU, OTHERS), usual(list(samples), "limit")))


def _contenders(
    run: Run,
    work: Workload,
    workers: int,
    servers: int,
    wanted: Sequence[tuple[Variant, str]],
    with_ray: bool,
) -> list[Contender]:
    from benchmarks.contenders import ddp, limit, ours, rpc_tutorials

    return [
        limit.contender(work, workers),
        *(ours.contender(work, variant, mode, workers, servers) for variant, mode in wanted),
        *ray_rows(run, work, workers, with_ray),
        ddp.contender(work, workers),
        *rpc_tutorials.contenders(work, workers),
    ]
