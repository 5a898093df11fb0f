"""`chaos`: one training run with a kill every few seconds, beside an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks import options
from benchmarks.contender import Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import tabulate


@click.command()
@options.benchmark()
@options.mnist_option
@click.option("--mode", type=click.Choice(("sync", "bounded", "async")), default="bounded")
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True)
@click.option("--servers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--every", type=float, default=5.0, show_default=True, help="seconds between kills")
@click.option("--epochs", type=click.IntRange(1), default=5, show_default=True)
def chaos(
    run: Run,
    given_root: Path | None,
    mode: str,
    workers: int,
    servers: int,
    every: float,
    epochs: int,
) -> None:
    """Train the convnet on MNIST (the digits where it is absent) while workers are killed.

    Each process has a launcher of its own (`psrpc train --isolate`), so a killed worker comes
    back when its imports are done. Of the time a run takes, training alone is counted.
    """
    from benchmarks.contenders.chaos import FIGURES, Chaos

    root = options.data_root(given_root)
    data = ["--dataset", "digits"]
    if root is not None:
        data = ["--dataset", "mnist", "--data-root", str(root), "--model", "convnet"]
    common = [*data, "--mode", mode, "--workers", str(workers), "--epochs", str(epochs)]
    contenders = [
        Chaos("undisturbed", common, servers, None),
        Chaos(f"kill -9 every {every:g} s", common, servers, every),
    ]
    samples = measure(contenders, run.rounds, Plan(1), run.tell)
    title = f"chaos, {mode}, {servers} servers, {workers} workers, {epochs} epochs"
    run.show(tabulate(title, samples, FIGURES))
