"""Models of every sort are trained as one process trains them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR

from psrpc.errors import ModelError, OptimizerError
from psrpc.job import Job
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.store.blueprint import draw
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

STEPS = 12
Adam = partial(torch.optim.Adam, lr=0.01)
Momentum = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True)
Groups = Callable[[nn.Module], Iterable[dict[str, Any]]]


def check_exact(
    model: Callable[[], nn.Module],
    optimizer: Callable[[Any], torch.optim.Optimizer] = Adam,
    *,
    servers: int = 2,
    mode: Mode | None = None,
    groups: Groups | None = None,
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """One worker's job ends bit by bit as one process does; returns the model."""
    job = Job(1, servers, mode or Synchronous())
    _, (trained,) = run_local(job, model, optimizer, train_steps(STEPS, dtype=dtype), groups)
    alone = seeded(model)
    plain = optimizer(groups(alone) if groups else alone.parameters())
    train_alone(alone, plain, [[batch_of(step, 0, dtype=dtype)] for step in range(STEPS)])
    assert not same_state(alone, seeded(model)), "the reference itself has learned"
    assert same_state(trained, alone)
    return trained


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()


@pytest.mark.parametrize(
    "mode", [Synchronous(), BoundedStaleness(1), Asynchronous()], ids=lambda mode: mode.name
)
def test_batch_norm_of_one_worker_is_that_of_one_process(mode: Mode) -> None:
    trained = check_exact(normed, mode=mode)
    assert int(trained[1].num_batches_tracked) == STEPS


def test_batch_norm_of_several_workers_is_their_mean_by_steps() -> None:
    """Without learning, each worker's statistics are those of its own batches alone."""
    steps = (2, 7)
    momentum_free = partial(torch.optim.SGD, lr=0.0)

    _, models = run_local(
        Job(2, 2, Synchronous()),
        normed,
        momentum_free,
        lambda worker: train_steps(steps[worker.rank])(worker),
    )
    alone = [seeded(normed) for _ in steps]
    for rank, model in enumerate(alone):
        data = [[batch_of(step, rank)] for step in range(steps[rank])]
        train_alone(model, momentum_free(model.parameters()), data)
    for name in ("running_mean", "running_var"):
        first, second = (getattr(model[1], name) for model in alone)
        mean = (2 * first + 7 * second) / 9
        assert not torch.allclose(mean, (first + second) / 2)
        for model in models:
            torch.testing.assert_close(getattr(model[1], name), mean)
    assert [int(model[1].num_batches_tracked) for model in models] == [7, 7]


class Tied(nn.Module):
    """An encoder and a decoder with one weight, which is larger than all else."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(5, 9, bias=False)
        self.decode = nn.Linear(5, 9, bias=False)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.linear(torch.tanh(self.encode(x)), self.decode.weight.T))


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_tied_weights_stay_tied(servers: int) -> None:
    trained = check_exact(lambda: Tied().double(), servers=servers)
    assert trained.encode.weight is trained.decode.weight


class Odd(nn.Module):
    """Parameters of 0, 1 and 3 dimensions, and one that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.randn(3))
        self.cube = nn.Parameter(torch.randn(4, 5, 3) / 4)
        self.unused = nn.Parameter(torch.randn(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.einsum("bi,kij->bj", x, self.cube) + self.shift


def test_parameters_of_every_dimension_over_many_servers() -> None:
    """More servers than there are tensors: the largest are cut by rows, down to single ones."""
    assert len(draw(Odd(), Adam).layouts(7)) == 7
    check_exact(lambda: Odd().double(), servers=7)
    check_exact(lambda: Odd().double(), Momentum, servers=1)


def test_one_scalar_over_three_servers() -> None:
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * x[:, :3]

    check_exact(Scalar, servers=3)


class Mixed(nn.Module):
    """The first layer in bfloat16, the second in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(5, 8).bfloat16()
        self.wide = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wide(self.narrow(x.bfloat16()).float())


@pytest.mark.parametrize("servers", [1, 3])
def test_mixed_dtypes(servers: int) -> None:
    check_exact(Mixed, servers=servers, dtype=torch.float32)


def test_groups_that_are_empty_and_parameters_in_no_group() -> None:
    def groups(model: nn.Module) -> list[dict[str, Any]]:
        return [
            {"params": []},
            {"params": [model[2].bias, model[2].weight], "lr": 0.02},
            {"params": [model[0].weight], "weight_decay": 0.1},
        ]

    trained = check_exact(mlp, groups=groups)
    assert torch.equal(trained[0].bias, seeded(mlp)[0].bias), "it was given to no optimizer"


class ByNorm(torch.optim.Optimizer):
    """A user's own: every tensor moves by the same length, so tensors must stay whole."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["norm"] = parameter.grad.norm()
                    parameter.sub_(parameter.grad / state["norm"], alpha=group["lr"])


WHOLE = {
    "own": ByNorm,
    "adafactor": getattr(torch.optim, "Adafactor", None),
    "muon": getattr(torch.optim, "Muon", None),
}


@pytest.mark.parametrize("servers", [1, 2, 5])
@pytest.mark.parametrize("name", WHOLE)
def test_optimizers_that_look_at_whole_tensors_get_them(name: str, servers: int) -> None:
    optimizer = WHOLE[name]
    if optimizer is None:
        pytest.skip(f"torch {torch.__version__} has no {name}")

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 40, bias=False), nn.Linear(40, 3, bias=False)).double()

    layouts = draw(model(), optimizer).layouts(servers)
    assert sorted(piece.shape for layout in layouts for piece in layout.pieces) == [
        (3, 40),
        (40, 5),
    ]
    check_exact(model, optimizer, servers=servers)


