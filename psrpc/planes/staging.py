"""How a shard travels in a group: gradients as few flat sums, weights and replies as bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from psrpc.messages import Stepped
from psrpc.planes import codec
from psrpc.store.layout import ShardLayout, torch_dtype

_ALIGN = 64
_DOUBLE = (torch.float64, torch.complex128)
_HEAD = 1 << 10  # bytes for a reply
_LENGTH = 4  # of these, for its own length


class Staging:
    """One member's tensors of one shard, on the device that its groups use.

    `sums` are what is reduced, one tensor for each dtype that is added up in: half
    precision is added up in float32, complex numbers as pairs. `spread` is what is
    broadcast: a reply for all of its workers, and `weights`, which are views of it. Both are the
    same memory, for no sum is needed any more when weights are sent; unless they are `apart`, where
    the weights are a model's.
    """

    def __init__(self, layout: ShardLayout, device: torch.device, *, apart: bool = False) -> None:
        self._dtypes = [torch_dtype(segment.dtype) for segment in layout.segments]
        numels = [segment.numel for segment in layout.segments]
        sizes = [n * dtype.itemsize for n, dtype in zip(numels, self._dtypes, strict=True)]
        rooms = [_padded(size) for size in (_HEAD, *sizes)]
        summed = [_summed_in(dtype) for dtype in self._dtypes]
        reals = [n << dtype.is_complex for n, dtype in zip(numels, self._dtypes, strict=True)]
        addends = [_padded(n * kind.itemsize) for n, kind in zip(reals, summed, strict=True)]
        memory = torch.zeros(
            sum(addends) if apart else max(sum(addends), sum(rooms)),
            dtype=torch.uint8,
            device=device,
        )
        self.sums: list[torch.Tensor] = []
        self._addends = [torch.empty(0)] * len(reals)
        begin = 0
        for dtype in (torch.float32, torch.float64):
            mine = [i for i, kind in enumerate(summed) if kind is dtype]
            if mine:
                rows = [addends[i] // dtype.itemsize for i in mine]
                size = sum(rows) * dtype.itemsize
                self.sums.append(memory[begin : begin + size].view(dtype))
                begin += size
                for i, part in zip(mine, self.sums[-1].split(rows), strict=True):
                    self._addends[i] = part[: reals[i]]
        own = torch.zeros(sum(rooms), dtype=torch.uint8, device=device) if apart else memory
        self.spread = own[: sum(rooms)]
        self._head, *rest = self.spread.split(rooms)
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

    def total(self) -> list[torch.Tensor]:
        """The sums as CPU gradients, one flat tensor a segment; some are views of the sums."""
        return [
            _like(addend.cpu(), dtype)
            for addend, dtype in zip(self._addends, self._dtypes, strict=True)
        ]

    def put(self, weights: Sequence[torch.Tensor], reply: Stepped | None) -> bool:
        """Make ready what is to be broadcast; returns whether there is room for the reply.

        Without one whoever gets this is to ask for his own. The sums are gone then.
        """
        data = b"" if reply is None else codec.encode(reply)
        fits = len(data) <= _HEAD - _LENGTH
        data = data if fits else b""
        head = len(data).to_bytes(_LENGTH, "little") + data
        self._head[: len(head)].copy_(torch.frombuffer(bytearray(head), dtype=torch.uint8))
        for target, tensor in zip(self.weights, weights, strict=True):
            target.copy_(tensor)
        return fits

    def reply(self) -> Stepped | None:
        """What came in the last broadcast."""
        head = bytes(self._head.tolist())
        length = int.from_bytes(head[:_LENGTH], "little")
        reply = codec.decode(head[_LENGTH : _LENGTH + length]) if length else None
        return reply if isinstance(reply, Stepped) else None


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
