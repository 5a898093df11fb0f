"""A job's script for SLURM, and its submission."""

from __future__ import annotations

import importlib.resources
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from psrpc.errors import ConfigError, JobFailedError, UsageError

TEMPLATE = "slurm.sbatch"
_SHAPES = ("roles", "torchrun")
_HEADER_ENDS = "# How it goes"


@dataclass(frozen=True)
class Submission:
    """What SLURM is asked for: see `psrpc slurm --help`. `time` is as sbatch takes it.

    `nodes` and `tasks` are those of the workers' part if `server_nodes` are given: a heterogeneous
    job, whose first part has that many nodes with a server on each.
    """

    nodes: int = 2
    tasks: int = 2
    cpus: int = 1
    time: str = "60"
    name: str = "psrpc"
    shape: str = "roles"
    partition: str | None = None
    server_nodes: int | None = None
    server_partition: str | None = None
    gpus: int | None = None
    array: str | None = None
    sweep: Path | None = None
    directory: Path | None = None
    notice_s: int = 60
    requeue: bool = True
    more: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise ConfigError with all that cannot be."""
        problems = []
        if self.shape not in _SHAPES:
            problems.append(f"--shape must be one of {', '.join(_SHAPES)}, not {self.shape!r}")
        if self.server_nodes and self.shape == "torchrun":
            problems.append("--server-nodes needs --shape roles: torchrun starts alike nodes only")
        if self.server_partition and not self.server_nodes:
            problems.append("--server-partition needs --server-nodes")
        if self.server_nodes and self.array:
            problems.append("SLURM has no arrays of jobs in parts: leave out --array")
        if self.sweep is not None and self.array is None:
            problems.append("--sweep needs an --array, each task of which takes a line of it")
        if problems:
            raise ConfigError(problems)

    def directives(self) -> list[str]:
        """The lines for SLURM, without `#SBATCH`."""
        common = [f"--job-name={self.name}"]
        part = [f"--nodes={self.nodes}", f"--ntasks-per-node={self.tasks}"]
        part += [f"--cpus-per-task={self.cpus}"]
        part += [f"--partition={self.partition}"] if self.partition else []
        part += [f"--gpus-per-node={self.gpus}"] if self.gpus else []
        every = [
            f"--time={self.time}",
            "--requeue" if self.requeue else "--no-requeue",
            "--no-kill",
        ]
        whole = [*every, f"--signal=B:USR1@{self.notice_s}", "--open-mode=append"]
        whole += [f"--array={self.array}"] if self.array else []
        whole += list(self.more)
        if not self.server_nodes:
            return [*common, *part, *whole]
        first = [f"--nodes={self.server_nodes}", "--ntasks-per-node=1"]
        first += [f"--cpus-per-task={self.cpus}"]
        first += [f"--partition={self.server_partition}"] if self.server_partition else []
        return [*common, *first, *whole, "hetjob", *part, *every]

    def variables(self) -> dict[str, str]:
        """What the script is told beside the options of `psrpc train`."""
        said = {"PSRPC_SHAPE": self.shape}
        if self.directory is not None:
            said["PSRPC_JOB_DIR"] = str(self.directory.absolute())
        if self.sweep is not None:
            said["PSRPC_SWEEP"] = str(self.sweep.absolute())
        return said

    def script(self, options: Sequence[str]) -> str:
        """The script, ready for sbatch, with the options of `psrpc train` in it."""
        text = template()
        _, _, rest = text.partition(_HEADER_ENDS)
        lines = ["#!/bin/bash", "# Written by psrpc slurm.", ""]
        lines += [f"#SBATCH {each}" for each in self.directives()]
        lines += ["", *(f"export {k}={shlex.quote(v)}" for k, v in self.variables().items())]
        lines += [f'set -- {shlex.join(options)} "$@"' if options else "", ""]
        return "\n".join(lines) + _HEADER_ENDS + rest


def template() -> str:
    """The script as it comes with psrpc."""
    return (importlib.resources.files("psrpc") / TEMPLATE).read_text(encoding="utf-8")


def submit(script: str) -> str:
    """Give a script to sbatch, and return the job's number.

    Raises UsageError where there is no sbatch, and JobFailedError with its complaint.
    """
    if shutil.which("sbatch") is None:
        raise UsageError(
            "there is no sbatch here: run psrpc slurm on a host of the cluster, or --dry-run and "
            "take the script there"
        )
    done = subprocess.run(
        ["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise JobFailedError(f"sbatch refused the job: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]
