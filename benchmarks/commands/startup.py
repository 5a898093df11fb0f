"""`startup`: from a command typed to its first step, and where the time goes."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from benchmarks import marks, options
from benchmarks.contender import Figure, Plan, Sample
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import tabulate

if TYPE_CHECKING:
    from benchmarks.contenders.command import Command
    from benchmarks.marks import Mark

_READY = Figure("s to ready", 2)
_WHOLE = Figure("s to exit", 2)
_PARTS = tuple(
    Figure(name, 2)
    for name in ("first step begins, s", "launcher", "imports", "meeting", "first step", "the rest")
)
_OURS = "psrpc train, first step made"


@click.command()
@options.benchmark(("torch", "ray"))
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@options.ray_option
def startup(run: Run, workers: int, with_ray: bool) -> None:
    """Seconds from a command typed until it is ready, beside what it cannot do without.

    Ready is: for `psrpc train` (1 server) when the first worker has made its first step,
    for torchrun of an empty script when all processes have imported torch, for Ray when its
    first task is done, for the others when they exit. The second table is psrpc's own
    time by parts, of the worker that begins first: launcher (until that worker's process
    begins), imports (until the model is built), meeting (rendezvous, registration, until
    the first step begins), the first step, and the rest (one more step, evaluation, exit).
    """
    commands = [*_commands(run, workers), *_ray(run, with_ray)]
    samples = measure(commands, run.rounds, Plan(1), run.tell)
    title = f"startup, {workers} workers, 1 server, {run.rounds} rounds"
    run.show(tabulate(title, samples, (_READY, _WHOLE)))
    ours = {name: series for name, series in samples.items() if name == _OURS}
    run.show(tabulate(f"{title}: parts of psrpc's", ours, _PARTS))


def _commands(run: Run, workers: int) -> list[Command]:
    from benchmarks.contenders.command import Command

    python = sys.executable
    processes = f"--nproc-per-node={1 + workers}"
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", processes]
    empty = ["-m", "benchmarks.marks", "torch", str(run.folder)]
    train = ["--workers", str(workers), "--steps", "2", "--model", "benchmarks.marks:net"]
    named = (
        ("python alone", [python, "-c", "pass"], until_exit),
        ("import torch", [python, "-c", "import torch"], until_exit),
        ("import psrpc", [python, "-c", "import psrpc"], until_exit),
        ("torchrun, an empty script", [*torchrun, *empty], until_ready),
        (_OURS, [python, "-m", "psrpc", "train", *train], parts),
    )
    return [Command(name, command, run.folder, summary) for name, command, summary in named]


def _ray(run: Run, wanted: bool) -> list[Command]:
    from benchmarks.contenders import ray_example
    from benchmarks.contenders.command import Command

    if not wanted:
        return []
    if why := ray_example.missing():
        run.tell(why)
        return []
    command = [sys.executable, "-m", "benchmarks.marks", "ray", f"{run.folder}/r"]
    return [Command("ray.init, first task done", command, run.folder, until_ready)]


def until_exit(began_s: float, made: Sequence[Mark], ended_s: float) -> Sample:
    """Ready is done."""
    return Sample({_READY.name: ended_s - began_s, _WHOLE.name: ended_s - began_s})


def until_ready(began_s: float, made: Sequence[Mark], ended_s: float) -> Sample:
    """Ready when the last process is."""
    ready_s = max(mark.at_s for mark in made if mark.name == marks.READY)
    return Sample({_READY.name: ready_s - began_s, _WHOLE.name: ended_s - began_s})


def parts(began_s: float, made: Sequence[Mark], ended_s: float) -> Sample:
    """The way of the worker that begins its first step first."""
    pid = next(mark.pid for mark in made if mark.name == marks.FIRST)
    at_s = {mark.name: mark.at_s for mark in made if mark.pid == pid}
    instants = [began_s, *(at_s[name] for name in _WAY), ended_s]
    lengths = [later - earlier for earlier, later in itertools.pairwise(instants)]
    return Sample(
        {_READY.name: at_s[marks.SECOND] - began_s, _WHOLE.name: ended_s - began_s}
        | {_PARTS[0].name: at_s[marks.FIRST] - began_s}
        | {figure.name: length for figure, length in zip(_PARTS[1:], lengths, strict=True)}
    )


_WAY = (marks.BEGAN, marks.BUILT, marks.FIRST, marks.SECOND)
