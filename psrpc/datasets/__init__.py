"""The datasets that psrpc ships or can find, by name.

`digits` comes with the package, `mnist` is downloaded through torchvision,
`synthetic` is made up, and `package.module:callable` is the user's own.
"""

from __future__ import annotations

from psrpc import importing
from psrpc.datasets import custom, digits, mnist, synthetic
from psrpc.datasets.splits import Splits
from psrpc.errors import ConfigError

__all__ = ["Splits", "load", "names", "prepare"]


def names() -> tuple[str, ...]:
    """Return the built-in names; `load` takes `package.module:callable` besides."""
    return ("digits", "mnist", "synthetic")


def load(name: str, *, data_root: str | None = None, seed: int = 0) -> Splits:
    """Return the dataset called `name`, the same in every process that passes the same arguments.

    The built-in ones are `TensorDataset`s held in memory: float32 images of
    shape (1, H, W), normalised, and int64 labels. `data_root` is the folder that
    holds `MNIST/raw` (default `./data`); the others ignore it. `seed` chooses
    the samples of `synthetic`; `digits` and `mnist` are split in one fixed way.
    Blocks: reading takes up to a second, downloading MNIST longer.

    Raises ConfigError for an unknown name and DatasetError for a dataset that
    cannot be had.
    """
    if importing.is_path(name):
        return custom.load(name)
    match name:
        case "digits":
            return digits.load()
        case "mnist":
            return mnist.load(data_root)
        case "synthetic":
            return synthetic.load(seed)
    raise _unknown(name)


def prepare(name: str, *, data_root: str | None) -> None:
    """Do what must happen once per host before its processes load the dataset.

    Downloads MNIST if it is absent and reads it once; imports the module of a
    `package.module:callable` without calling it. Raises what `load` would raise.
    """
    if importing.is_path(name):
        custom.check(name)
    elif name == "mnist":
        mnist.prepare(data_root)
    elif name not in names():
        raise _unknown(name)


def _unknown(name: str) -> ConfigError:
    known = ", ".join(names())
    return ConfigError(f"there is no dataset {name!r}: use {known}, or package.module:callable")
