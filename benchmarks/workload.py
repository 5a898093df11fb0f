"""What the contenders work on: a model, and how its next gradients come about."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psrpc import datasets, models

Batch = tuple[Tensor, Tensor]
Gradients = Callable[[], Tensor | None]

BATCH_SIZE = 128
_BATCHES = 90
_LARGEST_TENSOR = 1_000_000
_SCALE = 1e-3


class Workload(Protocol):
    """The same for all contenders of a run; it is sent to their processes."""

    @property
    def lr(self) -> float:
        """The learning rate of plain SGD."""
        ...

    def model(self) -> nn.Module:
        """A new model."""
        ...

    def gradients(
        self,
        model: nn.Module,
        rank: int,
        workers: int,
        *,
        autograd: bool = False,
        cleared: bool = False,
    ) -> Gradients:
        """A function that puts the next batch's gradients into `model`, in place of older ones.

        It returns the loss, if there is one. `autograd` says that the contender sees
        gradients only if autograd makes them, `cleared` that its step lets them begin from
        zero, so that a loop need not.
        """
        ...


@dataclass(frozen=True)
class Images:
    """Ray's example: its small ConvNet on batches of 128 images of MNIST, or of its shape.

    With `per_sample` they come from torchvision's dataset through its transforms, one
    image at a time, shuffled, as in the example; otherwise they are slices of a tensor
    in memory, which costs nothing.
    """

    folder: str
    dataset: str
    per_sample: bool
    lr: float = 0.01

    def model(self) -> nn.Module:
        """See `Workload`."""
        return models.build("convnet", input_shape=(1, 28, 28), num_classes=10)

    def gradients(
        self,
        model: nn.Module,
        rank: int,
        workers: int,
        *,
        autograd: bool = False,
        cleared: bool = False,
    ) -> Gradients:
        """See `Workload`."""
        batches = self._loaded() if self.per_sample else self._held(rank, workers)

        def make() -> Tensor:
            images, labels = next(batches)
            if not cleared:
                model.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        return make

    def _held(self, rank: int, workers: int) -> Iterator[Batch]:
        """This worker's share of the batches, for ever, from a file that all map."""
        images, labels = torch.load(_samples(self.folder), mmap=True, weights_only=True)
        pairs = zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True)
        mine = [pair for index, pair in enumerate(pairs) if index % workers == rank]
        # Read once, so that no turn pays for the file.
        for image, _ in mine:
            image.sum()
        return itertools.cycle(mine)

    def _loaded(self) -> Iterator[Batch]:
        from torchvision import datasets as vision
        from torchvision import transforms

        steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
        samples: Any = vision.MNIST(self.folder, transform=transforms.Compose(steps))
        loader = torch.utils.data.DataLoader(samples, batch_size=BATCH_SIZE, shuffle=True)
        while True:
            yield from loader


@dataclass(frozen=True)
class Cheap:
    """Any number of float32 parameters, and gradients that cost next to nothing.

    A gradient is a thousandth of its parameter, written in place where there is one
    already.
    """

    parameters: int
    lr: float = 0.01

    @property
    def size_bytes(self) -> int:
        """Of the weights, and of the gradients."""
        return 4 * self.parameters

    def model(self) -> nn.Module:
        """See `Workload`."""
        return Tensors(self.parameters)

    def gradients(
        self,
        model: nn.Module,
        rank: int,
        workers: int,
        *,
        autograd: bool = False,
        cleared: bool = False,
    ) -> Gradients:
        """See `Workload`."""

        def by_autograd() -> None:
            if not cleared:
                model.zero_grad()
            model().backward()

        def in_place() -> None:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is None:
                        parameter.grad = parameter * _SCALE
                    else:
                        torch.mul(parameter, _SCALE, out=parameter.grad)

        return by_autograd if autograd else in_place


class Tensors(nn.Module):
    """Parameters without a use, in tensors of a million at most."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        sizes = [_LARGEST_TENSOR] * (parameters // _LARGEST_TENSOR)
        if rest := parameters % _LARGEST_TENSOR:
            sizes.append(rest)
        self.tensors = nn.ParameterList(nn.Parameter(torch.ones(size)) for size in sizes)

    def forward(self) -> Tensor:
        """A loss of zero with gradients as `Cheap` tells."""
        losses = [_Thousandth.apply(tensor) for tensor in self.tensors]
        return torch.stack(losses).sum()


class _Thousandth(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(tensor)
        return tensor.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (tensor,) = ctx.saved_tensors
        return tensor * _SCALE


def held(folder: Path, data_root: Path | None) -> Images:
    """Images in memory. `folder` takes them; `data_root` holds `MNIST/raw`, or is None."""
    name = _name(data_root)
    root = None if data_root is None else str(data_root)
    images, labels = datasets.load(name, data_root=root).train[: BATCH_SIZE * _BATCHES]
    torch.save((images.clone(), labels.clone()), _samples(str(folder)))
    return Images(str(folder), name, per_sample=False)


def loaded(folder: Path, data_root: Path | None) -> Images:
    """Images through torchvision; without MNIST, files like its own are made up in `folder`."""
    if data_root is None:
        _write_like_mnist(folder / "MNIST" / "raw")
    return Images(str(data_root or folder), _name(data_root), per_sample=True)


def _write_like_mnist(raw: Path, samples: int = 60_000) -> None:
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "t10k"):
        pixels = torch.randint(256, (samples, 28, 28), generator=generator, dtype=torch.uint8)
        labels = torch.randint(10, (samples,), generator=generator, dtype=torch.uint8)
        for name, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            # The format: two zeros, 8 for bytes, the number of sizes, the sizes, the bytes.
            head = bytes((0, 0, 8, values.dim()))
            sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            (raw / f"{part}-{name}-ubyte").write_bytes(head + sizes + values.numpy().tobytes())


def _samples(folder: str) -> str:
    return f"{folder}/samples.pt"


def _name(data_root: Path | None) -> str:
    return "synthetic" if data_root is None else "mnist"
