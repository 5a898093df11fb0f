"""Ray's parameter-server example: actors that hand each other gradients and weights.

As in https://docs.ray.io/en/latest/ray-core/examples/plot_parameter_server.html: a server
actor that sums NumPy gradients, steps SGD and returns its state dict; worker actors that
load a state dict and return gradients; a driver that passes references from one to
the other. The example evaluates the model every tenth iteration, and so waits for the
weights then; here the driver waits as often and does not evaluate. One torch thread an actor.

Each contender is a cluster of its own, started by its driver. Ray's processes use a few
per cent of a core while they have nothing to do, so they are frozen between turns.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contender import BenchmarkError
from benchmarks.contenders.job import Job
from benchmarks.machine import ROOT
from benchmarks.member import Stage
from benchmarks.processes import Part
from benchmarks.workload import Workload

SYNC = "Ray sync"
ASYNC = "Ray async"
_LOOK_EVERY = 10
_MB = 1_000_000
# Unix sockets' paths end at 107 characters; Ray adds some 70 to its folder's.
_LONGEST_FOLDER = 40

Weights = dict[str, torch.Tensor]


class Server:
    """The example's ParameterServer."""

    def __init__(self, workload: Workload) -> None:
        torch.set_num_threads(1)
        self._model = workload.model()
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=workload.lr)

    def apply_gradients(self, *pushes: list[np.ndarray[Any, Any]]) -> Weights:
        """Make one step of the sum."""
        sums = [np.stack(same).sum(axis=0) for same in zip(*pushes, strict=True)]
        self._optimizer.zero_grad()
        for parameter, total in zip(self._model.parameters(), sums, strict=True):
            parameter.grad = torch.from_numpy(total)
        self._optimizer.step()
        return self.get_weights()

    def get_weights(self) -> Weights:
        """The state dict on the CPU."""
        return {name: tensor.cpu() for name, tensor in self._model.state_dict().items()}


class Worker:
    """The example's DataWorker."""

    def __init__(self, workload: Workload, rank: int, workers: int) -> None:
        torch.set_num_threads(1)
        self._model = workload.model()
        self._gradients = workload.gradients(self._model, rank, workers)

    def compute_gradients(self, weights: Weights) -> list[np.ndarray[Any, Any]]:
        """Take the weights, and answer with the gradients of the next batch."""
        self._model.load_state_dict(weights)
        self._gradients()
        gradients = (parameter.grad for parameter in self._model.parameters())
        return [gradient.data.cpu().numpy() for gradient in gradients if gradient is not None]


class Driver:
    """The example's two loops. `ray` is the module: importing it is for the driver alone."""

    def __init__(self, ray: Any, workload: Workload, workers: int) -> None:
        self._ray = ray
        self._server = ray.remote(Server).remote(workload)
        self._workers = [
            ray.remote(Worker).remote(workload, rank, workers) for rank in range(workers)
        ]
        self._weights = ray.get(self._server.get_weights.remote())
        ray.get([worker.compute_gradients.remote(self._weights) for worker in self._workers])

    def synchronous(self, steps: int) -> None:
        """So many rounds of all workers."""
        weights = self._server.get_weights.remote()
        for number in range(1, steps + 1):
            gradients = [worker.compute_gradients.remote(weights) for worker in self._workers]
            weights = self._server.apply_gradients.remote(*gradients)
            if number % _LOOK_EVERY == 0 or number == steps:
                self._ray.get(weights)

    def asynchronous(self, steps: int) -> None:
        """So many steps a worker, in any order; the last ones are applied before it ends."""
        weights = self._server.get_weights.remote()
        under_way = {worker.compute_gradients.remote(weights): worker for worker in self._workers}
        total = steps * len(self._workers)
        for number in range(1, total + 1):
            (ready,), _ = self._ray.wait(list(under_way))
            worker = under_way.pop(ready)
            weights = self._server.apply_gradients.remote(ready)
            if number + len(under_way) < total:
                under_way[worker.compute_gradients.remote(weights)] = worker
            if number % _LOOK_EVERY == 0 or number == total:
                self._ray.get(weights)


def contenders(workload: Workload, workers: int, folder: Path, store_mb: int = 200) -> list[Job]:
    """Both loops. `folder` takes Ray's files, `store_mb` is the size of its object store."""
    if len(str(folder)) > _LONGEST_FOLDER:
        raise BenchmarkError(f"Ray cannot have sockets in {folder}: set TMPDIR to a shorter path")
    loops = ((SYNC, Driver.synchronous, "s"), (ASYNC, Driver.asynchronous, "a"))
    return [
        Job(
            name,
            [Part(play, (workload, workers, loop, f"{folder}/{letter}", store_mb))],
            freezes=True,
        )
        for name, loop, letter in loops
    ]


def missing() -> str | None:
    """Why Ray's rows are left out, if they must be."""
    if importlib.util.find_spec("ray") is None:
        return "left out: Ray's rows, for ray is not installed (pip install '.[bench]')"
    return None


def play(
    stage: Stage,
    workload: Workload,
    workers: int,
    loop: Callable[[Driver, int], None],
    folder: str,
    store_mb: int,
) -> None:
    """Be the driver, with a cluster."""
    ray = start(folder, store_mb, num_cpus=workers + 1)
    try:
        driver = Driver(ray, workload, workers)
        stage.conduct(lambda steps: loop(driver, steps), width=workers)
    finally:
        ray.shutdown()


def start(folder: str, store_mb: int, num_cpus: int) -> Any:
    """Start a cluster of Ray in this process and its children; returns the module."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # It would write a token into the user's home, and check it in every call.
        "RAY_AUTH_MODE": "disabled",
        # What matters of them is caught.
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",
        "PYTHONPATH": str(ROOT),
    }
    import ray

    ray.init(
        address="local",
        num_cpus=num_cpus,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=False,
        object_store_memory=store_mb * _MB,
        _temp_dir=folder,
    )
    return ray
