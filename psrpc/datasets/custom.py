"""A user's own dataset, named as `package.module:callable`."""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from psrpc import importing
from psrpc.datasets.splits import Splits
from psrpc.errors import DatasetError

_EXPECTED = "a map-style Dataset (with __len__ and __getitem__) or a (train, test) pair of them"


def check(path: str) -> None:
    """Import what `path` names, without calling it. Raises DatasetError."""
    importing.find(path, DatasetError)


def load(path: str) -> Splits:
    """Call what `path` names, without arguments, and return its datasets.

    The callable returns a map-style dataset, or a pair (train, test), where test
    may be None. The shape of a sample is known for a `TensorDataset`, the number
    of classes for that and for a dataset with the attribute `classes`, as
    torchvision's have. Raises DatasetError, the callable's own errors included.
    """
    result = importing.call(path, DatasetError)
    if isinstance(result, tuple | list):
        if len(result) != 2:
            raise DatasetError(f"{path!r} returned {_describe(result)}; expected {_EXPECTED}")
        train, test = result
    else:
        train, test = result, None
    kept = _checked(path, train, "the training set")
    held_out = None if test is None else _checked(path, test, "the test set")
    return Splits(kept, held_out, _input_shape(kept), _num_classes(kept, held_out))


def _checked(path: str, dataset: object, which: str) -> Dataset[Any]:
    if isinstance(dataset, IterableDataset):
        raise DatasetError(
            f"{path!r} returned an IterableDataset as {which}: its samples cannot be shared out "
            f"among workers by index; expected {_EXPECTED}"
        )
    if not _is_map_style(dataset):
        raise DatasetError(
            f"{path!r} returned {_describe(dataset)} as {which}; expected {_EXPECTED}"
        )
    if _length(path, dataset, which) == 0:
        raise DatasetError(f"{path!r} returned an empty dataset as {which}")
    return dataset


def _is_map_style(dataset: object) -> TypeGuard[Dataset[Any]]:
    # Datasets of other libraries need not derive from torch's; these types have
    # both methods as well, and are never meant as a dataset.
    if isinstance(dataset, tuple | list | dict | str | bytes | Tensor | type):
        return False
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def _length(path: str, dataset: Dataset[Any], which: str) -> int:
    try:
        return len(dataset)  # type: ignore[arg-type]
    except Exception as error:
        raise DatasetError(
            f"{path!r}: the length of {which} cannot be had: {importing.cause(error)}"
        ) from error


def _describe(value: object) -> str:
    if isinstance(value, tuple | list):
        kinds = ", ".join(type(item).__name__ for item in value[:4])
        more = ", ..." if len(value) > 4 else ""
        return f"a {type(value).__name__} of {len(value)} ({kinds}{more})"
    return f"an object of type {type(value).__name__}"


def _input_shape(dataset: Dataset[Any]) -> tuple[int, ...] | None:
    whole = _whole(dataset)
    return tuple(whole.tensors[0].shape[1:]) if isinstance(whole, TensorDataset) else None


def _num_classes(*datasets: Dataset[Any] | None) -> int | None:
    counts = [_classes_of(_whole(dataset)) for dataset in datasets if dataset is not None]
    known = [count for count in counts if count is not None]
    return max(known) if known else None


def _classes_of(dataset: Dataset[Any]) -> int | None:
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, list | tuple) and classes:
        return len(classes)
    if not isinstance(dataset, TensorDataset) or len(dataset.tensors) < 2:
        return None
    labels = dataset.tensors[1]
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        return None
    return int(labels.max()) + 1


def _whole(dataset: Dataset[Any]) -> Dataset[Any]:
    """Return what a `Subset` (of a `Subset` ...) was taken from."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset
