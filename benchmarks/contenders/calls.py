"""psrpc's worker, call by call, on a model without a use."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

import psrpc
from benchmarks.contender import Figure, Sample
from benchmarks.contenders.job import Job, Turn
from benchmarks.contenders.ours import MODES
from benchmarks.member import Stage
from benchmarks.processes import Part
from benchmarks.variants import Variant
from benchmarks.workload import Cheap
from psrpc.worker import Worker

P50 = Figure("p50 ms", 2)
P99 = Figure("p99 ms", 2)
WORKER_CPU = Figure("worker CPU ms", 2)
SERVER_CPU = Figure("server CPU ms", 2)


def contender(name: str, workload: Cheap, variant: Variant, call: str) -> Job:
    """One server, one worker that makes `call` ("step" or "push_pull") again and again."""
    part = Part(play, (workload, variant, call))
    return Job(name, [part, part], 1, summary=latencies)


def latencies(turn: Turn) -> Sample:
    """Percentiles of a call's duration, and the processor time of both sides for one."""
    (part,) = turn.parts
    server_s, worker_s = turn.member_cpu_s
    return Sample(
        {
            P50.name: 1000 * percentile(part.times_s, 0.50),
            P99.name: 1000 * percentile(part.times_s, 0.99),
            WORKER_CPU.name: 1000 * worker_s / part.steps,
            SERVER_CPU.name: 1000 * server_s / part.steps,
        }
    )


def percentile(values: tuple[float, ...], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(-int(-share * len(ordered) // 1), 1) - 1]


def play(stage: Stage, workload: Cheap, variant: Variant, call: str) -> None:
    """Be the server or the worker."""
    psrpc.run(
        functools.partial(_train, stage=stage, workload=workload, call=call),
        model=workload.model,
        optimizer=functools.partial(torch.optim.SGD, lr=workload.lr),
        mode=MODES[variant.modes[-1]],
        device="cpu",
        threads=1,
        **variant.arguments,
    )


def _train(worker: Worker, *, stage: Stage, workload: Cheap, call: str) -> None:
    workload.gradients(worker.model, worker.rank, worker.num_workers)()
    held = [(parameter, parameter.grad) for parameter in worker.model.parameters()]
    calls: dict[str, Callable[[], None]] = {
        "step": worker.step,
        "push_pull": lambda: worker.push_pull().result(),
    }
    make = calls[call]

    def timed() -> float:
        for parameter, gradient in held:
            parameter.grad = gradient
        began_s = time.perf_counter()
        make()
        return time.perf_counter() - began_s

    stage.conduct(lambda count: [timed() for _ in range(count)], worker.paused)
