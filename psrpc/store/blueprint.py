"""What all nodes must agree on: the trained parameters, their groups, the optimizer.

Every node builds the model and the optimizer as one process would, and reads the
blueprint off them; nothing of a model or an optimizer is ever sent.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, optim

from psrpc.errors import ModelError, ModelMismatchError, OptimizerError
from psrpc.store.layout import ParameterSpec, ShardLayout, dtype_name, partition
from psrpc.store.spare import spare_dynamo

OptimizerFactory = Callable[[Any], optim.Optimizer]
GroupsFactory = Callable[[nn.Module], Iterable[dict[str, Any]]]

# Optimizers that treat every element by itself, so that tensors may be joined and cut.
ELEMENTWISE: frozenset[type[optim.Optimizer]] = frozenset(
    {
        optim.SGD,
        optim.Adam,
        optim.AdamW,
        optim.Adagrad,
        optim.Adadelta,
        optim.Adamax,
        optim.ASGD,
        optim.NAdam,
        optim.RAdam,
        optim.RMSprop,
        optim.Rprop,
    }
)


@dataclass(frozen=True)
class Blueprint:
    """The trained parameters in order, each group's options, and how to make the optimizer.

    `members` are the names of each group's parameters in the optimizer's own order,
    those that are frozen included; `defaults` are the optimizer's options for all groups.
    """

    specs: tuple[ParameterSpec, ...]
    groups: tuple[dict[str, Any], ...]
    members: tuple[tuple[str, ...], ...]
    defaults: dict[str, Any]
    factory: OptimizerFactory
    kind: type[optim.Optimizer]

    @property
    def elementwise(self) -> bool:
        """Whether the optimizer treats every element by itself."""
        return self.kind in ELEMENTWISE

    @property
    def signature(self) -> tuple[tuple[str, tuple[int, ...], str], ...]:
        """Name, shape and dtype of every trained parameter, as a worker shows it to the servers."""
        return tuple((spec.name, spec.shape, spec.dtype) for spec in self.specs)

    @property
    def options(self) -> tuple[tuple[str, str], ...]:
        """The optimizer and its plain options, as pairs of name and text, as `Job.settings`."""
        name = self.kind.__name__
        pairs = [("optimizer", name)]
        for index, group in enumerate(self.groups):
            where = f"{name}'s group {index}" if len(self.groups) > 1 else name
            pairs += [(f"{key} of {where}", repr(v)) for key, v in group.items() if _plain(v)]
        return tuple(pairs)

    def untrained(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters of `model` that no server keeps, in order."""
        trained = {spec.name for spec in self.specs}
        return [p for name, p in model.named_parameters() if name not in trained]

    def layouts(self, servers: int) -> tuple[ShardLayout, ...]:
        """What each of `servers` servers keeps."""
        return partition(self.specs, servers, divisible=self.elementwise)


def draw(
    model: nn.Module, factory: OptimizerFactory, param_groups: GroupsFactory | None = None
) -> Blueprint:
    """Read the blueprint off `model` and the optimizer that `factory` makes for it.

    `factory` is called with `model.parameters()`, or with `param_groups(model)` if
    given. Parameters that do not require a gradient, or that the optimizer was not
    given, are not trained. Raises ModelError for a model with nothing to train and
    OptimizerError for an optimizer that a server cannot run.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    if not any(True for _ in model.parameters()):
        raise ModelError(f"{type(model).__name__} has no parameters, so there is nothing to train")
    template = _template(model, factory, param_groups)
    specs, groups, members = _read(model, template)
    if not specs:
        raise ModelError(
            f"no parameter of {type(model).__name__} is trained: none both requires a "
            "gradient and was given to the optimizer"
        )
    defaults = copy.deepcopy(template.defaults)
    return Blueprint(specs, groups, members, defaults, factory, type(template))


def compare(
    theirs: Sequence[tuple[str, tuple[int, ...], str]],
    ours: Sequence[tuple[str, tuple[int, ...], str]],
    who: str,
) -> None:
    """Raise ModelMismatchError, naming the first parameter in which two models differ."""
    for their, our in zip(theirs, ours, strict=False):
        if tuple(their) != tuple(our):
            raise ModelMismatchError(
                f"{who} has another model than the server: its parameter {_say(their)} stands "
                f"where the server has {_say(our)}; give every process the same model"
            )
    if len(theirs) != len(ours):
        longer, owner = (theirs, who) if len(theirs) > len(ours) else (ours, "the server")
        extra = longer[min(len(theirs), len(ours))]
        raise ModelMismatchError(
            f"{who} has another model than the server: only {owner} has the parameter "
            f"{_say(extra)}; give every process the same model"
        )


def _plain(value: object) -> bool:
    """Whether equal values of this kind have equal texts in all processes."""
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _say(parameter: tuple[str, tuple[int, ...], str]) -> str:
    name, shape, dtype = parameter
    return f"{name!r} {list(shape)} {dtype}"


_WANTED = (
    "optimizer= must be a torch.optim class or a function that makes one from parameters "
    "(functools.partial(torch.optim.SGD, lr=0.1))"
)


def _template(
    model: nn.Module, factory: OptimizerFactory, param_groups: GroupsFactory | None
) -> optim.Optimizer:
    if not callable(factory):
        raise OptimizerError(f"{_WANTED}; this one is made already: {type(factory).__name__}")
    spare_dynamo()
    given = model.parameters() if param_groups is None else list(param_groups(model))
    try:
        template = factory(given)
    except Exception as error:
        raise OptimizerError(f"the optimizer cannot be made: {error}") from error
    if not isinstance(template, optim.Optimizer):
        raise OptimizerError(f"{_WANTED}; it made {template!r}")
    if isinstance(template, optim.SparseAdam):
        raise OptimizerError(
            "SparseAdam takes sparse gradients only, and servers get dense ones; choose Adam"
        )
    closure = inspect.signature(type(template).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise OptimizerError(
            f"{type(template).__name__} evaluates the model several times a step (it needs a "
            "closure), which a server cannot do; choose another optimizer"
        )
    return template


def _read(
    model: nn.Module, template: optim.Optimizer
) -> tuple[tuple[ParameterSpec, ...], tuple[dict[str, Any], ...], tuple[tuple[str, ...], ...]]:
    group_of = {
        id(parameter): index
        for index, group in enumerate(template.param_groups)
        for parameter in group["params"]
    }
    named = list(model.named_parameters())
    strangers = group_of.keys() - {id(parameter) for _, parameter in named}
    if strangers:
        raise OptimizerError(
            f"{len(strangers)} of the optimizer's parameters do not belong to the model"
        )
    specs = tuple(
        _spec(name, parameter, group_of[id(parameter)])
        for name, parameter in named
        if parameter.requires_grad and id(parameter) in group_of
    )
    groups = tuple(
        {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        for group in template.param_groups
    )
    name_of = {id(parameter): name for name, parameter in named}
    members = tuple(
        tuple(name_of[id(parameter)] for parameter in group["params"])
        for group in template.param_groups
    )
    return specs, groups, members


def _spec(name: str, parameter: nn.Parameter, group: int) -> ParameterSpec:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise ModelError(
            f"parameter {name!r} has no shape yet: run one batch through a lazy model first"
        )
    if parameter.layout is not torch.strided:
        raise ModelError(f"parameter {name!r} is sparse; only dense parameters can be trained")
    return ParameterSpec(name, tuple(parameter.shape), dtype_name(parameter.dtype), group)
