"""A worker's model, bound to the flat buffers in which gradients leave and weights land."""

from __future__ import annotations

import cmath
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from psrpc.errors import GradientError, NonFiniteGradientError
from psrpc.store.blueprint import Blueprint
from psrpc.store.dealing import deal
from psrpc.store.flats import Buffers
from psrpc.store.gradients import Flats, Gradients, pieces_of
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
        named = dict(model.named_parameters())
        self._parameters = [named[spec.name] for spec in blueprint.specs]
        self._frozen = [
            (name, parameter) for name, parameter in named.items() if not parameter.requires_grad
        ]
        self._device = self._parameters[0].device
        self._staged = _is_apart(self._device)
        self._settle(layouts, buffers)
        flats = [self._own(shard.gradients) for shard in buffers]
        self.gradients = Gradients(blueprint, layouts, self._parameters, flats)

    def _settle(self, layouts: Sequence[ShardLayout], buffers: Sequence[Buffers]) -> None:
        """Let the weights live in these buffers, with the values that they have."""
        self._layouts, self._buffers = layouts, buffers
        if self._device.type == "cuda":
            for shard in buffers:
                shard.lock_pages()
        self._weights = [self._own(shard.weights) for shard in buffers]
        self._resident, self._cut = _places(layouts, self._weights, self._parameters)
        self._adopt_memory()

    def move(
        self,
        layouts: Sequence[ShardLayout],
        buffers: Sequence[Buffers],
        sent: Sequence[list[torch.Tensor]] | None,
    ) -> None:
        """Live in the buffers of another layout from now on, with all that is held.

        `sent` are flat gradients of the present layout that are under way, if there are some: those
        in use, or those that were left by `turn`. They are in the first set of the new buffers
        then, and those in use in the same set or in the second one.
        """
        before, turned = self._layouts, sent is not None and not self._in_use(sent)
        self._settle(layouts, buffers)
        if sent is not None:
            deal(before, sent, layouts, [shard.gradients for shard in buffers])
        if turned:
            for shard in buffers:
                shard.turn()
        flats = [self._own(shard.gradients) for shard in buffers]
        self.gradients.move(layouts, flats)

    def _in_use(self, sent: Sequence[list[torch.Tensor]]) -> bool:
        """Whether these are the gradients that a step in the making is added to."""
        return all(
            flat is used
            for flats, shard in zip(sent, self._buffers, strict=True)
            for flat, used in zip(flats, shard.gradients, strict=True)
        )

    def in_use(self) -> list[list[torch.Tensor]]:
        """The flat gradients that leave next, by shard."""
        return [shard.gradients for shard in self._buffers]

    @contextmanager
    def sending(self, side: int) -> Iterator[None]:
        """Let what is sent in this block be the first (0) or the second (1) set of gradients."""
        sides = [shard.side for shard in self._buffers]
        for shard in self._buffers:
            shard.side = side
        try:
            yield
        finally:
            for shard, before in zip(self._buffers, sides, strict=True):
                shard.side = before

    def parameters_of(self, pieces: Sequence[tuple[int, ...]]) -> frozenset[int]:
        """The parameters of some pieces of each shard."""
        return frozenset(
            layout.pieces[index].parameter
            for layout, indices in zip(self._layouts, pieces, strict=True)
            for index in indices
        )

    def pieces_of(self, parameters: Collection[int]) -> list[tuple[int, ...]]:
        """The pieces of some parameters on each shard."""
        return pieces_of(self._layouts, parameters)

    def gather(self) -> list[tuple[int, ...]]:
        """Make the buffers hold this step's gradients; see `Gradients.gather`."""
        self._refuse_frozen()
        absent = self.gradients.gather()
        if self._staged:
            self._copy_all([shard.gradients for shard in self._buffers], self.gradients.flats)
        return absent

    def ready(self) -> bool:
        """Whether the buffers hold this step's gradients, of all parameters, and all are finite.

        Nothing has changed where this is False, as for a model on a GPU.
        """
        gradients = self.gradients
        if self._staged or self._frozen or not gradients.ready():
            return False
        for shard in gradients.flats:
            for flat in shard:
                if not cmath.isfinite(flat.sum().item()):
                    return False
        return True

    def empty(self) -> bool:
        """Whether no parameter has a gradient."""
        absent = self.gradients.gather()
        pieces = zip(absent, self._layouts, strict=True)
        return all(len(missing) == len(layout.pieces) for missing, layout in pieces)

    def clear(self) -> None:
        """Begin a step: its gradients are added to zeros."""
        self.gradients.clear()

    def turn(self) -> None:
        """Leave the gradients to those who send them; begin a step in the other buffers."""
        for shard in self._buffers:
            shard.turn()
        if self._staged:
            self.gradients.clear()
        else:
            self.gradients.turn([shard.gradients for shard in self._buffers])

    def scatter(self) -> None:
        """Let the model see the weights that have landed."""
        if self._staged:
            self._copy_all(self._weights, [shard.weights for shard in self._buffers])
        for parameter, view, address in self._resident:
            if parameter.data_ptr() != address:
                parameter.data = view
        for parameter, piece, view in self._cut:
            piece.rows(parameter.data).copy_(view)

    def nonfinite(self) -> str | None:
        """The name of a parameter with NaN or Inf in its gathered gradient, if there is one."""
        for layout, flats in zip(self._layouts, self.gradients.flats, strict=True):
            # A sum may overflow where all of its parts are finite; a closer look tells.
            if all(map(_sums_up, flats)):
                continue
            for piece in layout.pieces:
                if not bool(torch.isfinite(piece.view(flats[piece.segment])).all()):
                    return self._blueprint.specs[piece.parameter].name
        return None

    def release(self) -> None:
        """Give the model memory of its own, with the weights that it has, and let go of it."""
        self.gradients.release()
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
                self._copy_all([shard.weights for shard in self._buffers], self._weights)
        self.scatter()

    def _own(self, flats: list[torch.Tensor]) -> list[torch.Tensor]:
        """Where the model has what these tensors are to others: the same memory, or its GPU's."""
        if not self._staged:
            return flats
        return [torch.zeros_like(flat, device=self._device) for flat in flats]

    def _copy_all(self, targets: Flats, sources: Flats) -> None:
        """Copy between GPU and CPU, all segments at once, and wait: others are to use them."""
        for target, source in zip(targets, sources, strict=True):
            for to, have in zip(target, source, strict=True):
                to.copy_(have, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


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


def _is_apart(device: torch.device) -> bool:
    """Whether a model there needs memory of its own beside the buffers, which are the CPU's."""
    return device.type != "cpu"
