"""One shard's parameters: flat segments, stepped in place, read as snapshots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from psrpc.errors import GradientError
from psrpc.messages import Override, StateReply
from psrpc.modes import Reduction
from psrpc.store.blueprint import Blueprint
from psrpc.store.copies import Copies
from psrpc.store.image import Frame, PieceImage, ShardImage, room_for
from psrpc.store.layout import ShardLayout
from psrpc.store.mixture import Mixture, is_narrow, mix
from psrpc.store.optim import ShardOptimizer, Written
from psrpc.store.state import Option, described, own


class Joint(list[torch.Tensor]):
    """Gradients of some of a step's workers, added up as their share: all of them send this."""


class Contribution(NamedTuple):
    """One worker's gradients: flat tensors, one a segment, and the samples they are a mean of."""

    gradients: Sequence[torch.Tensor]
    samples: int
    absent: tuple[int, ...] = ()
    overrides: tuple[Override, ...] = ()


class ShardStore:
    """Parameters and optimizer of one shard. Callers take turns (a server holds its lock)."""

    def __init__(
        self, blueprint: Blueprint, layout: ShardLayout, model: nn.Module, reduction: Reduction
    ) -> None:
        self.layout = layout
        self._blueprint = blueprint
        self.reduction = reduction
        self.flats = layout.empty()
        fill(self.flats, layout, blueprint, model)
        self._optimizer = ShardOptimizer(blueprint, layout, self.flats)
        self._copies = [Copies() for _ in self.flats]
        self._snapshot: list[torch.Tensor] | None = None
        self._frame: Frame | None = None
        self._sums: list[torch.Tensor] | None = None

    def check(self, gradients: Sequence[torch.Tensor], who: str) -> None:
        """Raise GradientError unless `gradients` fit the segments in number, size and dtype."""
        if len(gradients) != len(self.flats):
            raise GradientError(
                f"{who} sent {len(gradients)} gradient tensors, this shard has {len(self.flats)}"
            )
        for index, (gradient, flat) in enumerate(zip(gradients, self.flats, strict=True)):
            if gradient.shape != flat.shape or gradient.dtype != flat.dtype:
                raise GradientError(
                    f"{who} sent a gradient {list(gradient.shape)} {gradient.dtype} for segment "
                    f"{index}, which is {list(flat.shape)} {flat.dtype}"
                )

    def step(self, contributions: Sequence[Contribution], written: Written | None = None) -> None:
        """One optimizer step from the contributions' gradients, reduced in the order given.

        Options follow the first contribution. `written` is as in `ShardOptimizer.step`.
        """
        absent = set(contributions[0].absent).intersection(*(c.absent for c in contributions))
        self._snapshot = None
        gradients = reduce(contributions, self.reduction)
        self._optimizer.step(gradients, absent, contributions[0].overrides, written)

    def step_alone(self, gradients: Sequence[torch.Tensor]) -> None:
        """One optimizer step from one worker's gradients, with the options of the job's start."""
        self._snapshot = None
        self._optimizer.step_alone(gradients)

    def step_together(
        self, gradients: Sequence[Sequence[torch.Tensor]], samples: Sequence[int]
    ) -> None:
        """As `step`, with several workers' gradients, of all pieces, and the options of the start.

        Their sums are made in memory that is kept, as large as the shard, or in fresh one for a
        class of its own, which may keep them.
        """
        if len(gradients) == 1:
            self.step_alone(gradients[0])
            return
        weights = shares(samples, self.reduction)
        sums = self._sums
        if sums is None or not self._optimizer.kernels_only:
            sums = self._sums = [torch.empty_like(flat) for flat in self.flats]
        for room, *parts in zip(sums, *gradients, strict=True):
            if is_narrow(room):
                room.copy_(Mixture(parts, weights).whole())
            else:
                mix(parts, weights, room)
        self.step_alone(sums)

    def snapshot(self) -> list[torch.Tensor]:
        """The weights as they are now, one flat copy a segment, shared until the next step."""
        if self._snapshot is None:
            pairs = zip(self._copies, self.flats, strict=True)
            self._snapshot = [copies.of(flat) for copies, flat in pairs]
        return self._snapshot

    def optimizer_state(self) -> list[dict[str, object]]:
        """Each piece's optimizer state, see `ShardOptimizer.state`."""
        return self._optimizer.state()

    def described_state(self) -> tuple[StateReply, list[torch.Tensor]]:
        """The optimizer's state by piece, as it is told; its tensors are copies."""
        return described(self.layout, self._optimizer.state(), self._blueprint)

    def image(self) -> ShardImage:
        """A copy of the weights, the optimizer's state and its changed options.

        Blocks for as long as memory takes to copy. The copy's memory is that of the last
        image, if it was released, or what was reserved; otherwise it is fresh, and slow.
        Whoever has written the image away releases it.
        """
        frame = self._frame_for(self.image_bytes())
        frame.begin()
        views = self.layout.views([frame.keep(flat) for flat in self.flats])
        states = self._optimizer.state(frame.keep)
        options = tuple(replace(o, value=own(o.value)) for o in self._optimizer.options())
        pieces = map(PieceImage, views, states)
        return ShardImage(tuple(pieces), options, frame)

    def image_bytes(self) -> int:
        """How much memory an image takes now: more once the optimizer has made its state."""
        return room_for([*self.flats, *self._optimizer.tensors()])

    def reserve(self, size_bytes: int) -> None:
        """Have so much memory ready for the next image.

        The only method for which nobody takes turns: it blocks while the kernel finds memory,
        and may be called by the thread that writes images away, between two of them.
        """
        frame = self._frame
        if frame is None or not frame.free or frame.size_bytes < size_bytes:
            frame = Frame(size_bytes)
            frame.touch()
            self._frame = frame

    def options(self) -> tuple[Option, ...]:
        """The optimizer's options that differ from the job's start."""
        return tuple(self._optimizer.options())

    def load(self, states: Sequence[Mapping[str, Any]], options: Sequence[Option]) -> None:
        """Let the optimizer go on, before the first step, from each piece's state."""
        self._snapshot = None
        self._optimizer.load(states, options)

    def restore(self, image: ShardImage) -> None:
        """Go on, before the first step, from an image of the same pieces."""
        for view, piece in zip(self.layout.views(self.flats), image.pieces, strict=True):
            view.copy_(piece.weights)
        self.load([piece.state for piece in image.pieces], image.options)

    def _frame_for(self, size_bytes: int) -> Frame:
        frame = self._frame
        if frame is None or not frame.free or frame.size_bytes < size_bytes:
            self._frame = None  # the old one's memory goes before the new one's comes
            frame = self._frame = Frame(size_bytes)
        return frame


