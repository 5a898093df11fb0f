"""A job to which workers come to be killed, one after another: what its processes gain by it."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import psrpc
from benchmarks import proc
from benchmarks.contender import BenchmarkError, Figure, Plan, Sample
from benchmarks.contenders.ours import MODES
from benchmarks.member import Go, Here, Stage, Stop
from benchmarks.proc import Footprint
from benchmarks.processes import Part, ProcessGroup, free_port
from psrpc.environment import JOINS, PLACE, Place
from psrpc.worker import Worker

_START_S = 60.0
_CYCLE_S = 30.0
_SETTLE_S = 2.0
_STOP_S = 1.0
_LOOK_AGAIN_S = 0.01
_STEPS = 4  # of a worker's life: of those that die at the same samples a third ends the job
_PACE_S = 0.01

SERVER = tuple(
    Figure(f"server: {name}", digits)
    for name, digits in (
        ("RSS, MB", 1),
        ("MB gained", 1),
        ("threads gained", 0),
        ("files gained", 0),
    )
)
WORKER = tuple(
    Figure(f"worker: {name}", digits)
    for name, digits in (("MB gained", 1), ("threads gained", 0), ("files gained", 0))
)
CYCLE = Figure("s a cycle", 2)
FIGURES = (*SERVER, *WORKER, CYCLE)


@dataclass(frozen=True)
class Lived:
    """From the nursery: footprints of the server and the worker that stay, early and late."""

    server: tuple[Footprint, Footprint]
    worker: tuple[Footprint, Footprint]
    seconds: float


class Cycles:
    """A server, a worker that stays, and others that live for four steps.

    A plan's warm-up is how many have come when it is looked first, its steps how many more.
    """

    def __init__(self, name: str, mode: str, plane: str, folder: Path) -> None:
        self.name = name
        self._mode, self._plane, self._folder = mode, plane, folder
        self._group: ProcessGroup | None = None

    def start(self) -> None:
        """Do nothing: a turn is a whole job."""

    def run(self, plan: Plan) -> Sample:
        """Let workers come and die."""
        folder = tempfile.mkdtemp(dir=self._folder)
        part = Part(play, (self._mode, self._plane, plan, folder))
        self._group = ProcessGroup(self.name, [part])
        self._group.start()
        self._group.gather([0], Here, _START_S)
        self._group.send([0], Go())
        patience_s = _CYCLE_S + (plan.warmup + plan.steps) * 1.0
        (lived,) = self._group.gather([0], Lived, patience_s)
        return summarize(lived, plan)

    def stop(self) -> None:
        """See `Contender`."""
        if self._group is not None:
            self._group.stop(Stop(), _STOP_S)


def summarize(lived: Lived, plan: Plan) -> Sample:
    """A turn's figures."""
    _, last = lived.server
    gains = [*_gains(*lived.server), *_gains(*lived.worker)]
    figures = (*SERVER[1:], *WORKER)
    return Sample(
        {SERVER[0].name: last.memory.rss}
        | {figure.name: gain for figure, gain in zip(figures, gains, strict=True)}
        | {CYCLE.name: lived.seconds / (plan.warmup + plan.steps)}
    )


def _gains(first: Footprint, last: Footprint) -> tuple[float, float, float]:
    memory = last.memory.rss - first.memory.rss
    return memory, last.threads - first.threads, last.files - first.files


def play(stage: Stage, mode: str, plane: str, plan: Plan, folder: str) -> None:
    """Be the nursery: a process that has imported all, and forks the job's."""
    stage.once(functools.partial(_live, mode, plane, plan, Path(folder)))


def _live(mode: str, plane: str, plan: Plan, folder: Path) -> Lived:
    port = free_port()
    lasting = [
        _fork(_launched(rank, port), mode, plane, folder / f"rank-{rank}") for rank in range(2)
    ]
    _until((folder / "rank-1").exists, "the first worker does not step")
    began_s, looks = time.monotonic(), []
    for number in range(1, plan.warmup + plan.steps + 1):
        stepped = folder / f"joiner-{number}"
        joiner = _fork(_joining(port), mode, plane, stepped)
        _until(stepped.exists, f"worker {number} does not step")
        os.kill(joiner.pid or 0, signal.SIGKILL)
        joiner.join()
        if number in (plan.warmup, plan.warmup + plan.steps):
            time.sleep(_SETTLE_S)
            looks.append([proc.footprint(process.pid or 0) for process in lasting])
    seconds = time.monotonic() - began_s
    early, late = looks
    return Lived((early[0], late[0]), (early[1], late[1]), seconds)


def _fork(variables: Mapping[str, str], mode: str, plane: str, file: Path) -> Any:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_be, args=(variables, mode, plane, file), daemon=True)
    process.start()
    return process


def _launched(rank: int, port: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}


def _joining(port: int) -> dict[str, str]:
    place = Place(
        rank=JOINS,
        world_size=2,
        local_rank=0,
        local_world_size=2,
        address="127.0.0.1",
        port=port,
        agent_keeps_store=True,
        job="job/0",
    )
    return {PLACE: json.dumps(asdict(place))}


def _be(variables: Mapping[str, str], mode: str, plane: str, file: Path) -> None:
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", **variables}
    psrpc.run(
        functools.partial(_train, file=file),
        model=functools.partial(torch.nn.Linear, 100, 10),
        optimizer=functools.partial(torch.optim.SGD, lr=1e-3),
        mode=MODES[mode],
        plane=plane,
        device="cpu",
        threads=1,
    )
    sys.exit("the job has ended")


def _train(worker: Worker, *, file: Path) -> None:
    samples = torch.utils.data.TensorDataset(torch.ones(1, 100).expand(10_000_000, 100))
    for (inputs,) in worker.batches(samples, 10):
        worker.model(inputs).sum().backward()
        worker.step()
        if worker.steps == _STEPS:
            file.touch()
        time.sleep(_PACE_S)


def _until(happens: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + _CYCLE_S
    while not happens():
        if time.monotonic() > deadline:
            raise BenchmarkError(otherwise)
        time.sleep(_LOOK_AGAIN_S)
