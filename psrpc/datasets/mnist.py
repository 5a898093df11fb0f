"""MNIST, read through torchvision and downloaded if it is absent."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.utils.data import TensorDataset

from psrpc import optional
from psrpc.datasets import mirrors
from psrpc.datasets.splits import Splits
from psrpc.errors import DatasetError
from psrpc.importing import cause

_DEFAULT_ROOT = "data"
_MEAN, _STD = 0.1307, 0.3081
_INSTEAD = "use --dataset digits"


def prepare(data_root: str | None) -> None:
    """Make sure that MNIST is in `data_root` and can be read; download it if it is absent.

    Blocks; gives up within seconds where no mirror can be reached. Writes
    nothing into a folder that holds the data, and leaves nothing behind when a
    download fails. Raises DatasetError.
    """
    _read_both(data_root)


def load(data_root: str | None) -> Splits:
    """Return the 60,000 images to train on and the 10,000 to test on.

    Images are float32 of shape (1, 28, 28), normalised with mean 0.1307 and
    standard deviation 0.3081, labels int64 from 0 to 9. Takes 220 MB of memory.
    Blocks and fails as `prepare` does.
    """
    train, test = _read_both(data_root)
    return Splits(_normalised(*train), _normalised(*test), (1, 28, 28), 10)


def _read_both(data_root: str | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    vision = optional.torchvision(DatasetError, wanted_by="dataset 'mnist'", instead=_INSTEAD)
    root = Path(_DEFAULT_ROOT if data_root is None else data_root).expanduser().absolute()
    _ensure(vision, root)
    return _read(vision, root, train=True), _read(vision, root, train=False)


def _ensure(vision: ModuleType, root: Path) -> None:
    source: Any = vision.datasets.MNIST
    raw = root / "MNIST" / "raw"
    missing = [
        (archive, md5)
        for archive, md5 in source.resources
        if not (raw / mirrors.unpacked_name(archive)).is_file()
    ]
    if not missing:
        return
    try:
        mirrors.download(missing, source.mirrors, raw)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise DatasetError(
            f"MNIST is not in {raw} and could not be downloaded ({reason}): "
            f"give the folder that holds MNIST/raw with --data-root, or {_INSTEAD}"
        ) from error


def _read(vision: ModuleType, root: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    """Return images, uint8 (N, 28, 28), and labels, int64 (N,)."""
    try:
        dataset = vision.datasets.MNIST(os.fspath(root), train=train, download=False)
        images, labels = dataset.data, dataset.targets
    except Exception as error:
        # torchvision's reader raises whatever the bytes make it trip over:
        # ValueError, RuntimeError, AssertionError, KeyError.
        raise _damaged(root, train, cause(error)) from error
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or len(images) == 0:
        found = f"images {tuple(images.shape)}, labels {tuple(labels.shape)}"
        raise _damaged(root, train, found)
    if int(labels.max()) > 9:
        raise _damaged(root, train, f"a label is {int(labels.max())}")
    return images, labels


def _damaged(root: Path, train: bool, why: str) -> DatasetError:
    part = "train" if train else "t10k"
    files = root / "MNIST" / "raw" / f"{part}-*-ubyte"
    return DatasetError(
        f"the MNIST files {files} are damaged ({why}): delete them to have them downloaded "
        f"again, or {_INSTEAD}"
    )


def _normalised(images: Tensor, labels: Tensor) -> TensorDataset:
    pixels = images.unsqueeze(1).float().div_(255).sub_(_MEAN).div_(_STD)
    return TensorDataset(pixels, labels)
