"""Ray's parameter-server pattern, trained while its worker actors are killed.

The actors and both loops of `ray_example`, with a data set in place of endless batches: each
worker goes through its own part of it, and each push names its batch, which the server counts.
Three forms: as the example is; with actors that Ray restarts and tasks that it sends again
(`max_restarts`, `max_task_retries`: https://docs.ray.io/en/latest/ray-core/fault_tolerance/
actors.html); and these with batches that the driver deals out, so that a task sent again
is about the same batch.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contender import BenchmarkError, Plan, Sample
from benchmarks.contenders import chaos, ray_example
from benchmarks.contenders.chaos import Course
from benchmarks.contenders.killer import Killer
from benchmarks.member import Go, Here, Stage, Stop
from benchmarks.processes import Part, ProcessGroup
from psrpc import datasets, models

_START_S = 120.0
_LONGEST_S = 300.0
_STOP_S = 10.0
_LOOK_EVERY = 10

Push = tuple[int, list[np.ndarray[Any, Any]]]


class Form(Enum):
    """How much is done against deaths."""

    EXAMPLE = "as the example"
    RESTARTS = "restarts"
    DEALT = "restarts, batches dealt"


@dataclass(frozen=True)
class Trained:
    """From the driver: what came of it. `applied` counts pushes by number, `error` ended it."""

    seconds: float
    applied: dict[int, int]
    accuracy: float
    error: str | None


class Batches:
    """The course's batches by number: epoch after epoch, each in an order of its own."""

    def __init__(self, course: Course) -> None:
        splits = datasets.load(course.dataset, data_root=course.data_root)
        self.images, self.labels = splits.train.tensors  # type: ignore[attr-defined]
        self.test = splits.test.tensors  # type: ignore[union-attr]
        self.shape, self.classes = splits.input_shape, splits.num_classes
        self.size = course.batch_size
        self.epoch = -(-len(self.images) // self.size)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def model(self) -> nn.Module:
        """A new model for them, the same everywhere."""
        torch.manual_seed(0)
        return models.build("convnet", input_shape=self.shape, num_classes=self.classes)

    def samples(self, number: int) -> int:
        """How many samples a batch has."""
        begin = number % self.epoch * self.size
        return min(self.size, len(self.images) - begin)

    def take(self, number: int) -> tuple[Tensor, Tensor]:
        """A batch: images and labels."""
        epoch, begin = number // self.epoch, number % self.epoch * self.size
        if self._order[0] != epoch:
            seeded = torch.Generator().manual_seed(epoch)
            self._order = (epoch, torch.randperm(len(self.images), generator=seeded))
        chosen = self._order[1][begin : begin + self.size]
        return self.images[chosen], self.labels[chosen]


class Server:
    """The example's server, which counts what it applies."""

    def __init__(self, course: Course) -> None:
        torch.set_num_threads(1)
        self._model = Batches(course).model()
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=course.lr)
        self._applied: Counter[int] = Counter()

    def apply_gradients(self, *pushes: Push) -> ray_example.Weights:
        """Make one step of the sum."""
        self._applied.update(number for number, _ in pushes)
        gradients = [gradients for _, gradients in pushes]
        self._optimizer.zero_grad()
        for parameter, *same in zip(self._model.parameters(), *gradients, strict=True):
            parameter.grad = torch.from_numpy(np.stack(same).sum(axis=0))
        self._optimizer.step()
        return self.get_weights()

    def get_weights(self) -> ray_example.Weights:
        """The state dict."""
        return {name: tensor.cpu() for name, tensor in self._model.state_dict().items()}

    def applied(self) -> dict[int, int]:
        """How often each batch was applied."""
        return dict(self._applied)


class Worker:
    """The example's worker. It notes its process, so that this can be killed."""

    def __init__(self, course: Course, rank: int, folder: str) -> None:
        (Path(folder) / str(rank)).write_text(str(os.getpid()))
        torch.set_num_threads(1)
        self._batches = Batches(course)
        self._model = self._batches.model()
        self._own = itertools.count(rank, course.workers)

    def compute_gradients(self, weights: ray_example.Weights, number: int | None = None) -> Push:
        """Take the weights; answer with the gradients of the next batch, or of the one named."""
        number = next(self._own) if number is None else number
        images, labels = self._batches.take(number)
        self._model.load_state_dict(weights)
        self._model.zero_grad()
        F.cross_entropy(self._model(images), labels).backward()
        gradients = (parameter.grad for parameter in self._model.parameters())
        return number, [gradient.cpu().numpy() for gradient in gradients if gradient is not None]


