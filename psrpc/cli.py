"""The command line: `psrpc train` and `psrpc export`, and what ends it when something is wrong."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from psrpc._version import __version__
from psrpc.errors import ConfigError, PsrpcError, UsageError
from psrpc.scripted import OfScript, WithScript
from psrpc.settings import OPTIONS, TrainSettings, of_the_launcher, parse

_INTERRUPTED = 130

Command = TypeVar("Command", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(argv, prog_name="psrpc", standalone_mode=False, obj=argv)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_INTERRUPTED)
    except PsrpcError as error:
        _tell(error)
        sys.exit(error.exit_code)


def _train_options(command: Command) -> Command:
    for option in reversed(OPTIONS):
        shown = "" if option.default is None else f"  [{option.default}]"
        add = click.option(
            f"--{option.name}", option.name.replace("-", "_"), metavar="X", help=option.help + shown
        )
        command = add(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="psrpc")
def cli() -> None:
    """A parameter server for PyTorch."""


@cli.command()
@_train_options
@click.option(
    "--overlap",
    is_flag=True,
    help="compute the next step while gradients travel (not in sync mode)",
)
@click.option("--quiet", is_flag=True, help="no progress, no summary")
@click.option(
    "--isolate",
    is_flag=True,
    help="a launcher for each process: one crash touches no other, the crashed one comes back",
)
@click.pass_obj
def train(
    argv: list[str], /, overlap: bool, quiet: bool, isolate: bool, **texts: str | None
) -> None:
    """Train a model through parameter servers.

    Called plainly, starts the servers and workers on this host itself. Under torchrun
    the first --servers ranks serve, as many are their backups with --replicas 1, and the others
    work.
    """
    settings = parse(texts, overlap=overlap, quiet=quiet, isolate=isolate)
    # Imported late, so that help and wrong options need not wait for torch.
    from psrpc import environment

    place = environment.place()
    if place is None:
        _start(settings, argv, isolate=isolate)
        return
    if isolate and environment.launcher() is None and environment.task_of_slurm() is not None:
        environment.for_children(**environment.torch_defaults())
        from psrpc.tasks import be_task

        be_task(settings, place, argv)
        return
    if environment.launcher() is None and (problems := of_the_launcher(texts, isolate=isolate)):
        raise ConfigError(problems)
    serving = settings.server_processes
    workers = place.world_size - serving
    if texts["workers"] is not None and settings.workers != workers:
        raise ConfigError(
            f"--workers {settings.workers} does not fit: torchrun has started {place.world_size} "
            f"processes, which leaves {workers} workers beside {serving} server(s)"
        )
    from psrpc.hosted import hosted

    with hosted(place):
        from psrpc.trainer import take_part

        take_part(settings, place)


@cli.command(cls=OfScript)
@click.argument("script", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-m", "module", is_flag=True, help="SCRIPT is a module, as of python -m")
@click.option("--servers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--replicas", type=click.IntRange(0, 1), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--revived", is_flag=True, help="as Checkpointing(revived=True): servers come back")
@click.option("--max-restarts", type=click.IntRange(0), default=100, show_default=True)
@click.option("--interface", help="network interface to listen on  [loopback]")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="of its store  [a free one]")
def launch(**asked: Any) -> None:
    """Run your script, a launcher for each process.

    SCRIPT calls psrpc.run, with these --servers and --replicas; options stand before it, and what
    follows it is its own. A process that dies ends no other, and comes back, as with psrpc train
    --isolate. By the address that is shown first others join (psrpc join). Ends with 0 when the job
    and all of the script are done, 1 when something failed, 2 for wrong usage, 130 when stopped.
    """
    from psrpc.isolation import launch_script

    launch_script(**asked)


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("output", metavar="FILE", type=click.Path(path_type=Path))
def export(directory: Path, output: Path) -> None:
    """Write a checkpoint's model as a plain PyTorch file.

    DIR is a checkpoint, or a folder of them, of which the newest good one is taken. FILE
    (model.pt) holds the model's state_dict, for torch.load and load_state_dict.
    """
    if output.is_dir():
        raise UsageError(f"{output} is a folder; name the file to write")
    if not output.parent.is_dir():
        raise UsageError(f"{output} cannot be written: {output.parent} is no folder")
    # Imported late, so that help and wrong arguments need not wait for torch.
    from psrpc.checkpoints.export import find, write_model

    checkpoint, passed = find(directory)
    for _, why in passed:
        click.echo(f"Passed over: {why}", err=True)
    write_model(checkpoint, output)
    click.echo(f"{output}: the model of {checkpoint.folder}")


@cli.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--model", help="ask this model at OPENAI_BASE_URL, with the key in OPENAI_API_KEY")
@click.option("--offline", is_flag=True, help="the built-in recogniser, whatever key there is")
@click.option("--workers", type=click.IntRange(1, 256), default=4, show_default=True)
@click.option("--timeout", type=click.FloatRange(0.1), default=60.0, show_default=True)
@click.option("--retries", type=click.IntRange(0), default=5, show_default=True)
@click.option(
    "--per-minute",
    type=click.FloatRange(0.001),
    help="at most so many calls a minute, of all workers together",
)
@click.option("--gather", is_flag=True, help="through a tuple space, counted by an actor")
def entities(
    files: tuple[str, ...],
    model: str | None,
    offline: bool,
    workers: int,
    timeout: float,
    retries: int,
    per_minute: float | None,
    gather: bool,
) -> int:
    """Find people, organizations and locations in documents.

    FILES are texts, or JSON lines (.jsonl, or - for standard input) of {"id": ..., "text": ...}.
    Writes a JSON line for each document as it is done, and the counts as the last one. Ends
    with 1 if a document failed.
    """
    from psrpc.entities import command

    asked = command.endpoint(model, offline, (timeout, retries, per_minute))
    tell = partial(click.echo, err=True)
    return command.run(files, asked, workers, command.write_line, tell, gather=gather)


@cli.command(cls=WithScript)
@click.argument("address", metavar="HOST:PORT|FILE")
@click.argument("script", nargs=-1, type=click.UNPROCESSED)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--max-restarts", type=click.IntRange(0), default=0, show_default=True)
@click.option("--interface", help="as of psrpc train, for these workers")
def join(
    address: str, script: tuple[str, ...], workers: int, max_restarts: int, interface: str | None
) -> None:
    """Add workers to a running job.

    HOST:PORT is what the job showed at its start, FILE its --address-file. A job of `psrpc train`
    tells its options by itself; for one of a script of your own, give SCRIPT and its arguments.
    """
    from psrpc.isolation import agents, launch_joiners

    with agents() as nursery:
        from psrpc.lobby import find

        job = find(address, script, interface)
        job.check_command()
        launch_joiners(nursery, job.command, job.place, workers, max_restarts)


@cli.command(cls=WithScript)
@click.argument("address", metavar="HOST:PORT|FILE")
@click.argument("script", nargs=-1, type=click.UNPROCESSED)
@click.option("--servers", type=click.IntRange(1), required=True, help="how many there are to be")
@click.option("--interface", help="as of psrpc train, for the new servers")
def scale(address: str, script: tuple[str, ...], servers: int, interface: str | None) -> None:
    """Add servers to a running job, or remove some, while it trains.

    Arguments are as for psrpc join. New servers run here; Ctrl-C and SIGTERM give their rows back
    first, and end them then.
    """
    from psrpc.isolation import agents

    with agents() as nursery:
        from psrpc import scaling
        from psrpc.lobby import find

        scaling.scale(nursery, find(address, script, interface), servers)


@cli.command()
@click.argument("address", required=False)
def status(address: str | None) -> None:
    """Show clusters of actors: nodes, actors, and what waits for what.

    ADDRESS is that of `psrpc.init(...).address`, or in PSRPC_CLUSTER; without either, all of yours
    on this host but those of `psrpc.init(listen=...)`, which need it.
    """
    from psrpc.actors import display

    click.echo("\n".join(display.lines(address)))


@cli.command()
@click.argument("address")
@click.option("--name", default=None, help="what placement calls it  [this host's name]")
@click.option("--cpus", type=click.FloatRange(0), help="CPUs to offer  [all]")
@click.option("--gpus", type=click.IntRange(0), help="GPUs to offer  [all]")
@click.option("--memory-gb", type=click.FloatRange(0), help="memory to offer  [all]")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="may be repeated")
def node(
    address: str,
    name: str | None,
    cpus: float | None,
    gpus: int | None,
    memory_gb: float | None,
    labels: tuple[str, ...],
) -> None:
    """Offer this host to a cluster of actors, until that ends.

    ADDRESS is that of `psrpc.init(listen=...).address`.
    """
    if wrong := [label for label in labels if "=" not in label]:
        raise ConfigError([f"--label must be NAME=VALUE, not {label!r}" for label in wrong])
    from psrpc.actors import node as nodes
    from psrpc.actors.doors import dial

    dial(address).close()
    here = nodes.resources_here()
    whole = {
        "cpus": here.cpus if cpus is None else cpus,
        "gpus": here.gpus if gpus is None else float(gpus),
        "memory_bytes": here.memory_bytes if memory_gb is None else int(memory_gb * 1e9),
    }
    named = name or socket.gethostname()
    nodes.main(address, named, whole, dict(label.split("=", 1) for label in labels))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="findings as one JSON list")
def doctor(*, as_json: bool) -> None:
    """Look at what usually goes wrong, before a job is started.

    Called plainly it looks at this host: torch and its RPC, the address that others are told,
    ports, limits, GPUs, SLURM. Under torchrun (torchrun ... -m psrpc doctor) or srun, with a
    process on each host, it compares the hosts' clocks and measures the links between them as
    well. Exits with 0 if a job should work, else 1.
    """
    from psrpc.doctor.visit import visit

    sys.exit(visit(as_json=as_json))


@cli.command()
@click.option("--nodes", type=click.IntRange(1), default=2, show_default=True)
@click.option("--tasks", type=click.IntRange(1), default=2, help="for each node", show_default=True)
@click.option("--cpus", type=click.IntRange(1), default=1, help="for each task", show_default=True)
@click.option("--gpus", type=click.IntRange(1), help="for each node")
@click.option("--time", default="60", show_default=True, help="limit, as sbatch takes it: minutes")
@click.option("--name", default="psrpc", show_default=True)
@click.option("--shape", default="roles", show_default=True, help="roles|torchrun")
@click.option("--partition")
@click.option("--server-nodes", type=click.IntRange(1), help="so many more, with a server on each")
@click.option("--server-partition", help="of --server-nodes")
@click.option("--array", help="a job array, as sbatch takes it: 0-2")
@click.option("--sweep", type=click.Path(path_type=Path, exists=True), help="options, by lines")
@click.option("--directory", type=click.Path(path_type=Path), help="folder of the job's files")
@click.option("--notice-s", type=click.IntRange(1), default=60, show_default=True)
@click.option("--requeue/--no-requeue", default=True, show_default=True)
@click.option("--sbatch", "more", multiple=True, help="another option of sbatch; repeatable")
@click.option("--dry-run", is_flag=True, help="print the script, submit nothing")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def slurm(dry_run: bool, options: tuple[str, ...], **asked: Any) -> None:
    """Write a script for SLURM and submit it: psrpc slurm [options] -- [options of psrpc train].

    With --shape roles each task is a server or a worker, with torchrun each node has one torchrun.
    The script is launch/slurm.sbatch; what it does at the time limit and where its files are is
    said there.
    """
    from psrpc.slurm import Submission, submit

    submission = Submission(**asked)
    submission.check()
    script = submission.script(options)
    if dry_run:
        click.echo(script, nl=False)
        return
    job = submit(script)
    folder = submission.directory or Path(f"psrpc-{job}")
    nodes = submission.nodes + (submission.server_nodes or 0)
    trained = f"psrpc train {' '.join(options)}".rstrip()
    click.echo(f"Submitted job {job} ({submission.name}) on {nodes} nodes: {trained}")
    click.echo(f"  its files: {folder}")
    click.echo(f"  more workers: psrpc join {folder}/address")


def _start(settings: TrainSettings, argv: list[str], *, isolate: bool) -> None:
    from psrpc.launch import launch, with_a_way_back

    if (settings.backup_workers or 0) >= settings.workers:
        raise ConfigError(
            f"--backup-workers {settings.backup_workers} leaves none of {settings.workers} "
            "workers: give fewer, or more --workers"
        )
    if settings.replicas and not isolate:
        raise ConfigError(
            "--replicas needs --isolate: without it a server that dies takes all others with it"
        )
    names = [f"server {index}" for index in range(settings.servers)]
    names += [f"backup of server {index}" for index in range(settings.servers * settings.replicas)]
    names += [f"worker {rank}" for rank in range(settings.workers)]
    if not isolate:
        _look_ahead(settings, len(names))
        with with_a_way_back(settings):
            launch(argv, names, settings.port)
        return
    from psrpc.isolation import Crew, agents, launch_isolated

    crew = Crew(settings.servers, settings.replicas, settings.workers, settings.goes_back)
    with with_a_way_back(settings), agents() as nursery:
        _look_ahead(settings, len(names))
        where = settings.port, settings.max_restarts, settings.interface
        launch_isolated(nursery, ["-m", "psrpc", *argv], crew, *where)


def _look_ahead(settings: TrainSettings, processes: int) -> None:
    """Tell all that would end the job when it begins, and exit."""
    from psrpc.launch import obstacles

    if errors := obstacles(settings, processes):
        for each in errors:
            _tell(each)
        sys.exit(min(each.exit_code for each in errors))


def _tell(error: PsrpcError) -> None:
    from psrpc import environment

    place = environment.place()
    if isinstance(error, UsageError) and place is not None and place.rank > 0:
        return  # All processes have the same options; the first one says it.
    for line in error.problems if isinstance(error, ConfigError) else (str(error),):
        click.echo(f"{_fresh_line()}Error: {line}", err=True)


def _fresh_line() -> str:
    """What clears a progress line that was left half-way on a terminal."""
    return "\r\033[K" if sys.stderr.isatty() else ""
