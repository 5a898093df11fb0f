"""Where a worker's gradients live: `.grad` is a view of the memory that they leave from.

Autograd adds to a `.grad` that is there already. So each parameter is given one, filled
with zeros, in its shard's flat buffer, and nothing need be copied when a step is pushed.
Whether a parameter had a gradient at all, which torch.optim tells by `.grad` being None,
is told by a hook that autograd calls when it has added one.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence

import torch
from torch import nn

from psrpc.errors import GradientError
from psrpc.store.blueprint import Blueprint
from psrpc.store.bulk import clear
from psrpc.store.layout import Piece, ShardLayout, dtype_name

Flats = Sequence[list[torch.Tensor]]  # by shard, then by segment

_FIRST = 1 << 10
_GRADIENT = operator.attrgetter("grad")
_ADDRESS = torch.Tensor.data_ptr


class GradientSet:
    """Flat gradient buffers of all shards, and each parameter's home in them.

    A parameter that is cut over several shards has a home of its own, and its rows are
    copied from there.
    """

    def __init__(
        self, layouts: Sequence[ShardLayout], flats: Flats, parameters: Sequence[nn.Parameter]
    ) -> None:
        self.flats = flats
        self.cut: dict[int, list[tuple[Piece, torch.Tensor]]] = {}
        views: dict[int, torch.Tensor] = {}
        for layout, shard in zip(layouts, flats, strict=True):
            for piece, view in zip(layout.pieces, layout.views(shard), strict=True):
                if piece.shape == tuple(parameters[piece.parameter].shape):
                    views[piece.parameter] = view
                else:
                    self.cut.setdefault(piece.parameter, []).append((piece, view))
        for index in self.cut:
            views[index] = torch.zeros_like(
                parameters[index], memory_format=torch.contiguous_format
            )
        self._views = [views[index] for index in range(len(parameters))]
        # `data`: no view to autograd, which adds to it each step.
        self.homes = [view.data for view in self._views]
        self.addresses = [home.data_ptr() for home in self.homes]
        # Parameters with their homes, as autograd added to them when all were there.
        self.order: list[tuple[nn.Parameter, torch.Tensor, int]] = []

    def settle(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let every parameter's `.grad` be its home."""
        for index, parameter in enumerate(parameters):
            home = self.homes[index]
            if home.data_ptr() != self.addresses[index]:
                home = self.rebuild(index)
            if parameter.grad is not home:
                parameter.grad = home

    def at_home(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether every parameter's `.grad` is its home, and that where it is sent from."""
        gradients = map(_GRADIENT, parameters)
        return all(map(operator.is_, gradients, self.homes)) and self.addresses == list(
            map(_ADDRESS, self.homes)
        )

    def rebuild(self, index: int) -> torch.Tensor:
        """Make a home again whose tensor was given other memory (as `Module.to` does)."""
        self.homes[index] = self._views[index].data
        return self.homes[index]


class Gradients:
    """A model's gradients, gathered step by step. Used from the worker's training thread."""

    def __init__(
        self,
        blueprint: Blueprint,
        layouts: Sequence[ShardLayout],
        parameters: Sequence[nn.Parameter],
        flats: Flats,
    ) -> None:
        self._blueprint = blueprint
        self._layouts = layouts
        self._parameters = parameters
        self._present: set[int] = set()
        self._added: list[nn.Parameter] = []
        self._hooks = [p.register_post_accumulate_grad_hook(self._added.append) for p in parameters]
        self._sets = [GradientSet(layouts, flats, parameters)]
        self._current = self._sets[0]
        self._home = False  # whether all were there when they were last looked at
        self.clear()

    @property
    def flats(self) -> Flats:
        """The flat gradients in use."""
        return self._current.flats

    def gather(self) -> list[tuple[int, ...]]:
        """Make the flat buffers hold this step's gradients.

        Returns for each shard the pieces that have no gradient (zeros stand in for
        them). Sparse gradients become dense. Raises GradientError for one of the wrong
        shape or dtype.
        """
        absent = set() if self._all_home() else self._bring_home()
        for index, pieces in self._current.cut.items():
            for piece, view in pieces:
                view.copy_(piece.rows(self._current.homes[index]))
        return pieces_of(self._layouts, absent)

    def ready(self) -> bool:
        """Whether nothing need be gathered: the flat buffers hold every parameter's gradient.

        A backward pass mostly adds to them in the order of the one before.
        """
        current, added = self._current, self._added
        if not added or len(added) != len(current.order) or self._present:
            return self._look_closely()
        for given, (parameter, home, address) in zip(added, current.order, strict=True):
            if given is not parameter or parameter.grad is not home or home.data_ptr() != address:
                return self._look_closely()
        self._home = True
        return True

    def _look_closely(self) -> bool:
        added, current = list(self._added), self._current
        if current.cut or not self._all_home():
            return False
        if len(added) == len(current.homes):
            places = {id(parameter): i for i, parameter in enumerate(self._parameters)}
            indices = [places[id(parameter)] for parameter in added]
            current.order = [
                (self._parameters[i], current.homes[i], current.addresses[i]) for i in indices
            ]
        return True

    def clear(self, *, pushed: bool = False) -> None:
        """Begin a step: its gradients are added to zeros.

        They are `pushed` if nobody can have touched a `.grad` since they were gathered.
        """
        self._present.clear()
        self._added.clear()
        current = self._current
        for shard in current.flats:
            for flat in shard:
                clear(flat)
        for index in current.cut:
            current.homes[index].zero_()
        if not (pushed and self._home):
            current.settle(self._parameters)
        self._home = False

    def turn(self, flats: Flats) -> None:
        """Leave the set in use to those who send it, and begin a step in that of `flats`."""
        known = next((each for each in self._sets if each.flats[0] is flats[0]), None)
        if known is None:
            known = GradientSet(self._layouts, flats, self._parameters)
            self._sets.append(known)
        self._current = known
        self.clear()

    def move(self, layouts: Sequence[ShardLayout], flats: Flats) -> None:
        """Live in the flat buffers of another layout, with what is in those of the present one."""
        self._layouts, before = layouts, self._current
        self._current = GradientSet(layouts, flats, self._parameters)
        self._sets, self._home = [self._current], False
        for index, parameter in enumerate(self._parameters):
            home = self._current.homes[index]
            home.copy_(before.homes[index])
            if parameter.grad is before.homes[index]:
                parameter.grad = home

    def release(self) -> None:
        """Let go of the model."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._parameters:
            parameter.grad = None

    def _all_home(self) -> bool:
        """Whether autograd has added to every gradient, and each is where it is sent from."""
        self._present.update(map(id, self._added))
        self._added.clear()
        current = self._current
        self._home = len(self._present) >= len(current.homes) and current.at_home(self._parameters)
        return self._home

    def _bring_home(self) -> set[int]:
        """Bring every gradient to where it is sent from; returns those that there are not."""
        return {i for i, p in enumerate(self._parameters) if not self._come_home(i, p)}

    def _come_home(self, index: int, parameter: nn.Parameter) -> bool:
        """Bring one gradient to where it is sent from; returns whether there is one."""
        current, gradient = self._current, parameter.grad
        home = current.homes[index]
        if gradient is None:
            home.zero_()
            return False
        # What autograd did not add to is zeros, whatever clipping did to it, unless a loop
        # wrote a gradient of its own there.
        present = gradient is not home or id(parameter) in self._present or _any(gradient)
        if gradient is not home or gradient.data_ptr() != current.addresses[index]:
            self._check(index, gradient)
            gradient = gradient.detach()
            if home.data_ptr() != current.addresses[index]:
                home = current.rebuild(index)
            home.copy_(gradient.to_dense() if gradient.is_sparse else gradient)
        return present

    def _check(self, index: int, gradient: torch.Tensor) -> None:
        spec = self._blueprint.specs[index]
        if tuple(gradient.shape) != spec.shape or dtype_name(gradient.dtype) != spec.dtype:
            raise GradientError(
                f"the gradient of {spec.name!r} is {list(gradient.shape)} "
                f"{dtype_name(gradient.dtype)}, the servers keep it as {list(spec.shape)} "
                f"{spec.dtype}; do not change a model's shape or dtype after the start"
            )


def _any(gradient: torch.Tensor) -> bool:
    """Whether there is anything but zeros; the first elements tell of most, at no cost."""
    flat = gradient.reshape(-1)
    return bool(flat[:_FIRST].any()) or bool(flat.any())


def pieces_of(layouts: Sequence[ShardLayout], parameters: Collection[int]) -> list[tuple[int, ...]]:
    """The pieces of some parameters on each shard."""
    if not parameters:
        return [()] * len(layouts)
    return [
        tuple(i for i, piece in enumerate(layout.pieces) if piece.parameter in parameters)
        for layout in layouts
    ]
