"""What torch.optim's common classes compute in a step, without what surrounds it.

`torch.optim.SGD.step` takes 50 times as long as its one kernel on a small model, for it
looks for hooks, collects parameters and chooses among implementations anew each time. Here the
functions are called that the class itself would call; so the result is the same, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import optim
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from psrpc.store.spare import plain_step

Options = dict[str, Any]
State = dict[str, Any]
Kernel = Callable[[torch.Tensor, torch.Tensor, State, Options], None]

# Set to what is not usual, these make the class do something of its own.
_SPECIAL = ("foreach", "fused", "capturable", "differentiable")


def kernel_of(optimizer: optim.Optimizer) -> Kernel | None:
    """The kernel of an optimizer that behaves as its class does; None where there is none."""
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    if any(hooks) or any(group.get(name) for group in optimizer.param_groups for name in _SPECIAL):
        return None
    kernel = _KERNELS.get(type(optimizer))
    return kernel if kernel is not None and _agrees(kernel, type(optimizer)) else None


def ready(state: State, options: Options) -> bool:
    """Whether the state is there that a kernel works on; the class makes it in its first step."""
    if state:
        return all(value is not None for value in state.values())
    return "dampening" in options and not options["momentum"]


def _sgd(weights: torch.Tensor, gradient: torch.Tensor, state: State, options: Options) -> None:
    buffer = state.get("momentum_buffer")
    if buffer is None and not options["weight_decay"] and not options["maximize"]:
        weights.add_(gradient, alpha=-options["lr"])
        return
    sgd(
        [weights],
        [gradient],
        [buffer],
        foreach=False,
        fused=False,
        weight_decay=options["weight_decay"],
        momentum=options["momentum"],
        lr=options["lr"],
        dampening=options["dampening"],
        nesterov=options["nesterov"],
        maximize=options["maximize"],
    )


def _adam(weights: torch.Tensor, gradient: torch.Tensor, state: State, options: Options) -> None:
    beta1, beta2 = options["betas"]
    largest = state.get("max_exp_avg_sq")
    adam(
        [weights],
        [gradient],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        [] if largest is None else [largest],
        [state["step"]],
        foreach=False,
        fused=False,
        decoupled_weight_decay=options["decoupled_weight_decay"],
        amsgrad=options["amsgrad"],
        beta1=beta1,
        beta2=beta2,
        lr=options["lr"],
        weight_decay=options["weight_decay"],
        eps=options["eps"],
        maximize=options["maximize"],
    )


def _adagrad(weights: torch.Tensor, gradient: torch.Tensor, state: State, options: Options) -> None:
    adagrad(
        [weights],
        [gradient],
        [state["sum"]],
        [state["step"]],
        foreach=False,
        fused=False,
        lr=options["lr"],
        weight_decay=options["weight_decay"],
        lr_decay=options["lr_decay"],
        eps=options["eps"],
        maximize=options["maximize"],
    )


_KERNELS: dict[type[optim.Optimizer], Kernel] = {
    optim.SGD: _sgd,
    optim.Adam: _adam,
    optim.AdamW: _adam,
    optim.Adagrad: _adagrad,
}


def _agrees(kernel: Kernel, kind: type[optim.Optimizer]) -> bool:
    """Whether the kernel does with this torch what its class does: two small steps tell."""
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01}
    if kind is optim.SGD:
        options["momentum"] = 0.9
    gradient = torch.linspace(-1.0, 1.0, 5)
    theirs, ours = torch.ones(5, requires_grad=True), torch.ones(5, requires_grad=True)
    reference, tried = kind([theirs], **options), kind([ours], **options)
    theirs.grad, ours.grad = gradient.clone(), gradient.clone()
    step = plain_step(kind)
    try:
        with torch.no_grad():
            step(reference)
            step(tried)
            step(reference)
            kernel(ours, gradient, tried.state[ours], tried.param_groups[0])
    except Exception:
        return False
    return torch.equal(theirs, ours)
