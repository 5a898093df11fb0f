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
    (fifty a step; Ray's, its own tasks and an ActorPool, are one a step). New is from `remote` to
    the first answer; `kB an actor` is for one in a process that runs already, `MB a process` for
    one of its own: what all processes hold more, shared memory counted once (Pss). Tuples are
    written, read and taken by four processes, with 64 requests under way each, or one by one.
    """
    from benchmarks.contenders import ray_example, tuples
    from benchmarks.contenders.actors import BIRTHS, CALLS, Actors

    names = ["psrpc"]
    if with_ray:
        if why := ray_example.missing():
            run.tell(why)
        else:
            names.append("Ray")
    contenders = [Actors(name, steps, run.folder) for name in names]
    samples = measure(contenders, run.rounds, Plan(steps, 0), run.tell, keep=False)
    by_ray = [against("latency by Ray's", "Ray", ["psrpc"])]
    run.show(tabulate("calls and tasks", samples, CALLS, by_ray))
    run.show(tabulate("births", samples, BIRTHS, []))
    only = {"psrpc": samples["psrpc"]}
    run.show(tabulate("a tuple space, 4 processes", only, tuples.FIGURES, []))
