"""`hosts`: how fast bytes come from one host to another, and what psrpc makes of that."""

from __future__ import annotations

from contextlib import ExitStack

import click

from benchmarks import namespaces, options
from benchmarks.contender import Contender, Figure, Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import Comparison, tabulate

RATE = Figure("GB/s", 2)
CPU = Figure("near CPU ms", 0)
IPERF = ("iperf3, to here", "iperf3, from here")
SOCKET = ("plain socket, to here", "plain socket, from here")
CALLS = ("pull", "push", "push_pull")
WAYS = ("rpc", "one RPC")


@click.command()
@options.benchmark()
@options.steps_option(5)
@click.option("--serve", "own", metavar="ADDRESS", help="be the far side, on this host's address")
@click.option("--connect", "far", metavar="ADDRESS", help="measure to a far side that serves there")
@click.option("--port", type=click.IntRange(1, 65535), default=7917, show_default=True)
@click.option("--size-mb", type=click.IntRange(1), default=100, show_default=True)
def hosts(run: Run, steps: int, own: str | None, far: str | None, port: int, size_mb: int) -> None:
    """GB/s of a shard's pull, push and push_pull over RPC, beside iperf3 and a plain socket.

    Between two hosts: run `hosts --serve ADDRESS` on one and `hosts --connect ADDRESS` on the
    other; whoever reaches those ports can run code there. Without either, root gets a second
    network namespace on this host for the far side. `rpc` is the plane as it chooses its way,
    `one RPC` sends all in one call. A push_pull moves the bytes twice. The plain socket
    receives into memory that is there, as a pull must.
    """
    if own and far:
        raise click.UsageError("--serve and --connect are for different hosts")
    from benchmarks.contenders import near, opposite

    if own:
        opposite.serve(own, port, run.tell)
        return
    with ExitStack() as stack:
        if far is None:
            far = stack.enter_context(namespaces.far_side(port))
        side = stack.enter_context(near.Near(far, port, size_mb))
        ways: list[Contender] = list(side.ways(RATE.name, CPU.name))
        if not side.iperf:
            run.tell("without iperf3 (it must be on both hosts): the plain socket stands alone")
        samples = measure(ways, run.rounds, Plan(steps, 1), run.tell)
    title = f"hosts, {size_mb} MB: {run.rounds} rounds of {steps} calls"
    run.show(tabulate(title, samples, (RATE, CPU), comparisons()))


def comparisons() -> list[Comparison]:
    """Everything by what goes its way; a push_pull, which goes both, by what comes here."""
    return [
        _against("of iperf3", IPERF),
        _against("of plain socket", SOCKET),
    ]


def _against(title: str, rivals: tuple[str, str]) -> Comparison:
    there = [f"psrpc push, {way}" for way in WAYS] + [IPERF[1], SOCKET[1]]
    here = [f"psrpc {call}, {way}" for call in ("pull", "push_pull") for way in WAYS]
    pairs = dict.fromkeys([*here, IPERF[0], SOCKET[0]], rivals[0])
    return Comparison(title, pairs | dict.fromkeys(there, rivals[1]), percent=True)
