"""Batches as users make them: tensors in tuples, lists and dictionaries."""

from __future__ import annotations

from typing import Any

import torch


def to_device(batch: Any, device: torch.device) -> Any:
    """The same batch with its tensors on `device`; the batch itself where they are there."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if device.type == "cpu":
        return batch
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
