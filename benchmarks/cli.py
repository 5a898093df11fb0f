"""`python -m benchmarks`: one command a benchmark."""

from __future__ import annotations

import click

from benchmarks.commands import (
    actors,
    chaos,
    checkpoint,
    churn,
    convnet,
    cycles,
    hosts,
    large,
    latency,
    loader,
    memory,
    refill,
    replicas,
    reshard,
    startup,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Measure psrpc beside what else there is. All contenders take turns, round by round."""


for command in (
    actors.actors,
    convnet.convnet,
    loader.loader,
    large.large,
    startup.startup,
    memory.memory,
    reshard.reshard,
    latency.latency,
    checkpoint.checkpoint,
    chaos.chaos,
    churn.churn,
    cycles.cycles,
    replicas.replicas,
    refill.refill,
    hosts.hosts,
):
    cli.add_command(command)
