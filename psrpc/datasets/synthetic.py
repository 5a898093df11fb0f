"""Made-up images of MNIST's shape, for trials without any data."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from psrpc.datasets.splits import Splits

_CLASSES = 10
_TRAIN_COUNT, _TEST_COUNT = 12_000, 2_400
_SHAPE = (1, 28, 28)
_COARSE, _SCALE = 7, 4
_NOISE = 5.0


def load(seed: int) -> Splits:
    """Return 12,000 images to train on and 2,400 to test on, drawn from `seed`.

    Each class has one coarse random pattern; an image is the pattern of its
    label with noise on top. Images are float32 of shape (1, 28, 28) with mean 0
    and standard deviation near 1, labels int64 from 0 to 9.
    """
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(_CLASSES, 1, _COARSE, _COARSE, generator=random)
    patterns = coarse.repeat_interleave(_SCALE, dim=2).repeat_interleave(_SCALE, dim=3)
    train = _draw(patterns, _TRAIN_COUNT, random)
    test = _draw(patterns, _TEST_COUNT, random)
    return Splits(train, test, _SHAPE, _CLASSES)


def _draw(patterns: torch.Tensor, count: int, random: torch.Generator) -> TensorDataset:
    labels = torch.randint(_CLASSES, (count,), generator=random)
    images = torch.randn(count, *_SHAPE, generator=random).mul_(_NOISE).add_(patterns[labels])
    return TensorDataset(images.div_((1 + _NOISE**2) ** 0.5), labels)
