"""The worker's optimizer is a torch.optim.Optimizer: schedulers, clipping, closures, state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from psrpc.errors import OptimizerError
from psrpc.job import Job
from psrpc.worker import Worker
from tests.unit.reference import (
    batch_of,
    mlp,
    relative_error,
    run_local,
    same_state,
    seeded,
    train_alone,
    train_steps,
)

STEPS = 10
Adam = partial(torch.optim.Adam, lr=0.01)
Momentum = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]] = {
    "step": partial(lr_scheduler.StepLR, step_size=3),
    "lambda": partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1 / (1 + epoch)),
    "one_cycle": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=STEPS + 1),
    "cosine": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=4),
}


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Not in the order of the model, and the first group with a frozen parameter."""
    model[0].bias.requires_grad_(False)
    return [
        {"params": [model[2].bias, model[0].bias], "lr": 0.02},
        {"params": [model[2].weight, model[0].weight], "weight_decay": 0.1},
    ]


def alone(
    optimizer: Callable[[Any], torch.optim.Optimizer],
    groups: Callable[[nn.Module], Iterable[dict[str, Any]]] | None = None,
    schedule: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler] | None = None,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = seeded(mlp)
    plain = optimizer(groups(model) if groups else model.parameters())
    train_alone(model, plain, [[batch_of(step, 0)] for step in range(STEPS)], schedule)
    return model, plain


