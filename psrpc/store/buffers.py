"""A model's buffers (BatchNorm statistics and the like) over many workers.

Workers keep their own buffers while they train, as each sees other batches. The
job's buffers are the mean over the workers, weighted by their steps; whole-number
and boolean buffers (counters) are the largest of any worker.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def buffers_of(model: nn.Module) -> list[torch.Tensor]:
    """The buffers of a model that belong to its state, in order."""
    state = model.state_dict(keep_vars=True)
    return [buffer for name, buffer in model.named_buffers() if name in state]


_RETIRED = -1  # no worker's number


class BufferMean:
    """The mean of the workers' buffers. Callers take turns."""

    def __init__(self, initial: Sequence[torch.Tensor]) -> None:
        self._initial = [tensor.detach().cpu().clone() for tensor in initial]
        self._of_worker: dict[int, tuple[int, Sequence[torch.Tensor]]] = {}

    def put(self, worker: int, steps: int, tensors: Sequence[torch.Tensor]) -> None:
        """Take `worker`'s buffers in place of its former ones."""
        self._of_worker[worker] = (steps, [tensor.clone() for tensor in tensors])

    def drop(self, worker: int) -> None:
        """`worker` is dead: it comes back, if it does, with buffers that include these.

        The last ones are kept as what there is until others come.
        """
        mean = self.mean()
        self._of_worker.pop(worker, None)
        if not any(steps for steps, _ in self._of_worker.values()):
            self._initial = mean

    def retire(self, worker: int) -> None:
        """`worker` has left early: what it sent stays in the mean, and takes no room of its own."""
        mine = self._of_worker.pop(worker, None)
        if mine is None or not mine[0]:
            return
        both = [mine, self._of_worker.pop(_RETIRED, (0, mine[1]))]
        total = sum(steps for steps, _ in both)
        columns = zip(*(tensors for _, tensors in both), strict=True)
        weights = [steps / total for steps, _ in both]
        self._of_worker[_RETIRED] = (total, [_mean(column, weights) for column in columns])

    def export(self) -> tuple[list[torch.Tensor], dict[int, tuple[int, Sequence[torch.Tensor]]]]:
        """All of it: the first buffers, and each worker's with its steps. Not to be changed."""
        return self._initial, dict(self._of_worker)

    def restore(
        self,
        initial: Sequence[torch.Tensor],
        of_worker: dict[int, tuple[int, Sequence[torch.Tensor]]],
    ) -> None:
        """Go on from what `export` gave."""
        self._initial, self._of_worker = list(initial), of_worker

    def mean(self) -> list[torch.Tensor]:
        """The job's buffers now; the model's first ones before any worker sent its own."""
        sent = [entry for _, entry in sorted(self._of_worker.items()) if entry[0] > 0]
        if not sent:
            return [tensor.clone() for tensor in self._initial]
        total = sum(steps for steps, _ in sent)
        columns = zip(*(tensors for _, tensors in sent), strict=True)
        weights = [steps / total for steps, _ in sent]
        return [_mean(column, weights) for column in columns]


def _mean(column: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    if not (column[0].is_floating_point() or column[0].is_complex()):
        return torch.stack(list(column)).amax(0)
    if len(column) == 1:
        return column[0].clone()
    total = torch.zeros_like(column[0])
    for tensor, weight in zip(column, weights, strict=True):
        total.add_(tensor, alpha=weight)
    return total
