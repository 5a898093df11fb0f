"""How a shard travels in a group: gradients as few flat sums, weights and replies as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from psrpc.messages import Reply, Stepped
from psrpc.store.layout import ShardLayout, torch_dtype

_ALIGN = 64
_DOUBLE = (torch.float64, torch.complex128)
_COLUMNS = 4  # of a reply: whether it is there, version, lead, duplicate


class Staging:
    """One member's tensors of one shard, on the device that its groups use.

    `sums` are what is reduced, one tensor for each dtype that is added up in: half
    precision is added up in float32, complex numbers as pairs. `spread` is what is
    broadcast: a reply for every worker of the job, and `weights`, which are views of it.
    """

    def __init__(self, layout: ShardLayout, workers: int, device: torch.device) -> None:
        self._dtypes = [torch_dtype(segment.dtype) for segment in layout.segments]
        reals = [
            s.numel << d.is_complex for s, d in zip(layout.segments, self._dtypes, strict=True)
        ]
        self.sums: list[torch.Tensor] = []
        self._addends = [torch.empty(0)] * len(reals)
        for dtype in (torch.float32, torch.float64):
            mine = [i for i, kind in enumerate(self._dtypes) if _summed_in(kind) is dtype]
            if mine:
                room = [_padded(reals[i]) for i in mine]
                self.sums.append(torch.zeros(sum(room), dtype=dtype, device=device))
                for i, part in zip(mine, self.sums[-1].split(room), strict=True):
                    self._addends[i] = part[: reals[i]]
        head = workers * _COLUMNS * torch.int64.itemsize
        sizes = [s.numel * d.itemsize for s, d in zip(layout.segments, self._dtypes, strict=True)]
        room = [_padded(size) for size in (head, *sizes)]
        self.spread = torch.zeros(sum(room), dtype=torch.uint8, device=device)
        first, *rest = self.spread.split(room)
        self._replies = first[:head].view(torch.int64).view(workers, _COLUMNS)
        self.weights = [
            part[:size].view(dtype)
            for part, size, dtype in zip(rest, sizes, self._dtypes, strict=True)
        ]

    def load(self, gradients: Sequence[torch.Tensor], weight: float) -> None:
        """Let the sums be these gradients, times `weight`."""
        for addend, gradient in zip(self._addends, gradients, strict=True):
            addend.copy_(_real(gradient))
        if weight != 1.0:
            for total in self.sums:
                total.mul_(weight)

    def clear(self) -> None:
        """Let the sums be 0."""
        for total in self.sums:
            total.zero_()

    def add(self, gradients: Sequence[torch.Tensor], weight: float) -> None:
        """Add gradients, times `weight`, to the sums."""
        for addend, gradient in zip(self._addends, gradients, strict=True):
            addend.add_(_real(gradient).to(addend.device), alpha=weight)

    def total(self) -> list[torch.Tensor]:
        """The sums as CPU gradients, one flat tensor a segment; some are views of the sums."""
        return [
            _like(addend.cpu(), dtype)
            for addend, dtype in zip(self._addends, self._dtypes, strict=True)
        ]

    def put(self, weights: Sequence[torch.Tensor], replies: Mapping[int, Reply]) -> None:
        """Make ready what is to be broadcast; only a `Stepped` can go this way."""
        for target, tensor in zip(self.weights, weights, strict=True):
            target.copy_(tensor)
        rows = torch.zeros(self._replies.shape, dtype=torch.int64)
        for worker, reply in replies.items():
            if isinstance(reply, Stepped):
                row = (1, reply.version, reply.lead, int(reply.duplicate))
                rows[worker] = torch.tensor(row)
        self._replies.copy_(rows)

    def reply(self, worker: int) -> Stepped | None:
        """What came for a worker in the last broadcast."""
        there, version, lead, duplicate = self._replies[worker].tolist()
        return Stepped(version, lead, bool(duplicate)) if there else None


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in _DOUBLE else torch.float32


def _real(flat: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(flat).view(-1) if flat.is_complex() else flat


def _like(total: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_complex:
        return torch.view_as_complex(total.view(-1, 2)).to(dtype)
    return total.to(dtype)


def _padded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