@pytest.mark.parametrize("servers", [2, 3, 4])
def test_a_tensor_larger_than_a_fair_share_is_cut_evenly(servers: int) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 60), nn.Linear(60, 3)).double()

    blueprint = draw(model(), Adam)
    layouts = blueprint.layouts(servers)
    assert sum(piece.parameter == 0 for layout in layouts for piece in layout.pieces) > 1
    loads = [sum(piece.numel for piece in layout.pieces) for layout in layouts]
    assert max(loads) < 1.25 * sum(loads) / servers, "no server keeps much more than another"
    check_exact(model, servers=servers)


@pytest.mark.parametrize("lr", [torch.tensor(0.01), torch.tensor(0.01, dtype=torch.float64)])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_a_learning_rate_that_is_a_tensor(
    kind: type[torch.optim.Optimizer], lr: torch.Tensor
) -> None:
    def optimizer(params: Any) -> torch.optim.Optimizer:
        return kind(params, lr=lr.clone())

    schedule = partial(StepLR, step_size=2, gamma=0.3)

    def train(worker: Any) -> None:
        scheduler = schedule(worker.optimizer)
        for step in range(STEPS):
            inputs, targets = batch_of(step, 0)
            F.mse_loss(worker.model(inputs), targets).backward()
            worker.step()
            scheduler.step()

    _, (trained,) = run_local(Job(1, 2), mlp, optimizer, train)
    alone = seeded(mlp)
    data = [[batch_of(step, 0)] for step in range(STEPS)]
    train_alone(alone, optimizer(alone.parameters()), data, schedule)
    assert relative_error(trained, alone) < 1e-9


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(ModelError, match="Tanh has no parameters"):
        draw(nn.Tanh(), Adam)
    frozen = mlp().requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter of Sequential is trained"):
        draw(frozen, Adam)
    with pytest.raises(ModelError, match="not str"):
        draw("model", Adam)  # type: ignore[arg-type]


def test_optimizers_that_no_server_can_run_are_refused() -> None:
    with pytest.raises(OptimizerError, match="LBFGS evaluates the model several times"):
        draw(mlp(), torch.optim.LBFGS)
    with pytest.raises(OptimizerError, match=r"cannot be made: .*learning rate"):
        draw(mlp(), partial(torch.optim.SGD, lr=-1.0))
    with pytest.raises(OptimizerError, match="it made None"):
        draw(mlp(), lambda params: None)  # type: ignore[arg-type, return-value]
    stranger = nn.Parameter(torch.ones(2))
    with pytest.raises(OptimizerError, match="1 of the optimizer's parameters do not belong"):
        draw(mlp(), Adam, lambda model: [{"params": [stranger]}])


class Complex(nn.Module):
    """A complex parameter beside a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex128))
        self.layer = nn.Linear(5, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layer(x) * self.phase).abs()


@pytest.mark.parametrize("optimizer", [Adam, Momentum], ids=["adam", "momentum"])
def test_complex_parameters(optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
    check_exact(Complex, optimizer)


def test_an_optimizer_that_is_made_already_is_refused_with_what_to_give() -> None:
    made: Any = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(OptimizerError, match=r"partial\(torch.optim.SGD.*made already: SGD"):
        run_local(Job(1), lambda: nn.Linear(2, 1), made, lambda worker: None)
