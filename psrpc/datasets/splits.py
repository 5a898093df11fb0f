"""What loading a dataset returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset


@dataclass(frozen=True)
class Splits:
    """A dataset to train on, and one to measure accuracy on if there is one.

    Both are map-style datasets of (sample, label), with at least one sample.
    `input_shape` is the shape of one sample without its batch dimension;
    `num_classes` is one more than the largest label. Either is None where the
    dataset does not tell.
    """

    train: Dataset[Any]
    test: Dataset[Any] | None
    input_shape: tuple[int, ...] | None
    num_classes: int | None
