"""The user's torch.optim class, run on one shard.

An optimizer that treats every element by itself gets one parameter a segment,
so that a step is few kernels; where the class is a common one, its own kernels are
called directly (`kernels`). Others get each tensor in its own shape. Where a
tensor has no gradient in a step while its segment's others have, torch.optim
leaves its state alone; the segment is then split into its tensors for good,
with the state it has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from psrpc.errors import OptimizerError
from psrpc.messages import Override
from psrpc.store import kernels
from psrpc.store.blueprint import Blueprint
from psrpc.store.hands import spans, spread
from psrpc.store.layout import Piece, ShardLayout
from psrpc.store.mixture import Mixture
from psrpc.store.spare import plain_step
from psrpc.store.state import Option, join_state, own, same

# As many elements as stay in a core's cache with their gradients and state.
STRETCH = 1 << 16

# A kernel, and of each segment the weights, the optimizer's state, and its options.
_ByKernel = tuple[kernels.Kernel, list[tuple[torch.Tensor, kernels.State, kernels.Options]]]

# Called with a segment and the first and the past-the-end element.
Written = Callable[[int, int, int], None]


class ShardOptimizer:
    """Steps a shard's flat segments in place. Not thread-safe: one step at a time."""

    def __init__(
        self, blueprint: Blueprint, layout: ShardLayout, flats: Sequence[torch.Tensor]
    ) -> None:
        self.layout = layout
        self._flats = list(flats)
        self._groups = blueprint.groups
        self._overridden: set[tuple[int, str]] = set()
        self._indices = [
            [i for i, piece in enumerate(layout.pieces) if piece.segment == segment]
            for segment in range(len(layout.segments))
        ]
        self._joined = [blueprint.elementwise] * len(layout.segments)
        self._of_segment = [self._parameters(i) for i in range(len(layout.segments))]
        groups = [
            {**options, "params": [p for s in self._segments(g) for p in self._of_segment[s]]}
            for g, options in enumerate(blueprint.groups)
        ]
        self._optimizer = blueprint.factory(groups) if layout.segments else None
        self._kernel = kernels.kernel_of(self._optimizer) if self._optimizer else None
        self._by_kernel: _ByKernel | None = None  # as long as nothing but its numbers changes

    def step(
        self,
        gradients: Sequence[Mixture],
        absent: Collection[int] = (),
        overrides: Sequence[Override] = (),
        written: Written | None = None,
    ) -> None:
        """Take one optimizer step.

        `gradients` are one a segment, of the segment's dtype; pieces in `absent` (indices
        into the layout's) have no gradient and are not touched. `overrides` set options
        that differ from the job's start; those of the last step that are not repeated go back.
        `written` is told of each stretch of a segment when it has its new values, from several
        threads.
        """
        if self._optimizer is None:
            return
        self._by_kernel = None
        if overrides or self._overridden:
            self._set_options(overrides)
        given = [
            segment
            for segment, gradient in enumerate(gradients)
            if absent or not self._run_kernel(segment, gradient, written)
        ]
        self._step_given({segment: gradients[segment].whole() for segment in given}, absent)
        if written is not None:
            for segment in given:
                written(segment, 0, self.layout.segments[segment].numel)

    def step_alone(self, gradients: Sequence[torch.Tensor]) -> None:
        """As `step`, with gradients as they are, of all pieces, and the options of the start."""
        if self._by_kernel is None:
            self.step([Mixture((gradient,), (1.0,)) for gradient in gradients])
            self._by_kernel = self._all_by_kernel()
            return
        kernel, segments = self._by_kernel
        for (weights, state, options), gradient in zip(segments, gradients, strict=True):
            kernel(weights, gradient, state, options)

    @property
    def kernels_only(self) -> bool:
        """Whether `step_alone` calls kernels alone, as long as nothing else happens."""
        return self._by_kernel is not None

    def _all_by_kernel(self) -> _ByKernel | None:
        """How all segments can be stepped as they are now, if their kernel can do that."""
        if self._kernel is None:
            return None
        segments = [(flat, self._ready(i)) for i, flat in enumerate(self._flats)]
        ready = [(flat, *found) for flat, found in segments if found is not None]
        return (self._kernel, ready) if len(ready) == len(segments) else None

    def _step_given(self, flats: Mapping[int, torch.Tensor], absent: Collection[int]) -> None:
        """Let the class step these segments by their gradients."""
        if not flats:
            return
        assert self._optimizer is not None
        for segment, flat in flats.items():
            self._give(segment, flat, absent)
        self._step_class(self._optimizer)
        for parameters in self._of_segment:
            for parameter in parameters:
                parameter.grad = None

    def _step_class(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the class step the parameters that have a gradient."""
        if self._kernel is None:
            optimizer.step()
            return
        with torch.no_grad():
            plain_step(type(optimizer))(optimizer)

    def _run_kernel(self, segment: int, gradient: Mixture, written: Written | None) -> bool:
        """Step a whole segment by its optimizer's kernel; returns whether that could be done."""
        found, kernel = self._ready(segment), self._kernel
        if found is None or kernel is None:
            return False
        state, options = found
        weights, numel = self._flats[segment], self.layout.segments[segment].numel
        if numel <= STRETCH or (gradient.single and not state):
            kernel(weights, gradient.whole(), state, options)
            if written is not None:
                written(segment, 0, numel)
            return True
        parts = {key: v for key, v in state.items() if _is_elementwise(v, numel)}
        counts = {key: v for key, v in state.items() if key not in parts}

        def step(low: int, high: int) -> None:
            # Each stretch counts the step by itself; the first one's count is kept. Nothing else
            # is: it would lie between what stretches take for a moment, so that the next ones could
            # not use that again.
            part = {key: value[low:high] for key, value in parts.items()}
            part |= {key: own(value) for key, value in counts.items()}
            kernel(weights[low:high], gradient.stretch(low, high), part, options)
            if written is not None:
                written(segment, low, high)
            if low == 0:
                state.update((key, part[key]) for key in counts)

        spread(step, spans(numel, STRETCH))
        return True

    def _ready(self, segment: int) -> tuple[kernels.State, kernels.Options] | None:
        """What the kernel needs to step a whole segment, if that can be done."""
        if self._kernel is None or not self._joined[segment]:
            return None
        assert self._optimizer is not None
        state = self._state_of(self._of_segment[segment][0])
        options = self._optimizer.param_groups[self.layout.segments[segment].group]
        return (state, options) if kernels.ready(state, options) else None

    def tensors(self) -> list[torch.Tensor]:
        """The tensors of the optimizer's state, as they lie in memory."""
        states = self._optimizer.state.values() if self._optimizer is not None else ()
        return [v for state in states for v in state.values() if isinstance(v, torch.Tensor)]

    def state(self, take: Callable[[Any], Any] = lambda value: value) -> list[dict[str, Any]]:
        """For each piece, its optimizer state in the piece's shape (views and plain values).

        `take` is given each of `tensors` and each plain value, and returns what to show in
        its place.
        """
        states: list[dict[str, Any]] = [{} for _ in self.layout.pieces]
        for segment, indices in enumerate(self._indices):
            taken = [
                {key: take(value) for key, value in self._state_of(parameter).items()}
                for parameter in self._of_segment[segment]
            ]
            numel = self.layout.segments[segment].numel
            for place, index in enumerate(indices):
                if not self._joined[segment]:
                    states[index] = taken[place]
                    continue
                states[index] = {
                    key: self.layout.pieces[index].view(v) if _is_elementwise(v, numel) else v
                    for key, v in taken[0].items()
                }
        return states

    def load(self, states: Sequence[Mapping[str, Any]], options: Sequence[Option] = ()) -> None:
        """Go on from what `state` and `options` gave, here or elsewhere, before the first step.

        `states` are copied, one a piece; an empty one leaves what the class begins with.
        Pieces of a segment that have not come the same way keep their state apart for good.
        """
        self._by_kernel = None
        for segment, indices in enumerate(self._indices):
            pieces = [(self.layout.pieces[index], states[index]) for index in indices]
            if self._joined[segment]:
                numel = self.layout.segments[segment].numel
                joined = join_state(pieces, numel)
                if joined is not None:
                    if joined:
                        self._set_state(self._of_segment[segment][0], joined)
                    continue
                self._split(segment)
            for parameter, (_, state) in zip(self._of_segment[segment], pieces, strict=True):
                if state:
                    self._set_state(parameter, {key: own(value) for key, value in state.items()})
        self._load_options(options)

    def options(self) -> tuple[Option, ...]:
        """The options that differ from the job's start; values are the optimizer's own."""
        groups = self._optimizer.param_groups if self._optimizer is not None else []
        return tuple(
            Option(index, key, value, (index, key) in self._overridden)
            for index, group in enumerate(groups)
            for key, value in group.items()
            if key != "params" and not self._is_first(index, key, value)
        )

    def _is_first(self, group: int, key: str, value: object) -> bool:
        first = self._groups[group]
        return (group, key) not in self._overridden and key in first and same(value, first[key])

    def _load_options(self, options: Sequence[Option]) -> None:
        if self._optimizer is None:
            return
        for option in options:
            self._optimizer.param_groups[option.group][option.key] = own(option.value)
        self._overridden = {(o.group, o.key) for o in options if o.overridden}

    def _set_state(self, parameter: nn.Parameter, state: dict[str, Any]) -> None:
        assert self._optimizer is not None
        self._optimizer.state[parameter] = state

    def _parameters(self, segment: int) -> list[nn.Parameter]:
        flat = self._flats[segment]
        if self._joined[segment]:
            return [nn.Parameter(flat, requires_grad=True)]
        return [nn.Parameter(piece.view(flat)) for piece in self._places(segment)]

    def _places(self, segment: int) -> list[Piece]:
        return [self.layout.pieces[i] for i in self._indices[segment]]

    def _segments(self, group: int) -> list[int]:
        return [i for i, segment in enumerate(self.layout.segments) if segment.group == group]

    def _give(self, segment: int, flat: torch.Tensor, absent: Collection[int]) -> None:
        indices = self._indices[segment]
        missing = [i for i in indices if i in absent] if absent else []
        if len(missing) == len(indices):
            return
        if missing and self._joined[segment]:
            self._split(segment)
        if self._joined[segment]:
            self._of_segment[segment][0].grad = flat
            return
        for index, parameter in zip(indices, self._of_segment[segment], strict=True):
            if index not in absent:
                parameter.grad = self.layout.pieces[index].view(flat)

    def _split(self, segment: int) -> None:
        assert self._optimizer is not None
        (whole,) = self._of_segment[segment]
        self._joined[segment] = False
        parts = self._parameters(segment)
        state = self._optimizer.state.pop(whole, {})
        numel = whole.numel()
        for piece, part in zip(self._places(segment), parts, strict=True):
            if state:
                self._optimizer.state[part] = {
                    key: piece.view(value) if _is_elementwise(value, numel) else own(value)
                    for key, value in state.items()
                }
        group = self._optimizer.param_groups[self.layout.segments[segment].group]
        at = next(i for i, parameter in enumerate(group["params"]) if parameter is whole)
        group["params"][at : at + 1] = parts
        self._of_segment[segment] = parts

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        assert self._optimizer is not None
        state: dict[str, Any] = self._optimizer.state.get(parameter, {})
        return state

    def _set_options(self, overrides: Sequence[Override]) -> None:
        assert self._optimizer is not None
        wanted = {(group, key): value for group, key, value in overrides}
        groups = self._optimizer.param_groups
        for index, key in self._overridden - wanted.keys():
            groups[index][key] = self._groups[index][key]
        for (index, key), value in wanted.items():
            if index >= len(groups) or key not in self._groups[index]:
                raise OptimizerError(f"the optimizer has no option {key!r} in group {index}")
            groups[index][key] = value
        self._overridden = set(wanted)


def _is_elementwise(value: object, numel: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.numel() == numel
