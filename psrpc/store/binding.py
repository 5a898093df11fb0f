"""A worker's model, bound to the flat buffers in which gradients leave and weights land."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from psrpc.errors import GradientError, NonFiniteGradientError
from psrpc.store.blueprint import Blueprint
from psrpc.store.layout import Piece, ShardLayout, dtype_name
from psrpc.store.shard import rows


class Buffers:
    """One shard's flat gradients and weights, on the CPU where planes send and land them."""

    def __init__(self, gradients: list[torch.Tensor], weights: list[torch.Tensor]) -> None:
        self.gradients = gradients
        self.weights = weights


class Binding:
    """Ties a model's parameters to the shards' buffers.

    A parameter that one shard keeps whole lives in that shard's weight buffer (on
    the model's device), so that weights land in it with one copy a segment. Not
    thread-safe; used from the worker's training thread.
    """

    def __init__(
        self,
        model: nn.Module,
        blueprint: Blueprint,
        layouts: Sequence[ShardLayout],
        buffers: Sequence[Buffers],
    ) -> None:
        self._blueprint = blueprint
        self._layouts = layouts
        self._buffers = buffers
        named = dict(model.named_parameters())
        self._parameters = [named[spec.name] for spec in blueprint.specs]
        self._frozen = [
            (name, parameter) for name, parameter in named.items() if not parameter.requires_grad
        ]
        device = self._parameters[0].device
        self._staged = device.type != "cpu"
        self._weights = [_on(device, shard.weights) for shard in buffers]
        self._gradients = [_on(device, shard.gradients) for shard in buffers]
        self._weight_views = _views(layouts, self._weights)
        self._gradient_views = _views(layouts, self._gradients)
        self._adopt_memory()

    def gather(self) -> list[tuple[int, ...]]:
        """Copy `.grad` of all parameters into the gradient buffers.

        Returns for each shard the pieces that have no gradient (zeros stand in for
        them). Raises GradientError for one of the wrong shape, dtype or layout.
        """
        with torch.no_grad():
            self._check()
            absent = [self._gather(shard) for shard in range(len(self._layouts))]
            if self._staged:
                _copy_all(self._buffers_of("gradients"), self._gradients)
        return absent

    def scatter(self) -> None:
        """Let the model see the weights that have landed."""
        with torch.no_grad():
            if self._staged:
                _copy_all(self._weights, self._buffers_of("weights"))
            for layout, views in zip(self._layouts, self._weight_views, strict=True):
                for piece, view in zip(layout.pieces, views, strict=True):
                    parameter = self._parameters[piece.parameter]
                    if self._lives_in(parameter, piece, view):
                        continue
                    if self._whole(piece):
                        parameter.data = view
                    else:
                        rows(parameter.data, piece.first_row, view).copy_(view)

    def nonfinite(self) -> str | None:
        """The name of a parameter with NaN or Inf in its gathered gradient, if there is one."""
        for layout, flats in zip(self._layouts, self._gradients, strict=True):
            if all(bool(torch.isfinite(flat.sum())) for flat in flats):
                continue
            for piece in layout.pieces:
                if not bool(torch.isfinite(piece.view(flats[piece.segment])).all()):
                    return self._blueprint.specs[piece.parameter].name
        return None

    def _gather(self, shard: int) -> tuple[int, ...]:
        sources, targets, absent = [], [], []
        pieces = self._layouts[shard].pieces
        for index, (piece, view) in enumerate(
            zip(pieces, self._gradient_views[shard], strict=True)
        ):
            gradient = self._parameters[piece.parameter].grad
            if gradient is None:
                absent.append(index)
                view.zero_()
            else:
                targets.append(view)
                sources.append(rows(gradient, piece.first_row, view))
        if targets:
            torch._foreach_copy_(targets, sources)
        return tuple(absent)

    def _check(self) -> None:
        for spec, parameter in zip(self._blueprint.specs, self._parameters, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout is not torch.strided:
                raise GradientError(
                    f"the gradient of {spec.name!r} is sparse; build the layer with sparse=False"
                )
            if tuple(gradient.shape) != spec.shape or dtype_name(gradient.dtype) != spec.dtype:
                raise GradientError(
                    f"the gradient of {spec.name!r} is {list(gradient.shape)} "
                    f"{dtype_name(gradient.dtype)}, the servers keep it as {list(spec.shape)} "
                    f"{spec.dtype}; do not change a model's shape or dtype after the start"
                )
        for name, parameter in self._frozen:
            if parameter.grad is not None:
                raise GradientError(
                    f"parameter {name!r} was frozen when the job began and now has a gradient; "
                    "let it require one from the start (its learning rate may be 0)"
                )

    def _whole(self, piece: Piece) -> bool:
        return piece.shape == self._blueprint.specs[piece.parameter].shape

    def _lives_in(self, parameter: nn.Parameter, piece: Piece, view: torch.Tensor) -> bool:
        return self._whole(piece) and parameter.data_ptr() == view.data_ptr()

    def _adopt_memory(self) -> None:
        """Move the parameters into the buffers, with the values that they have."""
        with torch.no_grad():
            for layout, views in zip(self._layouts, self._weight_views, strict=True):
                for piece, view in zip(layout.pieces, views, strict=True):
                    view.copy_(rows(self._parameters[piece.parameter], piece.first_row, view))
        if self._staged:
            _copy_all(self._buffers_of("weights"), self._weights)
        self.scatter()

    def _buffers_of(self, kind: str) -> list[list[torch.Tensor]]:
        return [getattr(shard, kind) for shard in self._buffers]


def raise_nonfinite(name: str, clock: int) -> None:
    """Raise the error for a gradient that is not finite."""
    raise NonFiniteGradientError(
        f"the gradient of {name!r} has NaN or Inf in step {clock}; lower the learning rate, "
        "clip gradients, or let such steps be skipped (nonfinite='skip')"
    )


def _on(device: torch.device, flats: list[torch.Tensor]) -> list[torch.Tensor]:
    return flats if device.type == "cpu" else [torch.zeros_like(f, device=device) for f in flats]


def _views(
    layouts: Sequence[ShardLayout], flats: Sequence[list[torch.Tensor]]
) -> list[list[torch.Tensor]]:
    return [layout.views(shard) for layout, shard in zip(layouts, flats, strict=True)]


def _copy_all(targets: Sequence[list[torch.Tensor]], sources: Sequence[list[torch.Tensor]]) -> None:
    for target, source in zip(targets, sources, strict=True):
        for to, have in zip(target, source, strict=True):
            to.copy_(have)
