"""The 1,797 handwritten digits of 8 x 8 pixels that come with the package (see DIGITS.md)."""

from __future__ import annotations

import random
from importlib import resources

import numpy as np
import torch
from torch.utils.data import TensorDataset

from psrpc.datasets.splits import Splits
from psrpc.errors import DatasetError
from psrpc.importing import cause

_COUNT = 1797
_SHAPE = (1, 8, 8)
_TEST_COUNT = _COUNT // 5
# Of all pixels of all images, divided by 16, the largest value.
_MEAN, _STD = 0.3053, 0.3760
_SPLIT_SEED = 2


def load() -> Splits:
    """Return 1,438 digits to train on and 359 held out, always the same ones.

    Images are float32 of shape (1, 8, 8) with mean 0 and standard deviation 1,
    labels int64 from 0 to 9.
    """
    images, labels = _read()
    order = _order()
    held_out, rest = order[:_TEST_COUNT], order[_TEST_COUNT:]
    train = TensorDataset(images[rest], labels[rest])
    test = TensorDataset(images[held_out], labels[held_out])
    return Splits(train, test, _SHAPE, 10)


def _read() -> tuple[torch.Tensor, torch.Tensor]:
    path = resources.files("psrpc.datasets") / "digits.npz"
    try:
        with path.open("rb") as file:
            arrays = np.load(file)
            pixels, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
        images = pixels.view(_COUNT, *_SHAPE).float().div_(16).sub_(_MEAN).div_(_STD)
        return images, labels.long()
    except Exception as error:
        # numpy's reader raises whatever the bytes make it trip over.
        raise DatasetError(
            f"{path} cannot be read ({cause(error)}): install psrpc again"
        ) from error


def _order() -> torch.Tensor:
    # Python promises that `random()` gives the same numbers for a seed in every
    # version, which neither `shuffle` nor torch.randperm does.
    numbers = random.Random(_SPLIT_SEED)
    return torch.tensor(sorted(range(_COUNT), key=lambda _: numbers.random()))
