"""A server that holds still for its image, and a thread that writes the image away."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contender import Figure, Plan, Sample
from benchmarks.workload import Cheap

STALL = Figure("ms worst stall", 1)
FRESH = Figure("ms stall unprepared", 1)
COPY = Figure("ms copy alone", 1)
WRITTEN = Figure("MB written")
WRITE = Figure("ms write", 0)
READ = Figure("ms check and read", 0)
FIGURES = (STALL, FRESH, COPY, WRITTEN, WRITE, READ)


class Images:
    """One server's whole model, after a step; made in this process, with one torch thread."""

    def __init__(self, work: Cheap, optimizer: str, folder: Path) -> None:
        self.name = optimizer
        self._work = work
        self._folder = folder / "checkpoints"
        self._store: Any = None
        self._blueprint: Any = None
        self._model: Any = None

    def start(self) -> None:
        """See `Contender`."""
        import torch

        from psrpc.modes import Reduction
        from psrpc.store.blueprint import draw
        from psrpc.store.shard import Contribution, ShardStore

        torch.set_num_threads(1)
        factories: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
            "SGD": partial(torch.optim.SGD, lr=0.01),
            "momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
            "Adam": torch.optim.Adam,
        }
        self._model = self._work.model()
        self._blueprint = draw(self._model, factories[self.name])
        layout = self._blueprint.layouts(1)[0]
        self._store = ShardStore(self._blueprint, layout, self._model, Reduction.MEAN)
        self._store.step([Contribution([flat.fill_(1e-3) for flat in layout.empty()], 1)])

    def run(self, plan: Plan) -> Sample:
        """See `Contender`; a step is an image."""
        image, fresh = _timed(self._store.image)
        # The frame is in use, so the next image is a first one again: prepared, as a job does.
        self._store.reserve(self._store.image_bytes())
        stalls = []
        for _ in range(plan.steps):
            image, took = _timed(self._store.image)
            image.release()
            stalls.append(took)
        folder, write = _timed(partial(self._write, image))
        _, read = _timed(partial(self._read, folder))
        size_bytes = sum(path.stat().st_size for path in folder.iterdir())
        values = (max(stalls), fresh, self._copy_alone(image), size_bytes / 1e6, write, read)
        return Sample({f.name: value for f, value in zip(FIGURES, values, strict=True)})

    def stop(self) -> None:
        """See `Contender`."""
        self._store = self._blueprint = self._model = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, image: Any) -> Path:
        from psrpc.checkpoints.folder import Checkpoints, partial_folder
        from psrpc.checkpoints.outline import names_of, rest_of
        from psrpc.checkpoints.writing import JobRecord, write_part

        checkpoints = Checkpoints(self._folder)
        checkpoints.start()
        number = checkpoints.begin()
        folder = partial_folder(self._folder, number)
        part = write_part(folder, 0, self._blueprint, self._store.layout, image)
        names = names_of(self._model, self._blueprint)
        job = JobRecord(self._blueprint, names, rest_of(self._model, self._blueprint))
        return checkpoints.finish(number, [part], job)

    def _read(self, folder: Path) -> None:
        from psrpc.checkpoints.reading import open_checkpoint

        open_checkpoint(folder).shard(self._blueprint, self._store.layout)

    def _copy_alone(self, image: Any) -> float:
        """The best of three copies of as much, between memory that is touched before."""
        import torch

        sources = [tensor for piece in image.pieces for tensor in (piece.weights, *_state(piece))]
        targets = [torch.ones_like(source) for source in sources]

        def copy() -> None:
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)

        return min(_timed(copy)[1] for _ in range(3))


def _state(piece: Any) -> list[Any]:
    return [value for value in piece.state.values() if hasattr(value, "copy_")]


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and how many milliseconds it took."""
    began = time.perf_counter()
    result = function()
    return result, 1e3 * (time.perf_counter() - began)
