"""`chaos`: training runs with a kill every few seconds, beside undisturbed ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks import options
from benchmarks.contender import Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import Comparison, tabulate

if TYPE_CHECKING:
    from benchmarks.contender import Contender
    from benchmarks.contenders.chaos import Course


@click.command()
@options.benchmark(("torch", "ray"))
@options.mnist_option
@click.option("--mode", type=click.Choice(("sync", "bounded", "async")), default="bounded")
@click.option("--workers", type=click.IntRange(2), default=4, show_default=True)
@click.option("--servers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--every", type=float, default=5.0, show_default=True, help="seconds between kills")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True)
@click.option(
    "--kill",
    type=click.Choice(("workers", "servers")),
    default="workers",
    show_default=True,
    help="who dies; servers have backups then (--replicas 1)",
)
@options.ray_option
def chaos(
    run: Run,
    given_root: Path | None,
    mode: str,
    workers: int,
    servers: int,
    every: float,
    epochs: int,
    kill: str,
    with_ray: bool,
) -> None:
    """Train the convnet on MNIST (made-up images where it is absent) while processes are killed.

    psrpc's processes have a launcher each (`psrpc train --isolate`), so a killed worker comes
    back. Ray's pattern is its example (see `ray_chaos`): as it is, with actors that Ray
    restarts, and with batches that the driver deals out besides. Every form is killed at the
    same times after its start; the first worker never is. Of the time a run takes, training
    alone is counted. With `--kill servers` any of a shard's two servers is killed, in psrpc alone.
    """
    from benchmarks.contenders.chaos import FIGURES, Blows, Chaos, Course

    root = options.data_root(given_root)
    course = Course(
        dataset="synthetic" if root is None else "mnist",
        data_root=None if root is None else str(root),
        mode=mode,
        workers=workers,
        epochs=epochs,
        batch_size=128,
        lr=0.05,
    )
    killed = f", kill -9 every {every:g} s"
    contenders: list[Contender]
    if kill == "servers":
        contenders = [
            Chaos("psrpc", course, servers, Blows()),
            Chaos("psrpc, replicas", course, servers, Blows(), replicas=1),
            Chaos(f"psrpc{killed}", course, servers, Blows(every, servers=True), replicas=1),
        ]
    else:
        contenders = [
            Chaos("psrpc", course, servers, Blows()),
            Chaos(f"psrpc{killed}", course, servers, Blows(every)),
            *_ray(run, course, every, killed, with_ray),
        ]
    samples = measure(contenders, run.rounds, Plan(1), run.tell, keep=False)
    undisturbed = {name: "Ray" if name.startswith("Ray") else "psrpc" for name in samples}
    comparisons = [Comparison("of undisturbed", undisturbed, percent=True)]
    title = f"chaos of {kill}, {mode}, {servers} servers, {workers} workers, {epochs} epochs"
    run.show(tabulate(title, samples, FIGURES, comparisons))


def _ray(run: Run, course: Course, every_s: float, killed: str, wanted: bool) -> list[Contender]:
    from benchmarks.contenders import ray_example

    if not wanted:
        return []
    if why := ray_example.missing():
        run.tell(why)
        return []
    from benchmarks.contenders.ray_chaos import Form, RayChaos

    return [
        RayChaos("Ray", course, Form.DEALT, run.folder, None),
        *(RayChaos(f"Ray {f.value}{killed}", course, f, run.folder, every_s) for f in Form),
    ]