class Driver:
    """The example's two loops, over so many batches."""

    def __init__(self, ray: Any, course: Course, form: Form, folder: str) -> None:
        self._ray, self._course, self._form = ray, course, form
        lives = {} if form is Form.EXAMPLE else {"max_restarts": -1, "max_task_retries": -1}
        worker = ray.remote(Worker)
        self._server = ray.remote(Server).remote(course)
        self._workers = [
            (worker.options(**lives) if lives else worker).remote(course, rank, folder)
            for rank in range(course.workers)
        ]
        self._batches = Batches(course)
        self._total = self._batches.epoch * course.epochs
        self._numbers: Iterator[int] = iter(range(self._total))
        ray.get(
            [self._server.get_weights.remote(), *(w.__ray_ready__.remote() for w in self._workers)]
        )

    def train(self) -> Trained:
        """Run the loop to its end, or to the error that ends it."""
        loop = self._synchronous if self._course.mode == "sync" else self._asynchronous
        began_s, error = time.monotonic(), None
        try:
            loop()
        except self._ray.exceptions.RayError as failed:
            error = type(failed).__name__
        seconds = time.monotonic() - began_s
        return Trained(
            seconds, self._ray.get(self._server.applied.remote()), self._accuracy(), error
        )

    def _synchronous(self) -> None:
        weights = self._server.get_weights.remote()
        rounds = -(-self._total // len(self._workers))
        for number in range(1, rounds + 1):
            weights = self._server.apply_gradients.remote(
                *[self._begin(worker, weights) for worker in self._workers]
            )
            if number % _LOOK_EVERY == 0 or number == rounds:
                self._ray.get(weights)

    def _asynchronous(self) -> None:
        weights = self._server.get_weights.remote()
        under_way = {self._begin(worker, weights): worker for worker in self._workers}
        for number in range(1, self._total + 1):
            (ready,), _ = self._ray.wait(list(under_way))
            worker = under_way.pop(ready)
            weights = self._server.apply_gradients.remote(ready)
            if number + len(under_way) < self._total:
                under_way[self._begin(worker, weights)] = worker
            if number % _LOOK_EVERY == 0 or number == self._total:
                self._ray.get(weights)

    def _begin(self, worker: Any, weights: Any) -> Any:
        if self._form is not Form.DEALT:
            return worker.compute_gradients.remote(weights)
        # A last round may have more workers than batches are left: these count as doubled.
        return worker.compute_gradients.remote(weights, next(self._numbers, self._total - 1))

    def _accuracy(self) -> float:
        model = self._batches.model()
        model.load_state_dict(self._ray.get(self._server.get_weights.remote()))
        images, labels = self._batches.test
        with torch.no_grad():
            return float((model(images).argmax(1) == labels).float().mean())


class RayChaos:
    """One form of the pattern; with `every_s` a worker (not the first) is killed that often."""

    def __init__(
        self, name: str, course: Course, form: Form, folder: Path, every_s: float | None
    ) -> None:
        self.name = name
        self._course = course
        self._every_s = every_s
        self._pids = folder / "pids"
        self._pids.mkdir(exist_ok=True)
        part = Part(play, (course, form, str(self._pids), f"{folder}/c"))
        self._group = ProcessGroup(name, [part])

    def start(self) -> None:
        """Do nothing: a turn is a whole job."""

    def run(self, plan: Plan) -> Sample:
        """Train once, whatever the plan."""
        self._group.start()
        self._group.gather([0], Here, _START_S)
        self._group.send([0], Go())
        killer = Killer(self._victims, self._every_s)
        try:
            with killer:
                (trained,) = self._group.gather([0], Trained, _LONGEST_S)
        except BenchmarkError:
            return Sample({chaos.FINISHED.name: 0.0, chaos.KILLED.name: len(killer.killed)})
        finally:
            self.stop()
        return summarize(trained, Batches(self._course), self._course.epochs, len(killer.killed))

    def stop(self) -> None:
        """See `Contender`."""
        self._group.stop(Stop(), _STOP_S)
        for file in self._pids.iterdir():
            file.unlink()

    def _victims(self) -> list[int]:
        noted = [int(f.read_text() or 0) for f in self._pids.iterdir() if f.name != "0"]
        return [pid for pid in noted if Path(f"/proc/{pid}").exists()]


def summarize(trained: Trained, batches: Batches, epochs: int, kills: int) -> Sample:
    """A turn's figures; samples are lost that no push had, doubled that more than one had."""
    wanted = range(batches.epoch * epochs)
    lost = sum(batches.samples(n) for n in wanted if n not in trained.applied)
    applied = sum(batches.samples(n) * times for n, times in trained.applied.items())
    total = sum(batches.samples(n) for n in wanted)
    return Sample(
        {
            chaos.RATE.name: applied / trained.seconds,
            chaos.TRAINED.name: trained.seconds,
            chaos.ACCURACY.name: 100.0 * trained.accuracy,
            chaos.FINISHED.name: 100.0 if trained.error is None else 100.0 * applied / total,
            chaos.LOST.name: lost,
            chaos.DOUBLED.name: applied + lost - total,
            chaos.KILLED.name: kills,
        }
    )


def play(stage: Stage, course: Course, form: Form, pids: str, folder: str) -> None:
    """Be the driver, with a cluster."""
    torch.set_num_threads(1)
    ray = ray_example.start(folder, store_mb=200, num_cpus=course.workers + 1)
    try:
        driver = Driver(ray, course, form, pids)
        stage.once(driver.train)
    finally:
        ray.shutdown()
