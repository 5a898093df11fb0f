"""`psrpc train` inside one of the job's processes: data, model, training, evaluation, results."""

from __future__ import annotations

import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from psrpc import datasets, environment, models
from psrpc._version import __version__
from psrpc.core.seats import Placement
from psrpc.datasets import Splits
from psrpc.environment import Place
from psrpc.errors import DatasetError, PsrpcError, UsageError
from psrpc.runtime import Result, run
from psrpc.seating import seated
from psrpc.settings import TrainSettings, unwritable
from psrpc.tree import to_device
from psrpc.worker import Worker

_OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
}
_TEST_BATCH = 512


def take_part(settings: TrainSettings, place: Place) -> None:
    """Do this process's part of the job; worker 0 evaluates, prints and writes the results."""
    serving = settings.server_processes
    workers = place.world_size - serving
    if workers < 1:
        raise UsageError(f"{place.world_size} processes cannot hold {serving} servers and a worker")
    placement = Placement(settings.server_placement)
    place = seated(place, settings.servers, settings.replicas, placement)
    began = environment.launched_at() or time.time()
    serves = place.serves(serving)
    if place.rank == serving and (problems := unwritable(settings)):
        raise PsrpcError("; ".join(problems))
    splits = datasets.load(settings.dataset, data_root=settings.data_root, seed=settings.seed)
    samples = _length(splits.train)
    build = functools.partial(
        models.build,
        settings.model,
        input_shape=splits.input_shape,
        num_classes=splits.num_classes,
    )
    if not serves:
        _probe(settings, splits)
    else:
        # A server needs to know the shapes only.
        splits = Splits(splits.train, None, splits.input_shape, splits.num_classes)
    result = run(
        functools.partial(_train, settings=settings, dataset=splits.train),
        model=build,
        optimizer=_optimizer(settings),
        mode=settings.consistency,
        servers=settings.servers,
        replicas=settings.replicas,
        reduction=settings.reduction,
        nonfinite=settings.nonfinite,
        plane=settings.plane,
        overlap=settings.overlap,
        backend=settings.backend,
        collective_timeout_s=settings.collective_timeout,
        seed=settings.seed,
        device=settings.device,
        threads=settings.threads or _threads(workers if not serves else 1),
        start_timeout_s=settings.start_timeout,
        elastic=settings.elastic,
        checkpointing=settings.checkpointing,
        hosts=settings.hosts,
        progress=not settings.quiet,
        progress_samples=_total(settings, samples, workers),
    )
    if result.is_main:
        accuracy = _accuracy(result.model, splits.test)
        _save(settings, result)
        wall_s = time.time() - began
        _present(settings, _results(settings, splits, result, workers, accuracy, wall_s))


def _train(worker: Worker, *, settings: TrainSettings, dataset: Dataset[Any]) -> None:
    limit = settings.steps
    # Early gradients are large, and early weights the stalest: small steps first. By the worker's
    # clock, which goes on where others are when a worker comes later.
    steps = settings.warmup + 1
    warmup = LambdaLR(worker.optimizer, lambda _: min(worker.clock + 1, steps) / steps)
    for _ in _epochs(settings):
        for images, labels in worker.batches(dataset, settings.batch_size):
            loss = F.cross_entropy(worker.model(images), labels)
            loss.backward()
            worker.step(loss)
            warmup.step()
            if limit is not None and max(worker.steps, worker.clock) >= limit:
                return


def _epochs(settings: TrainSettings) -> Iterator[int]:
    return itertools.count() if settings.epochs is None else iter(range(settings.epochs))


def _total(settings: TrainSettings, samples: int, workers: int) -> int:
    if settings.epochs is not None:
        return settings.epochs * samples
    return (settings.steps or 0) * workers * settings.batch_size


