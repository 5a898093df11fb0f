"""What the contenders work on: a model, and batches that lie ready in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from psrpc import datasets, models

Batch = tuple[Tensor, Tensor]

_BATCH_SIZE = 128
_BATCHES = 90
_LR = 0.01


@dataclass(frozen=True)
class Workload:
    """A model by name and a file of samples, which all processes map and so share."""

    model_name: str
    file: str
    dataset: str
    input_shape: tuple[int, ...]
    num_classes: int
    batch_size: int = _BATCH_SIZE
    lr: float = _LR

    def model(self) -> nn.Module:
        """A new model."""
        return models.build(
            self.model_name, input_shape=self.input_shape, num_classes=self.num_classes
        )

    def batches(self, rank: int, workers: int) -> Iterator[Batch]:
        """This worker's share of the batches, for ever. Slices: loading costs nothing."""
        images, labels = torch.load(self.file, mmap=True, weights_only=True)
        pairs = zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)
        mine = [pair for index, pair in enumerate(pairs) if index % workers == rank]
        # Read once, so that no round pays for the file.
        for image, _ in mine:
            image.sum()
        return itertools.cycle(mine)


def convnet(folder: Path, data_root: Path | None) -> Workload:
    """Ray's example: its small ConvNet, batches of 128 images of MNIST (or of its shape).

    `folder` takes the samples; `data_root` holds `MNIST/raw`, or is None.
    """
    name = "synthetic" if data_root is None else "mnist"
    splits = datasets.load(name, data_root=None if data_root is None else str(data_root), seed=0)
    images, labels = splits.train[: _BATCH_SIZE * _BATCHES]
    file = folder / "samples.pt"
    torch.save((images.clone(), labels.clone()), file)
    assert splits.input_shape is not None
    assert splits.num_classes is not None
    return Workload("convnet", str(file), name, splits.input_shape, splits.num_classes)