@pytest.mark.parametrize("optimizer", [Adam, Momentum], ids=["adam", "sgd"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedulers_drive_the_servers(
    name: str, optimizer: Callable[[Any], torch.optim.Optimizer]
) -> None:
    """OneCycleLR turns momentum (betas) as well. No scheduler warns of the calls' order."""

    def train(worker: Worker) -> None:
        scheduler = SCHEDULES[name](worker.optimizer)
        for step in range(STEPS):
            inputs, targets = batch_of(step, 0)
            F.mse_loss(worker.model(inputs), targets).backward()
            worker.step()
            scheduler.step()

    _, (model,) = run_local(Job(1, 2), mlp, optimizer, train)
    assert same_state(model, alone(optimizer, schedule=SCHEDULES[name])[0])


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "Adagrad", "Adamax", "RMSprop"])
@pytest.mark.parametrize("name", ["step", "lambda", "cosine"])
def test_a_learning_rate_that_is_a_tensor_stays_one(kind: str, name: str) -> None:
    """Its arithmetic is float32, which a number's is not."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        lr = torch.tensor(0.1 if kind == "SGD" else 0.01)
        return getattr(torch.optim, kind)(parameters, lr=lr)

    def train(worker: Worker) -> None:
        scheduler = SCHEDULES[name](worker.optimizer)
        for step in range(STEPS):
            inputs, targets = batch_of(step, 0)
            F.mse_loss(worker.model(inputs), targets).backward()
            worker.step()
            scheduler.step()

    _, (model,) = run_local(Job(1, 2), mlp, optimizer, train)
    assert same_state(model, alone(optimizer, schedule=SCHEDULES[name])[0])


def test_an_option_may_become_a_tensor() -> None:
    def train_with(model: Any, optimizer: torch.optim.Optimizer, step: Callable[[], None]) -> None:
        for number in range(4):
            lr = 0.01 if number < 2 else torch.tensor(0.01)
            optimizer.param_groups[0]["lr"] = lr
            inputs, targets = batch_of(number, 0)
            optimizer.zero_grad()
            F.mse_loss(model(inputs), targets).backward()
            step()

    plain = seeded(mlp)
    reference = Adam(plain.parameters())
    train_with(plain, reference, reference.step)
    _, (model,) = run_local(
        Job(1, 2), mlp, Adam, lambda worker: train_with(worker.model, worker.optimizer, worker.step)
    )
    assert same_state(model, plain)


def test_schedulers_work_with_push_pull() -> None:
    def train(worker: Worker) -> None:
        scheduler = SCHEDULES["step"](worker.optimizer)
        for step in range(STEPS):
            inputs, targets = batch_of(step, 0)
            worker.optimizer.zero_grad()
            F.mse_loss(worker.model(inputs), targets).backward()
            worker.push_pull().result()
            scheduler.step()

    _, (model,) = run_local(Job(1, 2), mlp, Adam, train)
    assert same_state(model, alone(Adam, schedule=SCHEDULES["step"])[0])


def test_an_option_that_goes_back_goes_back_on_the_servers() -> None:
    def train_with(worker: Any, optimizer: torch.optim.Optimizer, step: Callable[[], None]) -> None:
        for number in range(4):
            optimizer.param_groups[0]["lr"] = 0.5 if number == 1 else 0.01
            inputs, targets = batch_of(number, 0)
            optimizer.zero_grad()
            F.mse_loss(worker(inputs), targets).backward()
            step()

    def train(worker: Worker) -> None:
        train_with(worker.model, worker.optimizer, worker.step)

    _, (model,) = run_local(Job(1, 2), mlp, Momentum_lr, train)
    reference = seeded(mlp)
    plain = Momentum_lr(reference.parameters())
    train_with(reference, plain, plain.step)
    assert same_state(model, reference)


Momentum_lr = partial(torch.optim.SGD, lr=0.01, momentum=0.9)


def test_an_existing_loop_runs_unchanged() -> None:
    """zero_grad, backward, clip_grad_norm_, step, as in any loop."""

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(STEPS):
            inputs, targets = batch_of(step, 0)
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs), targets)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            assert norm > 0.1, "the limit bites"
            optimizer.step()

    _, (model,) = run_local(Job(1, 2), mlp, Adam, lambda w: loop(w.model, w.optimizer))
    reference = seeded(mlp)
    loop(reference, Adam(reference.parameters()))
    assert same_state(model, reference)


def test_a_closure_is_called_once_and_its_value_returned() -> None:
    calls: list[bool] = []

    def train(worker: Worker) -> None:
        def closure() -> torch.Tensor:
            calls.append(torch.is_grad_enabled())
            worker.optimizer.zero_grad()
            loss = F.mse_loss(worker.model(inputs), targets)
            loss.backward()
            return loss

        for step in range(STEPS):
            inputs, targets = batch_of(step, 0)
            with torch.no_grad():
                value = worker.optimizer.step(closure)
            assert value.item() > 0

    _, (model,) = run_local(Job(1, 2), mlp, Adam, train)
    assert calls == [True] * STEPS
    assert same_state(model, alone(Adam)[0])


def test_step_hooks_are_called() -> None:
    seen: list[str] = []

    def train(worker: Worker) -> None:
        worker.optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
        worker.optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        train_steps(2)(worker)

    run_local(Job(1), mlp, Adam, train)
    assert seen == ["before", "after"] * 2


STATEFUL = {
    "adam": Adam,
    "amsgrad": partial(torch.optim.Adam, amsgrad=True),
    "sgd": Momentum,
    "plain": partial(torch.optim.SGD, lr=0.1),
    "adagrad": torch.optim.Adagrad,
    "asgd": torch.optim.ASGD,
    "nadam": torch.optim.NAdam,
}


@pytest.mark.parametrize("groups", [None, two_groups], ids=["one group", "two groups"])
@pytest.mark.parametrize("servers", [1, 2, 5])
@pytest.mark.parametrize("name", STATEFUL)
def test_state_dict_is_that_of_the_plain_optimizer(
    name: str, servers: int, groups: Callable[[nn.Module], Iterable[dict[str, Any]]] | None
) -> None:
    """With cut tensors, groups in another order, frozen parameters; a plain one can load it."""
    states: list[dict[str, Any]] = []

    def train(worker: Worker) -> None:
        train_steps(STEPS)(worker)
        states.append(worker.optimizer.state_dict())

    run_local(Job(1, servers), mlp, STATEFUL[name], train, groups)
    model, plain = alone(STATEFUL[name], groups)
    ours, theirs = states[0], plain.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    frozen = 1 if groups else None  # Adagrad keeps state even for those
    theirs["state"] = {i: state for i, state in theirs["state"].items() if state and i != frozen}
    torch.testing.assert_close(
        {i: without_none(s) for i, s in ours["state"].items()},
        {i: without_none(s) for i, s in theirs["state"].items()},
        rtol=0,
        atol=0,
    )
    check_goes_on_alike(ours, model, plain, STATEFUL[name], groups)


def without_none(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if value is not None}


def check_goes_on_alike(
    state: dict[str, Any],
    model: nn.Module,
    plain: torch.optim.Optimizer,
    optimizer: Callable[[Any], torch.optim.Optimizer],
    groups: Callable[[nn.Module], Iterable[dict[str, Any]]] | None,
) -> None:
    """A plain optimizer that has loaded `state` makes the next steps that `plain` makes."""
    twin = copy.deepcopy(model)
    second = optimizer(groups(twin) if groups else twin.parameters())
    second.load_state_dict(state)
    data = [[batch_of(step, 1)] for step in range(3)]
    train_alone(model, plain, data)
    train_alone(twin, second, data)
    # Torch itself loads some float32 counters of NAdam as float64.
    assert relative_error(twin, model) < 1e-6


def test_state_dict_before_the_first_step_is_empty() -> None:
    def train(worker: Worker) -> None:
        state = worker.optimizer.state_dict()
        assert state["state"] == {}
        worker.optimizer.load_state_dict(state)
        train_steps(1)(worker)

    run_local(Job(1, 2), mlp, Adam, train)


def test_options_can_be_loaded_and_state_cannot() -> None:
    def train(worker: Worker) -> None:
        _, plain = alone(Adam)
        with pytest.raises(OptimizerError, match="lives on the servers and cannot be loaded"):
            worker.optimizer.load_state_dict(plain.state_dict())
        options = worker.optimizer.state_dict()
        options["param_groups"][0]["lr"] = 0.25
        worker.optimizer.load_state_dict(options)
        train_steps(1)(worker)

    _, (model,) = run_local(Job(1, 2), mlp, Adam, train)
    reference = seeded(mlp)
    plain = torch.optim.Adam(reference.parameters(), lr=0.25)
    train_alone(reference, plain, [[batch_of(0, 0)]])
    assert relative_error(model, reference) == 0.0


def test_groups_cannot_be_added() -> None:
    def train(worker: Worker) -> None:
        with pytest.raises(OptimizerError, match="cannot be added after the job has started"):
            worker.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})

    run_local(Job(1), mlp, Adam, train)


def test_it_is_an_optimizer_for_those_who_ask() -> None:
    def train(worker: Worker) -> None:
        assert isinstance(worker.optimizer, torch.optim.Optimizer)
        parameters = [p for group in worker.optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in parameters} == {id(p) for p in worker.model.parameters()}
        assert "DistributedOptimizer" in repr(worker.optimizer)

    run_local(Job(1), mlp, Adam, train)
