"""What all benchmarks' commands share: their options, where figures go, what they work on."""

from __future__ import annotations

import functools
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import plot, report
from benchmarks.contender import BenchmarkError
from benchmarks.machine import Machine, describe
from benchmarks.results import Table
from benchmarks.variants import MODES, VARIANTS

_FOUND_AT = "data"


class Counts(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 1, one or a list with commas."""

    name = "N[,N...]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """See click."""
        if isinstance(value, tuple):
            return value
        try:
            counts = tuple(int(number) for number in str(value).split(","))
        except ValueError:
            counts = ()
        if not counts or min(counts) < 1:
            self.fail(f"{value!r} is not a list of whole numbers from 1", param, ctx)
        return counts


@dataclass(frozen=True)
class Run:
    """One run of a benchmark: how often, in which folder, and where its tables go."""

    rounds: int
    folder: Path
    machine: Machine
    tables: list[Table]

    def show(self, table: Table) -> None:
        """Print a table at once, and keep it for the files."""
        self.tables.append(table)
        click.echo(f"\n{report.text(table)}\n")

    def tell(self, line: str) -> None:
        """Say what happens meanwhile."""
        click.echo(line, err=True)


def benchmark(packages: Sequence[str] = ("torch",)) -> Callable[[Callable[..., None]], Any]:
    """Make a command's function, which takes a `Run` and its own options, one of a benchmark."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(
            rounds: int,
            json_file: Path | None,
            markdown_file: Path | None,
            plot_file: Path | None,
            **own: Any,
        ) -> None:
            with _refusals(), _folder() as folder:
                if plot_file is not None:
                    plot.require()
                run = Run(rounds, folder, describe(packages), [])
                try:
                    function(run, **own)
                finally:
                    # What was measured before something broke is not lost.
                    _write(run, json_file, markdown_file, plot_file)

        for option in reversed(_OPTIONS):
            command = option(command)
        return command

    return decorate


def data_root(given: Path | None) -> Path | None:
    """Where MNIST is, if the user says so or it lies where psrpc looks by itself."""
    root = Path(_FOUND_AT) if given is None else given
    if (root / "MNIST" / "raw").is_dir():
        return root.absolute()
    if given is not None:
        raise click.BadParameter(f"{given} has no MNIST/raw", param_hint="--data-root")
    return None


_file = click.Path(path_type=Path, dir_okay=False)
_OPTIONS = (
    click.option("--rounds", type=click.IntRange(1), default=5, show_default=True),
    click.option("--json", "json_file", type=_file, help="file for all figures, round by round"),
    click.option("--markdown", "markdown_file", type=_file, help="file for the tables"),
    click.option("--plot", "plot_file", type=_file, help="file for a picture, as out.png"),
)
mnist_option = click.option(
    "--data-root", "given_root", type=click.Path(path_type=Path), help="folder that has MNIST/raw"
)
ray_option = click.option("--ray/--no-ray", "with_ray", default=True, help="measure Ray as well")
keep_option = click.option(
    "--keep/--fresh",
    default=None,
    help="all stay alive, or each is started for its turn  [keep up to 2 workers]",
)
planes_option = click.option(
    "--plane",
    "planes",
    type=click.Choice(tuple(VARIANTS)),
    multiple=True,
    default=tuple(VARIANTS),
    show_default=True,
    help="psrpc's ways to measure; may be repeated",
)


def modes_option(*default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The modes of psrpc to measure."""
    return click.option(
        "--mode",
        "modes",
        type=click.Choice(MODES),
        multiple=True,
        default=default,
        show_default=True,
        help="psrpc's modes to measure; may be repeated",
    )


def steps_option(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The length of a turn."""
    return click.option(
        "--steps",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="per worker and round",
    )


def workers_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The numbers of workers."""
    return click.option(
        "--workers", type=Counts(), default=default, show_default=True, help="a table each"
    )


@contextmanager
def _refusals() -> Iterator[None]:
    """Show a contender's failure as one line; end as Ctrl-C does when asked to terminate."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _folder() -> Iterator[Path]:
    # A short name: see the limit on paths of sockets in `contenders.ray_example`.
    with tempfile.TemporaryDirectory(prefix="psb-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _write(
    run: Run, json_file: Path | None, markdown_file: Path | None, plot_file: Path | None
) -> None:
    if not run.tables:
        return
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    if json_file is not None:
        json_file.write_text(report.as_json(run.tables, run.machine, command), encoding="utf-8")
    if markdown_file is not None:
        text = report.markdown(run.tables, run.machine, command)
        markdown_file.write_text(text, encoding="utf-8")
    if plot_file is not None:
        plot.save(run.tables, plot_file)
