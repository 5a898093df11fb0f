"""Models by name: two small built-in ones, torchvision's, and the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from psrpc import importing, optional
from psrpc.errors import ConfigError, ModelError

_KERNEL = _POOL = 3
_FILTERS = 3
_HIDDEN = 256
_CONVNET_FROM = 16
# Both have auxiliary outputs in training, which `cross_entropy` cannot take, and
# an initialisation that takes a minute and warns that it will change.
_PLAIN = {"aux_logits": False, "init_weights": False}
_OPTIONS = {"googlenet": _PLAIN, "inception_v3": _PLAIN}


class ConvNet(nn.Module):
    """The network of Ray's parameter-server example: one convolution, one linear layer.

    Takes float (N, C, H, W), returns logits (N, num_classes). On 28 x 28 images
    its linear layer has 192 inputs, as there. It returns logits where Ray's ends
    in log_softmax: `cross_entropy` applies that itself, so loss and gradients are
    the same and the operation is not done twice.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, _FILTERS, _KERNEL)
        self.fc = nn.Linear(_FILTERS * _pooled(height) * _pooled(width), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(F.max_pool2d(self.conv1(images), _POOL))
        logits: Tensor = self.fc(features.flatten(1))
        return logits


def names() -> tuple[str, ...]:
    """Return the built-in names; `build` takes torchvision's and `module:callable` besides."""
    return ("auto", "convnet", "mlp")


def check(name: str) -> None:
    """Import what `name` needs and make sure that it exists, without building it.

    Raises ConfigError for an unknown name and ModelError for a failed import.
    """
    if importing.is_path(name):
        importing.find(name, ModelError)
    elif name not in names():
        _torchvision_for(name)


def build(name: str, *, input_shape: Sequence[int] | None, num_classes: int | None) -> nn.Module:
    """Return a new model on the CPU, initialised from torch's global random state.

    `input_shape` is that of one sample, without the batch dimension. `auto` is
    `convnet` for images from 16 x 16 pixels and `mlp` for everything smaller.
    torchvision's classification models are built without pretrained weights and
    as they are: most take 3 channels, and many refuse images as small as
    MNIST's, which `probe` reports. `package.module:callable` is called without
    arguments. Raises ConfigError for an unknown name, ModelError for the rest.
    """
    if importing.is_path(name):
        return _custom(name)
    if name not in names():
        return _from_torchvision(name, num_classes)
    if input_shape is None or num_classes is None:
        raise ModelError(
            f"model {name!r} is sized after the dataset, and this dataset does not tell the shape "
            "of its samples and the number of its classes: give --model package.module:callable"
        )
    chosen = resolve(name, input_shape)
    return (_convnet if chosen == "convnet" else _mlp)(input_shape, num_classes)


def resolve(name: str, input_shape: Sequence[int] | None) -> str:
    """The name of the model that `name` stands for: what `auto` chooses, or `name` itself."""
    return _automatic(input_shape) if name == "auto" and input_shape is not None else name


def probe(
    model: nn.Module, sample: Tensor, *, name: str = "model", num_classes: int | None = None
) -> None:
    """Run one forward on two copies of `sample` and make sure that logits come out.

    `sample` has no batch dimension and is on the model's device. The forward runs
    in eval mode without gradients; the modes, the buffers and torch's random
    state are afterwards what they were. `num_classes`, if known, is how many
    outputs there must be at least. Raises ModelError in one line that calls the
    model `name`.
    """
    if any(is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
        raise ModelError(f"model {name!r} has lazy parameters: run one batch through it first")
    with _untouched(model), torch.no_grad():
        try:
            output = model(torch.stack([sample, sample]))
        except Exception as error:
            raise ModelError(
                f"model {name!r} does not take samples of shape {tuple(sample.shape)}: "
                f"{importing.cause(error)}"
            ) from error
    _check_output(name, output, num_classes)


def _check_output(name: str, output: object, num_classes: int | None) -> None:
    least = 1 if num_classes is None else num_classes
    wanted = f"a batch of 2 must give floats of shape (2, {least} or more)"
    if not isinstance(output, Tensor):
        got = type(output).__name__
        raise ModelError(f"model {name!r} returns an object of type {got}; {wanted}")
    shape = tuple(output.shape)
    if len(shape) != 2 or shape[0] != 2 or shape[1] < least or not output.is_floating_point():
        raise ModelError(f"model {name!r} returns {output.dtype} of shape {shape}; {wanted}")


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode; restore modes, buffers and random state in the end."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    tensors = [*model.parameters(), *model.buffers()]
    gpus = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices=gpus):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _automatic(input_shape: Sequence[int]) -> str:
    large = len(input_shape) == 3 and min(input_shape[1:]) >= _CONVNET_FROM
    return "convnet" if large else "mlp"


def _convnet(input_shape: Sequence[int], num_classes: int) -> nn.Module:
    if len(input_shape) != 3 or min(_pooled(side) for side in input_shape[1:]) < 1:
        raise ModelError(
            f"model 'convnet' takes samples of shape (channels, height, width) from 5 x 5 pixels, "
            f"not {tuple(input_shape)}: try --model mlp"
        )
    return ConvNet(input_shape, num_classes)


def _pooled(side: int) -> int:
    return (side - _KERNEL + 1) // _POOL


def _mlp(input_shape: Sequence[int], num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(input_shape), _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, num_classes),
    )


def _custom(path: str) -> nn.Module:
    target = importing.find(path, ModelError)
    if isinstance(target, nn.Module):
        raise ModelError(
            f"{path!r} is a {type(target).__name__} that exists already: "
            "name its class, or a function that returns a new one"
        )
    model = importing.call(path, ModelError)
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise ModelError(f"{path!r} returned an object of type {got}; expected a torch.nn.Module")
    return model


def _from_torchvision(name: str, num_classes: int | None) -> nn.Module:
    vision = _torchvision_for(name)
    if num_classes is None:
        raise ModelError(
            f"model {name!r} needs the number of classes, which this dataset does not tell: give "
            "the dataset an attribute `classes`, or use --model package.module:callable"
        )
    options = _OPTIONS.get(name, {})
    try:
        model = vision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    except Exception as error:
        raise ModelError(f"model {name!r} cannot be built: {importing.cause(error)}") from error
    assert isinstance(model, nn.Module)
    return model


def _torchvision_for(name: str) -> ModuleType:
    """Return torchvision if it has the classification model `name`."""
    builtin = ", ".join(names())
    vision = optional.torchvision(
        ModelError,
        wanted_by=f"model {name!r}, which is not built in,",
        instead=f"use one of {builtin}, package.module:callable",
    )
    known: list[str] = vision.models.list_models(module=vision.models)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.4))
        hint = f" such as {near}" if near else ""
        raise ConfigError(
            f"there is no model {name!r}: use one of {builtin}, a classification model of "
            f"torchvision{hint}, or package.module:callable"
        )
    return vision
