"""`python -m benchmarks`: what is measured, for how long, and where the figures go."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks import report
from benchmarks.contender import BenchmarkError, Contender, Plan
from benchmarks.harness import measure
from benchmarks.machine import Machine, describe
from benchmarks.results import Table, tabulate

if TYPE_CHECKING:
    from benchmarks.workload import Workload

_FOUND_AT = "data"
# Each by its name: what "auto" is depends on the host.
_PLANES = ("rpc", "shm", "collective")


class Counts(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 1, one or a list with commas."""

    name = "N[,N...]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """See click."""
        try:
            counts = tuple(int(number) for number in str(value).split(","))
        except ValueError:
            counts = ()
        if not counts or min(counts) < 1:
            self.fail(f"{value!r} is not a list of whole numbers from 1", param, ctx)
        return counts


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Measure psrpc beside what else there is. All contenders take turns, round by round."""


def _shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every benchmark."""
    options = (
        click.option("--rounds", type=click.IntRange(1), default=5, show_default=True),
        click.option("--json", "json_file", type=click.Path(path_type=Path), help="all figures"),
        click.option("--markdown", "markdown_file", type=click.Path(path_type=Path)),
    )
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@_shared_options
@click.option("--workers", type=Counts(), multiple=True, help="worker counts, a table each  [2]")
@click.option("--servers", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--steps", type=click.IntRange(1), default=300, show_default=True, help="per worker and round"
)
@click.option(
    "--plane",
    "planes",
    type=click.Choice(_PLANES),
    multiple=True,
    default=_PLANES,
    show_default=True,
    help="psrpc's data planes to measure; may be repeated",
)
@click.option("--data-root", type=click.Path(path_type=Path), help="folder that has MNIST/raw")
def convnet(
    rounds: int,
    json_file: Path | None,
    markdown_file: Path | None,
    workers: Sequence[tuple[int, ...]],
    servers: int,
    steps: int,
    planes: Sequence[str],
    data_root: Path | None,
) -> None:
    """Worker steps per second, over all workers, on the ConvNet of Ray's example.

    Batches of 128 MNIST images (or synthetic ones) lie in memory; one torch thread a
    process. `limit` computes gradients and talks to nobody.
    """
    from benchmarks import workload

    machine = describe(("torch",))
    tables = []
    with tempfile.TemporaryDirectory(prefix="psrpc-benchmark-") as folder:
        work = workload.convnet(Path(folder), _mnist(data_root))
        for count in _flat(workers) or (2,):
            title = (
                f"convnet on {work.dataset}: {count} workers, {servers} server(s), "
                f"{rounds} rounds of {steps} steps a worker"
            )
            contenders = _for_convnet(work, planes, servers, count)
            tables.append(_measured(title, contenders, rounds, Plan(steps)))
    _write(tables, machine, json_file, markdown_file)


def _for_convnet(
    work: Workload, planes: Sequence[str], servers: int, workers: int
) -> list[Contender]:
    from benchmarks.contenders import limit, ours
    from psrpc.modes import Asynchronous, BoundedStaleness, Synchronous

    modes = (("sync", Synchronous()), ("bounded 4", BoundedStaleness(4)), ("async", Asynchronous()))
    return [
        limit.contender(work, workers),
        *(
            ours.contender(f"psrpc {name}, {plane}", work, mode, plane, servers, workers)
            for plane in planes
            for name, mode in modes
            if plane != "collective" or name == "sync"
        ),
    ]


def _measured(title: str, contenders: Sequence[Contender], rounds: int, plan: Plan) -> Table:
    """Measure, and print the table at once; the first contender is what others are held to."""
    try:
        samples = measure(contenders, rounds, plan, lambda line: click.echo(line, err=True))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    table = tabulate(title, samples, contenders[0].name)
    click.echo(f"\n{report.text(table)}\n")
    return table


def _write(
    tables: Sequence[Table], machine: Machine, json_file: Path | None, markdown_file: Path | None
) -> None:
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    if json_file is not None:
        json_file.write_text(report.as_json(tables, machine, command), encoding="utf-8")
    if markdown_file is not None:
        markdown_file.write_text(report.markdown(tables, machine, command), encoding="utf-8")


def _mnist(given: Path | None) -> Path | None:
    """Where MNIST is, if the user says so or it lies where psrpc looks by itself."""
    root = Path(_FOUND_AT) if given is None else given
    if (root / "MNIST" / "raw").is_dir():
        return root.absolute()
    if given is not None:
        raise click.BadParameter(f"{given} has no MNIST/raw", param_hint="--data-root")
    return None


def _flat(lists: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(number for numbers in lists for number in numbers)