def reduce(contributions: Sequence[Contribution], reduction: Reduction) -> list[Mixture]:
    """The sum, or the mean weighted by samples, of the contributions' gradients, by segment."""
    joint = next((g for c in contributions if isinstance(g := c.gradients, Joint)), None)
    weights = shares([c.samples for c in contributions], reduction)
    parts = [(c.gradients, w) for c, w in zip(contributions, weights, strict=True)]
    if joint is not None:
        apart = [part for part in parts if part[0] is not joint]
        theirs = sum(weight for gradients, weight in parts if gradients is joint)
        parts = [(joint, theirs if reduction is Reduction.MEAN else 1.0), *apart]
    if len(parts) == 1:
        return [Mixture((gradient,), (1.0,)) for gradient in parts[0][0]]
    columns = zip(*(gradients for gradients, _ in parts), strict=True)
    return [Mixture(column, [weight for _, weight in parts]) for column in columns]


def shares(samples: Sequence[int], reduction: Reduction) -> list[float]:
    """By what each of several gradients is multiplied, which are means of so many samples."""
    if reduction is Reduction.SUM:
        return [1.0] * len(samples)
    total = sum(samples)
    return [each / total if total else 1 / len(samples) for each in samples]


def fill(
    flats: Sequence[torch.Tensor], layout: ShardLayout, blueprint: Blueprint, model: nn.Module
) -> None:
    """Copy the model's parameters into a shard's flat segments."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for piece, view in zip(layout.pieces, layout.views(flats), strict=True):
            parameter = parameters[blueprint.specs[piece.parameter].name]
            view.copy_(piece.rows(parameter))
