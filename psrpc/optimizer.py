"""The optimizer that a training loop sees: torch.optim's shape, the servers' work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from psrpc.errors import OptimizerError
from psrpc.messages import Override
from psrpc.store.blueprint import Blueprint

StateFetcher = Callable[[], dict[int, dict[str, Any]]]


class DistributedOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` whose `step` pushes gradients and pulls weights.

    Its parameter groups have the options of the optimizer on the servers. What a
    scheduler (or the user) changes in them goes along with the next push. Clip
    gradients before `step`, as with any optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        blueprint: Blueprint,
        push: Callable[[], None],
        clear: Callable[[], None],
        fetch_state: StateFetcher,
    ) -> None:
        self._push = push
        self._clear = clear
        self._fetch_state = fetch_state
        self._initial = blueprint.groups
        named = dict(model.named_parameters())
        groups = [
            # Copies, as schedulers change a learning rate that is a tensor in place.
            {**copy.deepcopy(options), "params": [named[name] for name in members]}
            for options, members in zip(blueprint.groups, blueprint.members, strict=True)
        ]
        # Some schedulers read off the defaults which options there are.
        super().__init__(groups, copy.deepcopy(blueprint.defaults))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Push the gradients, wait as the mode demands, and take the new weights.

        Blocks. Returns what `closure` (called once, with gradients enabled) returned.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        self._push()
        return value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let all gradients begin from zero: they stay in their place, whatever is asked for."""
        self._clear()

    @property
    def hooked(self) -> bool:
        """Whether somebody registered hooks that `step` calls."""
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        )

    @property
    def as_at_start(self) -> bool:
        """Whether all options are the very objects that they were, as long as no schedule is."""
        for group, initial in zip(self.param_groups, self._initial, strict=True):
            for key, value in initial.items():
                if group[key] is not value:
                    return False
        return True

    def note_push(self) -> None:
        """A push was made by `Worker.push` or `push_pull`: to schedulers, that is a step."""
        self._opt_called = True

    def overrides(self) -> tuple[Override, ...]:
        """The options that differ from the job's start: (group, option, value)."""
        changed: list[Override] = []
        for index, initial in enumerate(self._initial):
            group = self.param_groups[index]
            for key, value in initial.items():
                if group[key] is not value and _differ(group[key], value):
                    changed.append((index, key, _sent(group[key])))
        return tuple(changed)

    def state_dict(self) -> dict[str, Any]:
        """The state kept by the servers, in the form of the plain optimizer's `state_dict`.

        Blocks: it is fetched from the servers.
        """
        packed = super().state_dict()
        packed["state"] = self._fetch_state()
        return packed

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the options of the groups; state proper lives on the servers and cannot be set."""
        if state_dict["state"]:
            raise OptimizerError(
                "the optimizer's state lives on the servers and cannot be loaded through a "
                "worker; start from the weights alone (give psrpc.run a model that has them)"
            )
        super().load_state_dict(dict(state_dict))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Groups are fixed when the job starts: later ones raise OptimizerError."""
        if len(self.param_groups) >= len(self._initial):
            raise OptimizerError("parameter groups cannot be added after the job has started")
        super().add_param_group(param_group)


def _differ(ours: object, theirs: object) -> bool:
    """Whether torch.optim could compute something else with the one than with the other."""
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return ours.dtype != theirs.dtype or not torch.equal(ours.cpu(), theirs.cpu())
    return isinstance(ours, torch.Tensor) or isinstance(theirs, torch.Tensor) or ours != theirs


def _sent(value: object) -> object:
    """A tensor stays one, for its dtype counts; a scheduler changes the group's own in place."""
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
