"""MNIST, in the files that torchvision keeps, which downloads them if they are absent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from psrpc import optional
from psrpc.datasets import mirrors
from psrpc.datasets.splits import Splits
from psrpc.errors import DatasetError
from psrpc.importing import cause

_DEFAULT_ROOT = "data"
_PARTS = ("train", "t10k")
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
    root = Path(_DEFAULT_ROOT if data_root is None else data_root).expanduser().absolute()
    raw = root / "MNIST" / "raw"
    if not all((raw / name).is_file() for part in _PARTS for name in _files(part)):
        _download(raw)
    train, test = (_read(raw, part) for part in _PARTS)
    return train, test


def _files(part: str) -> tuple[str, str]:
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def _download(raw: Path) -> None:
    # Imported where it is needed alone: it takes a second, and every process loads the data.
    vision = optional.torchvision(DatasetError, wanted_by="dataset 'mnist'", instead=_INSTEAD)
    source: Any = vision.datasets.MNIST
    missing = [
        (archive, md5)
        for archive, md5 in source.resources
        if not (raw / mirrors.unpacked_name(archive)).is_file()
    ]
    try:
        mirrors.download(missing, source.mirrors, raw)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise DatasetError(
            f"MNIST is not in {raw} and could not be downloaded ({reason}): "
            f"give the folder that holds MNIST/raw with --data-root, or {_INSTEAD}"
        ) from error


def _read(raw: Path, part: str) -> tuple[Tensor, Tensor]:
    """Return images, uint8 (N, 28, 28), and labels, int64 (N,)."""
    try:
        images, labels = (_read_idx(raw / name) for name in _files(part))
    except (OSError, ValueError) as error:
        raise _damaged(raw, part, cause(error)) from error
    if images.shape[1:] != (28, 28) or images.shape[:1] != labels.shape or len(images) == 0:
        found = f"images {tuple(images.shape)}, labels {tuple(labels.shape)}"
        raise _damaged(raw, part, found)
    if int(labels.max()) > 9:
        raise _damaged(raw, part, f"a label is {int(labels.max())}")
    return images, labels.long()


def _read_idx(file: Path) -> Tensor:
    """Return what a file holds: two zeros, 8 for bytes, how many sizes, the sizes, the bytes."""
    content = np.fromfile(file, dtype=np.uint8)
    head = content[:4].tolist()
    if len(head) < 4 or head[:3] != [0, 0, 8]:
        raise ValueError(f"{file.name} does not begin as an IDX file of bytes")
    begin = 4 + 4 * head[3]
    shape = [int(size) for size in np.frombuffer(content[4:begin].tobytes(), dtype=">u4")]
    if len(content) != begin + math.prod(shape):
        raise ValueError(f"{file.name} has {len(content)} bytes, its head tells of {shape}")
    return torch.from_numpy(content[begin:]).view(*shape)


def _damaged(raw: Path, part: str, why: str) -> DatasetError:
    files = raw / f"{part}-*-ubyte"
    return DatasetError(
        f"the MNIST files {files} are damaged ({why}): delete them to have them downloaded "
        f"again, or {_INSTEAD}"
    )


def _normalised(images: Tensor, labels: Tensor) -> TensorDataset:
    pixels = images.unsqueeze(1).float().div_(255).sub_(_MEAN).div_(_STD)
    return TensorDataset(pixels, labels)
