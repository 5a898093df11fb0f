"""Every model by name, and every way in which one cannot be had or used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from psrpc import models
from psrpc.errors import ConfigError, ModelError

MNIST, DIGITS = (1, 28, 28), (1, 8, 8)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that writes a user's module `net` into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield lambda body: (tmp_path / "net.py").write_text(f"from torch import nn\n{body}\n")
    sys.modules.pop("net", None)


def build(name: str, shape: tuple[int, ...] | None = MNIST, classes: int | None = 10) -> nn.Module:
    return models.build(name, input_shape=shape, num_classes=classes)


def refusal(call: Any, *args: Any, **options: Any) -> str:
    """Return the one line with which `call` refuses."""
    with pytest.raises(ModelError) as caught:
        call(*args, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in model.parameters()]


def test_convnet_is_the_network_of_the_reference_example() -> None:
    model = build("convnet")
    assert shapes(model) == [(3, 1, 3, 3), (3,), (10, 192), (10,)]
    images, labels = torch.randn(5, *MNIST), torch.arange(5)
    conv, linear = model.get_submodule("conv1"), model.get_submodule("fc")
    features = F.relu(F.max_pool2d(conv(images), 3)).view(-1, 192)
    plain = F.nll_loss(F.log_softmax(linear(features), dim=1), labels)
    torch.testing.assert_close(F.cross_entropy(model(images), labels), plain)


@pytest.mark.parametrize("shape", [(1, 5, 5), DIGITS, (3, 32, 17)])
def test_convnet_fits_other_images(shape: tuple[int, ...]) -> None:
    models.probe(build("convnet", shape, 4), torch.randn(shape), num_classes=4)


@pytest.mark.parametrize("shape", [(1, 4, 28), (28, 28), (64,)])
def test_convnet_refuses_what_it_cannot_take(shape: tuple[int, ...]) -> None:
    assert f"not {shape}" in refusal(build, "convnet", shape)


@pytest.mark.parametrize("shape", [DIGITS, MNIST, (20,)])
def test_mlp_takes_any_shape(shape: tuple[int, ...]) -> None:
    models.probe(build("mlp", shape, 7), torch.randn(shape), num_classes=7)


@pytest.mark.parametrize(
    ("shape", "name"),
    [(DIGITS, "mlp"), (MNIST, "convnet"), ((3, 32, 32), "convnet"), ((9,), "mlp")],
)
def test_auto_chooses_by_shape(shape: tuple[int, ...], name: str) -> None:
    assert shapes(build("auto", shape)) == shapes(build(name, shape))


@pytest.mark.parametrize("name", models.names())
def test_built_in_models_need_to_know_the_samples(name: str) -> None:
    models.check(name)
    assert "give --model package.module:callable" in refusal(build, name, None)
    assert "give --model package.module:callable" in refusal(build, name, MNIST, None)


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_torchvisions_models(vision: ModuleType, name: str) -> None:
    models.check(name)
    model = build(name, (3, 64, 64), 5)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    models.probe(model, torch.randn(3, 64, 64), name=name, num_classes=5)
    text = refusal(models.probe, model, torch.randn(MNIST), name=name, num_classes=5)
    assert text.startswith(f"model '{name}' does not take samples of shape (1, 28, 28): ")
    assert "3 channels" in text
    assert "attribute `classes`" in refusal(build, name, MNIST, None)


@pytest.mark.parametrize("call", [models.check, build])
def test_unknown_names_get_near_ones(vision: ModuleType, call: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        call("resnet19")
    text = str(caught.value)
    for part in ("auto, convnet, mlp", "resnet18", "package.module:callable"):
        assert part in text
    with pytest.raises(ConfigError, match="fasterrcnn"):
        call("fasterrcnn_resnet50_fpn")


def test_other_names_need_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    texts = {refusal(call, "resnet18") for call in (models.check, build, models.check)}
    assert texts == {
        "model 'resnet18', which is not built in, needs torchvision, which is not installed: "
        "install it (pip install torchvision), "
        "or use one of auto, convnet, mlp, package.module:callable"
    }


@pytest.mark.parametrize(
    "body",
    [
        "def make(): return nn.Linear(4, 2)",
        "class make(nn.Linear):\n    def __init__(self): super().__init__(4, 2)",
        "class Nets:\n    make = lambda: nn.Linear(4, 2)\nmake = Nets.make",
    ],
)
def test_a_users_model(module: Any, body: str) -> None:
    module(body)
    models.check("net:make")
    model = build("net:make", None, None)
    assert shapes(model) == [(2, 4), (2,)]
    models.probe(model, torch.randn(4))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("def make(): return 3", "returned an object of type int; expected a torch.nn.Module"),
        ("make = nn.Linear(4, 2)", "is a Linear that exists already"),
        ("def make(): raise ValueError('no')", "ValueError: no"),
        ("class make(nn.Linear): pass", "missing 2 required positional arguments"),
        ("import not_there", "No module named 'not_there'"),
        ("", "module 'net' has no attribute 'make'"),
    ],
)
def test_a_users_model_that_cannot_be_used(module: Any, body: str, text: str) -> None:
    module(body)
    refused = refusal(build, "net:make")
    assert "'net:make'" in refused
    assert text in refused


class Restless(nn.Module):
    """Changes whatever a forward can change, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.BatchNorm1d(4).eval()
        self.calls = nn.Buffer(torch.zeros(()))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        noise: torch.Tensor = self.frozen(self.norm(samples))
        return noise + torch.randn(4)


@pytest.mark.parametrize("fails", [False, True])
def test_probe_leaves_no_trace(fails: bool) -> None:
    model = Restless()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    if fails:
        assert "(5,)" in refusal(models.probe, model, torch.randn(5, generator=torch.Generator()))
    else:
        models.probe(model, torch.ones(4))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [model.training, model.norm.training, model.frozen.training] == [True, True, False]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Identity(), "shape (2, 4); a batch of 2 must give floats of shape (2, 10 or more)"),
        (nn.Unflatten(1, (2, 2)), "shape (2, 2, 2)"),
        (nn.LSTM(4, 10), "an object of type tuple"),
        (nn.LazyLinear(10), "lazy parameters"),
        (nn.LazyBatchNorm1d(affine=False), "lazy parameters"),
    ],
)
def test_probe_refuses_what_are_no_logits(model: nn.Module, text: str) -> None:
    refused = refusal(models.probe, model, torch.randn(4), name="net:make", num_classes=10)
    assert "model 'net:make'" in refused
    assert text in refused
