"""What the programs have in common that run simulated jobs by their seeds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Protocol

from psrpc.testing.machines import OPTIMIZERS
from psrpc.testing.schedule import MODES
from psrpc.testing.simulator import SimulationError


class Job(Protocol):
    """One job, which raises AssertionError where a promise is broken."""

    def run(self) -> None: ...


class Simulate(Protocol):
    """Runs the job of a seed; returns its trace. Raises SimulationError."""

    def __call__(
        self, mode: str, seed: int, *, churn: bool, trace: bool, optimizer: str | None = None
    ) -> list[str]: ...


def replay_command(
    program: str, mode: str, seed: int, *, churn: bool, optimizer: str | None = None
) -> str:
    """The command that shows one job event by event."""
    more = " --churn" if churn else ""
    more += f" --optimizer {optimizer}" if optimizer else ""
    return f"python -m psrpc.testing.{program} --mode {mode} --seed {seed}{more} --trace"


def run(job: Job, trace: list[str], command: str) -> None:
    """Live a whole job. Raises SimulationError, with its trace and the command that replays it."""
    try:
        job.run()
    except Exception as error:
        text = "\n".join([*trace, f"{type(error).__name__}: {error}", f"replay with: {command}"])
        raise SimulationError(text) from error


def run_seeds(
    program: str,
    simulate: Simulate,
    arguments: list[str] | None,
    summary: Callable[[], str] = str,
    *,
    computes: bool = False,
) -> int:
    """Run one job, or `--seeds` of them, and print a summary; exit code 1 where one fails.

    With `computes` weights can be computed.
    """
    parser = argparse.ArgumentParser(prog=f"python -m psrpc.testing.{program}")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--churn", action="store_true", help="workers die, return and join too")
    parser.add_argument("--trace", action="store_true", help="print every event with its reason")
    if computes:
        names = sorted(OPTIMIZERS)
        parser.add_argument("--optimizer", choices=names, help="compute real weights")
    options = vars(parser.parse_args(arguments))
    mode, first, seeds = options.pop("mode"), options.pop("seed"), options.pop("seeds")
    for seed in range(first, first + seeds):
        try:
            lines = simulate(mode, seed, **options)
        except SimulationError as error:
            print(error)
            return 1
        print(*lines, sep="\n", end="\n" if lines else "")
    if text := summary():
        print(f"{seeds} jobs held their promises; {text}" if computes else text)
    return 0
