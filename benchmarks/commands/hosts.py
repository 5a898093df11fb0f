"""`hosts`: training on one, two and three hosts, and how fast bytes come from one to another."""

from __future__ import annotations

from contextlib import ExitStack

import click

from benchmarks import namespaces, options
from benchmarks.contender import RATE, Contender, Figure, Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import Comparison, against, tabulate

LINKS_MBIT = "10000,1000,100"
MODES = ("sync", "bounded", "async", "collective")
BYTES = Figure("GB/s", 2)
CPU = Figure("near CPU ms", 0)
IPERF = ("iperf3, to here", "iperf3, from here")
SOCKET = ("plain socket, to here", "plain socket, from here")
CALLS = ("pull", "push", "push_pull")
WAYS = ("rpc", "one RPC")


@click.command()
@options.benchmark()
@options.steps_option(20)
@click.option("--hosts", "counts", type=options.Counts(), default="1,2,3", show_default=True)
@click.option("--mbit", type=options.Counts(), default=LINKS_MBIT, show_default=True)
@click.option(
    "--mode", "modes", type=click.Choice(MODES), multiple=True, default=MODES, show_default=True
)
@click.option("--transfer", is_flag=True, help="bytes, not training, to a second namespace")
@click.option("--serve", "own", metavar="ADDRESS", help="be the far side, on this host's address")
@click.option("--connect", "far", metavar="ADDRESS", help="measure to a far side that serves there")
@click.option("--port", type=click.IntRange(1, 65535), default=7917, show_default=True)
@click.option("--size-mb", type=click.IntRange(1), default=100, show_default=True)
def hosts(
    run: Run,
    steps: int,
    counts: tuple[int, ...],
    mbit: tuple[int, ...],
    modes: tuple[str, ...],
    transfer: bool,
    own: str | None,
    far: str | None,
    port: int,
    size_mb: int,
) -> None:
    """Worker steps per second on 1, 2 and 3 hosts, by the rate of their links; or GB/s.

    Training: 1 server, 3 workers, a model of 1.0 MB, batches of 64. The server is on the first
    host, workers are dealt out in turn. The hosts are network namespaces of this one, made by root,
    which share its processors: what more hosts cost is the network's part.

    With --transfer, --serve or --connect: GB/s of a shard's pull, push and push_pull over RPC,
    beside iperf3 and a plain socket. Between two hosts: run `hosts --serve ADDRESS` on one and
    `hosts --connect ADDRESS` on the other; whoever reaches those ports can run code there. With
    --transfer alone root gets a second
    network namespace on this host for the far side. `rpc` is the plane as it chooses its way,
    `one RPC` sends all in one call. A push_pull moves the bytes twice. The plain socket
    receives into memory that is there, as a pull must.
    """
    if own and far:
        raise click.UsageError("--serve and --connect are for different hosts")
    if own or far or transfer:
        _transfer(run, min(steps, 5), own, far, port, size_mb)
    else:
        _train(run, steps, counts, mbit, modes)


def _train(
    run: Run, steps: int, counts: tuple[int, ...], mbit: tuple[int, ...], modes: tuple[str, ...]
) -> None:
    from benchmarks.contenders.apart import Apart
    from benchmarks.nursery import Nursery

    for mode in modes:
        with ExitStack() as stack:
            nursery = stack.enter_context(Nursery())
            jobs: list[Contender] = []
            for rate in mbit:
                # What one host's link does is no matter.
                for count in counts if rate == mbit[0] else [n for n in counts if n > 1]:
                    fleet = stack.enter_context(namespaces.fleet(count, rate))
                    jobs.append(Apart(_name(count, rate), mode, fleet, run.folder, nursery))
            samples = measure(jobs, run.rounds, Plan(steps), run.tell)
        title = f"hosts, {mode}, 1 server, 3 workers, 1.0 MB: {run.rounds} rounds of {steps} steps"
        one = [against("of one host", _name(1, 0), samples)] if 1 in counts else []
        run.show(tabulate(title, samples, (RATE,), one))


def _name(count: int, rate_mbit: int) -> str:
    if count == 1:
        return "1 host"
    link = f"{rate_mbit / 1000:g} Gbit/s" if rate_mbit >= 1000 else f"{rate_mbit} Mbit/s"
    return f"{count} hosts, {link}"


def _transfer(
    run: Run, steps: int, own: str | None, far: str | None, port: int, size_mb: int
) -> None:
    from benchmarks.contenders import near, opposite

    if own:
        opposite.serve(own, port, run.tell)
        return
    with ExitStack() as stack:
        if far is None:
            far = stack.enter_context(namespaces.far_side(port))
        side = stack.enter_context(near.Near(far, port, size_mb))
        ways: list[Contender] = list(side.ways(BYTES.name, CPU.name))
        if not side.iperf:
            run.tell("without iperf3 (it must be on both hosts): the plain socket stands alone")
        samples = measure(ways, run.rounds, Plan(steps, 1), run.tell)
    title = f"hosts, {size_mb} MB: {run.rounds} rounds of {steps} calls"
    run.show(tabulate(title, samples, (BYTES, CPU), comparisons()))


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
