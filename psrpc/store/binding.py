"""A worker's model, bound to the flat buffers in which gradients leave and weights land."""

from __future__ import annotations

import cmath
from collections.abc import Sequence

import torch
from torch import nn

from psrpc.errors import GradientError, NonFiniteGradientError
from psrpc.store.blueprint import Blueprint
from psrpc.store.flats import Buffers
from psrpc.store.gradients import Flats, Gradients
from psrpc.store.layout import Piece, ShardLayout


class Binding:
    """Ties a model's parameters and their gradients to the shards' buffers.

    A parameter that one shard keeps whole lives in that shard's weight buffer, and its
    `.grad` in the gradient buffer, so that nothing is copied when gradients leave or
    weights land. A model on a GPU has such buffers there, and one copy a segment goes
    between them and the CPU's. Not thread-safe; used from the worker's training thread.
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
        self._resident, self._cut = _places(layouts, self._weights, self._parameters)
        self._adopt_memory()
        flats = [_on(device, shard.gradients) for shard in buffers]
        self._gradients = Gradients(blueprint, layouts, self._parameters, flats)

    def gather(self) -> list[tuple[int, ...]]:
        """Make the buffers hold this step's gradients; see `Gradients.gather`."""
        self._refuse_frozen()
        absent = self._gradients.gather()
        if self._staged:
            _copy_all([shard.gradients for shard in self._buffers], self._gradients.flats)
        return absent

    def empty(self) -> bool:
        """Whether no parameter has a gradient."""
        absent = self._gradients.gather()
        pieces = zip(absent, self._layouts, strict=True)
        return all(len(missing) == len(layout.pieces) for missing, layout in pieces)

    def clear(self) -> None:
        """Begin a step: its gradients are added to zeros."""
        self._gradients.clear()

    def turn(self) -> None:
        """Leave the gradients to those who send them; begin a step in the other buffers."""
        for shard in self._buffers:
            shard.turn()
        if self._staged:
            self._gradients.clear()
        else:
            self._gradients.turn([shard.gradients for shard in self._buffers])

    def scatter(self) -> None:
        """Let the model see the weights that have landed."""
        if self._staged:
            _copy_all(self._weights, [shard.weights for shard in self._buffers])
        for parameter, view, address in self._resident:
            if parameter.data_ptr() != address:
                parameter.data = view
        for parameter, piece, view in self._cut:
            piece.rows(parameter.data).copy_(view)

    def nonfinite(self) -> str | None:
        """The name of a parameter with NaN or Inf in its gathered gradient, if there is one."""
        for layout, flats in zip(self._layouts, self._gradients.flats, strict=True):
            # A sum may overflow where all of its parts are finite; a closer look tells.
            if all(map(_sums_up, flats)):
                continue
            for piece in layout.pieces:
                if not bool(torch.isfinite(piece.view(flats[piece.segment])).all()):
                    return self._blueprint.specs[piece.parameter].name
        return None

    def release(self) -> None:
        """Give the model memory of its own, with the weights that it has, and let go of it."""
        self._gradients.release()
        for parameter, _, _ in self._resident:
            parameter.data = parameter.data.clone()

    def _refuse_frozen(self) -> None:
        for name, parameter in self._frozen:
            if parameter.grad is not None:
                raise GradientError(
                    f"parameter {name!r} was frozen when the job began and now has a gradient; "
                    "let it require one from the start (its learning rate may be 0)"
                )

    def _adopt_memory(self) -> None:
        """Move the parameters into the buffers, with the values that they have."""
        with torch.no_grad():
            for parameter, view, _ in self._resident:
                view.copy_(parameter)
            for parameter, piece, view in self._cut:
                view.copy_(piece.rows(parameter))
            if self._staged:
                _copy_all([shard.weights for shard in self._buffers], self._weights)
        self.scatter()


def _sums_up(flat: torch.Tensor) -> bool:
    return cmath.isfinite(flat.sum().item())


def raise_nonfinite(name: str, clock: int) -> None:
    """Raise the error for a gradient that is not finite."""
    raise NonFiniteGradientError(
        f"the gradient of {name!r} has NaN or Inf in step {clock}; lower the learning rate, "
        "clip gradients, or let such steps be skipped (nonfinite='skip')"
    )


_Resident = tuple[nn.Parameter, torch.Tensor, int]  # its place, and that place's address
_Cut = tuple[nn.Parameter, Piece, torch.Tensor]


def _places(
    layouts: Sequence[ShardLayout], weights: Flats, parameters: Sequence[nn.Parameter]
) -> tuple[list[_Resident], list[_Cut]]:
    """The parameters that live in the weight buffers, and the pieces of those that are cut."""
    resident: list[_Resident] = []
    cut: list[_Cut] = []
    for layout, flats in zip(layouts, weights, strict=True):
        for piece, view in zip(layout.pieces, layout.views(flats), strict=True):
            parameter = parameters[piece.parameter]
            if piece.shape == tuple(parameter.shape):
                resident.append((parameter, view, view.data_ptr()))
            else:
                cut.append((parameter, piece, view))
    return resident, cut


def _on(device: torch.device, flats: list[torch.Tensor]) -> list[torch.Tensor]:
    return flats if device.type == "cpu" else [torch.zeros_like(f, device=device) for f in flats]


def _copy_all(targets: Flats, sources: Flats) -> None:
    for target, source in zip(targets, sources, strict=True):
        for to, have in zip(target, source, strict=True):
            to.copy_(have)