def _threads(sharers: int) -> int:
    return max(len(os.sched_getaffinity(0)) // sharers, 1)


def _length(dataset: Dataset[Any]) -> int:
    length = getattr(dataset, "__len__", None)
    if length is None:
        raise DatasetError(f"{type(dataset).__name__} has no length")
    return int(length())


def _optimizer(settings: TrainSettings) -> Any:
    options: dict[str, Any] = {"lr": settings.lr}
    if settings.momentum is not None:
        options["momentum"] = settings.momentum
    if settings.weight_decay is not None:
        options["weight_decay"] = settings.weight_decay
    return functools.partial(_OPTIMIZERS[settings.optimizer], **options)


def _probe(settings: TrainSettings, splits: Splits) -> None:
    """Make sure that the model takes the dataset's samples before anybody trains."""
    item = splits.train[0]
    if not (isinstance(item, (tuple, list)) and len(item) == 2):
        raise DatasetError(
            f"a sample of {settings.dataset!r} must be a pair (input, label), not "
            f"{type(item).__name__}"
        )
    if isinstance(item[0], torch.Tensor):
        with torch.random.fork_rng(devices=[]):
            model = models.build(
                settings.model, input_shape=splits.input_shape, num_classes=splits.num_classes
            )
            models.probe(model, item[0], name=settings.model, num_classes=splits.num_classes)


def _accuracy(model: nn.Module | None, test: Dataset[Any] | None) -> float | None:
    """The share of the test samples that the model puts in the right class."""
    if model is None or test is None:
        return None
    device = next(model.parameters()).device
    right = 0
    model.eval()
    with torch.no_grad():
        for batch in DataLoader(test, batch_size=_TEST_BATCH):
            images, labels = to_device(batch, device)
            right += int((model(images).argmax(1) == labels).sum())
    return right / _length(test)


def _results(
    settings: TrainSettings,
    splits: Splits,
    result: Result,
    workers: int,
    accuracy: float | None,
    wall_s: float,
) -> dict[str, Any]:
    assert result.report is not None
    bounded = settings.mode == "bounded"
    return {
        "psrpc_version": __version__,
        "torch_version": torch.__version__,
        "mode": settings.mode,
        "staleness": settings.staleness if bounded else settings.consistency.bound,
        "servers": settings.servers,
        "replicas": settings.replicas,
        "workers": workers,
        "plane": result.plane,
        "overlap": settings.overlap,
        "dataset": settings.dataset,
        "model": models.resolve(settings.model, splits.input_shape),
        "optimizer": settings.optimizer,
        "lr": settings.lr,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "steps": settings.steps,
        "test_accuracy": accuracy,
        "wall_s": wall_s,
        **asdict(result.report),
    }


def _present(settings: TrainSettings, results: dict[str, Any]) -> None:
    if not settings.quiet and settings.json != "-":
        print(_summary(results), flush=True)
    if settings.json == "-":
        print(json.dumps(results), flush=True)
    elif settings.json is not None:
        _write(Path(settings.json), json.dumps(results, indent=2) + "\n")


def _summary(results: dict[str, Any]) -> str:
    accuracy = results["test_accuracy"]
    measured = "not measured (no test set)" if accuracy is None else f"{accuracy:.2%}"
    mode = results["mode"]
    kind = f"bounded staleness {results['staleness']}" if mode == "bounded" else mode
    in_all = " in all" if results["samples_before"] else ""
    lines = (
        f"{results['dataset']} with {results['model']}, {kind}: {results['servers']} server(s), "
        f"{results['workers']} worker(s)",
        f"  test accuracy  {measured}",
        f"  training       {results['train_s']:.1f} s, {_of_this_run(results)} samples "
        f"({results['samples_per_s']:,.0f}/s), {results['worker_steps']:,} worker steps "
        f"({results['worker_steps_per_s']:,.0f}/s)",
        *_in_all(results),
        f"  updates        {results['updates_applied']:,} applied{in_all}, "
        f"{results['duplicates_dropped']:,} duplicates dropped{_late(results)}",
        f"  waiting        {results['wait_share']:.0%} of the workers' time; largest clock gap "
        f"{results['max_clock_gap']}",
        f"  wall time      {results['wall_s']:.1f} s",
        *_skipped(results),
    )
    return "\n".join(lines)


def _of_this_run(results: dict[str, Any]) -> str:
    return f"{results['samples'] - results['samples_before']:,}"


def _in_all(results: dict[str, Any]) -> list[str]:
    """What a job that goes on from a checkpoint has made with the runs before."""
    if not results["samples_before"]:
        return []
    samples, before = results["samples"], results["samples_before"]
    return [f"  in all         {samples:,} samples, {before:,} of them before this run"]


def _late(results: dict[str, Any]) -> str:
    late, redone = results["updates_dropped_late"], results["updates_redone"]
    text = f", {late:,} came too late and were made again" if late else ""
    return text + (f", {redone:,} were made again after a server's death" if redone else "")


def _skipped(results: dict[str, Any]) -> list[str]:
    """Which samples were given up because they had killed several workers."""
    return [
        f"  skipped        positions {low} to {high - 1} of epoch {account['epoch']}'s order: they "
        "killed workers"
        for account in results["epoch_accounts"]
        for low, high in account["skipped_at"]
    ]


def _save(settings: TrainSettings, result: Result) -> None:
    if settings.output is None or result.model is None:
        return
    # Clones, for a parameter is a view of a buffer that holds its whole shard.
    state = {name: v.detach().cpu().clone() for name, v in result.model.state_dict().items()}
    try:
        torch.save(state, settings.output)
    except (OSError, RuntimeError) as error:
        raise PsrpcError(f"--output {settings.output} cannot be written: {error}") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PsrpcError(f"--json {path} cannot be written: {error.strerror}") from error
    sys.stdout.flush()
