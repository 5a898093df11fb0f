"""`actors`: calls, pools and births of actors, beside Ray's."""

from __future__ import annotations

import click

from benchmarks import options
from benchmarks.contender import Plan
from benchmarks.harness import measure
from benchmarks.options import Run
from benchmarks.results import against, tabulate


@click.command()
@options.benchmark(("torch", "ray"))
@options.steps_option(2_000)
@options.ray_option
def actors(run: Run, steps: int, with_ray: bool) -> None:
    """What a call, a task and an actor cost, in psrpc and in Ray, a new cluster each turn.

    A call is to an actor in another process and back: one at a time (p50, p99), or ten times as
    many without waiting. Tasks are trivial, each with a future of its own, through a pool of four
    (fifty a step; Ray's are one a step). New is from `remote` to the first answer; `kB an actor` is
    for one in a process that runs already, `MB a process` for one of its own: what all
    processes hold more, shared memory counted once (Pss).
    """
    from benchmarks.contenders import ray_example
    from benchmarks.contenders.actors import FIGURES, Actors

    names = ["psrpc"]
    if with_ray:
        if why := ray_example.missing():
            run.tell(why)
        else:
            names.append("Ray")
    contenders = [Actors(name, steps, run.folder) for name in names]
    samples = measure(contenders, run.rounds, Plan(steps, 0), run.tell, keep=False)
    run.show(tabulate("actors", samples, FIGURES, [against("latency by Ray's", "Ray", ["psrpc"])]))
