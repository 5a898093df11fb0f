"""`.grad` is a view of the buffer that gradients leave from; None keeps torch.optim's meaning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from psrpc.store.binding import Binding
from psrpc.store.blueprint import Blueprint, draw
from psrpc.store.flats import Buffers


class Two(nn.Module):
    """Two layers, of which `forward` uses one or both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.second = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        return self.first(x) + self.second(x) if both else self.first(x)


class Bound:
    """A model, its buffers, and what ties them."""

    def __init__(self, model: nn.Module, servers: int = 1) -> None:
        self.model = model
        self.blueprint: Blueprint = draw(model, partial(torch.optim.SGD, lr=0.1))
        layouts = self.blueprint.layouts(servers)
        self.buffers = [Buffers.private(layout) for layout in layouts]
        self.binding = Binding(model, self.blueprint, layouts, self.buffers)
        self.layouts = layouts

    def backward(self, both: bool = True) -> None:
        self.model(torch.ones(4, 3), both).sum().backward()

    def absent(self) -> set[str]:
        absent = self.binding.gather()
        return {
            self.blueprint.specs[layout.pieces[i].parameter].name
            for layout, missing in zip(self.layouts, absent, strict=True)
            for i in missing
        }


@pytest.fixture
def bound() -> Bound:
    return Bound(Two())


SECOND = {"second.weight", "second.bias"}


def test_nothing_is_copied_when_gradients_leave(bound: Bound) -> None:
    (flat,) = bound.buffers[0].gradients
    bound.backward()
    low, high = flat.data_ptr(), flat.data_ptr() + flat.numel() * 4
    addresses = [p.grad.data_ptr() for p in bound.model.parameters() if p.grad is not None]
    assert len(addresses) == 4
    assert all(low <= address < high for address in addresses)
    before = flat.clone()
    assert bound.absent() == set()
    assert torch.equal(flat, before)
    assert flat.sum() == 4 * 3 * 2 * 2 + 4 * 2 * 2


def test_what_had_no_gradient_is_told(bound: Bound) -> None:
    assert bound.absent() == {p for p, _ in bound.model.named_parameters()}
    bound.backward(both=False)
    assert bound.absent() == SECOND
    bound.binding.clear()
    bound.backward()
    assert bound.absent() == set()


def test_clipping_gives_no_gradient_to_what_has_none(bound: Bound) -> None:
    bound.backward(both=False)
    nn.utils.clip_grad_norm_(bound.model.parameters(), 0.1)
    assert bound.absent() == SECOND


def test_clipping_without_a_backward_pass_gives_no_gradient(bound: Bound) -> None:
    nn.utils.clip_grad_norm_(bound.model.parameters(), 0.1)
    assert len(bound.absent()) == 4


def assign(parameter: nn.Parameter) -> None:
    parameter.grad = torch.ones_like(parameter)


def write(parameter: nn.Parameter) -> None:
    assert parameter.grad is not None
    parameter.grad.fill_(1.0)


def write_data(parameter: nn.Parameter) -> None:
    assert parameter.grad is not None
    parameter.grad.data.add_(torch.ones_like(parameter))


@pytest.mark.parametrize("give", [assign, write, write_data])
@pytest.mark.parametrize("beside_autograd", [False, True])
def test_a_gradient_of_the_users_own_counts(
    bound: Bound, give: Callable[[nn.Parameter], None], beside_autograd: bool
) -> None:
    if beside_autograd:
        bound.backward(both=False)
    give(bound.model.second.weight)
    first = set() if beside_autograd else {"first.weight", "first.bias"}
    assert bound.absent() == {"second.bias"} | first
    (flat,) = bound.buffers[0].gradients
    bias = [i for i, s in enumerate(bound.blueprint.specs) if s.name == "second.weight"]
    (piece,) = [p for p in bound.layouts[0].pieces if p.parameter in bias]
    assert torch.equal(piece.view(flat), torch.ones(2, 3))


@pytest.mark.parametrize("place", [0, 1023, 1024, 4999])
def test_a_single_element_that_a_loop_writes_makes_a_gradient(place: int) -> None:
    bound = Bound(nn.Linear(5000, 1, bias=False))
    assert bound.absent() == {"weight"}
    assert bound.model.weight.grad is not None
    bound.model.weight.grad[0, place] = 1.0
    assert bound.absent() == set()


def test_large_gradients_begin_with_zeros() -> None:
    bound = Bound(nn.Linear(300_000, 1, bias=False))
    bound.binding.clear()
    assert bound.model.weight.grad is not None
    bound.model.weight.grad.fill_(1.0)
    bound.binding.clear()
    assert not bound.model.weight.grad.any()
    assert bound.absent() == {"weight"}


def test_gradients_that_a_loop_takes_away_count_for_nothing(bound: Bound) -> None:
    bound.backward()
    bound.model.second.zero_grad(set_to_none=True)
    assert bound.absent() == SECOND
    (flat,) = bound.buffers[0].gradients
    assert flat.sum() == 4 * 3 * 2 + 4 * 2
    bound.model.zero_grad(set_to_none=True)
    bound.backward()
    assert bound.absent() == set()


def test_gradients_add_up_until_they_are_cleared(bound: Bound) -> None:
    bound.backward()
    assert bound.absent() == set()
    bound.backward(both=False)
    assert bound.absent() == set()
    grad = bound.model.first.bias.grad
    assert grad is not None
    assert torch.equal(grad, torch.full((2,), 8.0))
    bound.binding.clear()
    assert bound.model.first.bias.grad is grad
    assert not grad.any()


def test_the_other_set_is_filled_while_one_is_on_its_way(bound: Bound) -> None:
    bound.backward()
    bound.binding.gather()
    (sent,) = bound.buffers[0].gradients
    before = sent.clone()
    bound.binding.turn()
    bound.backward(both=False)
    assert torch.equal(sent, before)
    assert bound.absent() == SECOND
    bound.binding.turn()
    assert bound.buffers[0].gradients[0] is sent
    assert not sent.any()


def test_a_model_that_moves_its_gradients_is_followed(bound: Bound) -> None:
    """`Module._apply` gives a gradient new memory and keeps the tensor object."""
    bound.backward()
    grad = bound.model.first.weight.grad
    assert grad is not None
    grad.data = grad.data.clone() * 2
    assert bound.absent() == set()
    (flat,) = bound.buffers[0].gradients
    assert flat.sum() == 4 * 3 * 2 * 2 + 4 * 2 * 2 + 4 * 3 * 2


def test_a_moved_gradient_is_cleared_and_tells_what_had_none(bound: Bound) -> None:
    bound.backward(both=False)
    bound.model.double().float()
    assert bound.absent() == SECOND
    bound.model.double().float()
    bound.binding.clear()
    assert not any(p.grad.any() for p in bound.model.parameters() if p.grad is not None)
    bound.backward()
    assert bound.absent() == set()
    assert bound.buffers[0].gradients[0].sum() == 4 * 3 * 2 * 2 + 4 * 2 * 2


def test_rows_of_a_parameter_that_is_cut_are_copied() -> None:
    bound = Bound(nn.Linear(3, 8, bias=False), servers=3)
    bound.model(torch.ones(2, 3)).sum().backward()
    assert bound.binding.gather() == [(), (), ()]
    flats = [shard.gradients[0] for shard in bound.buffers]
    assert sum(flat.numel() for flat in flats) == 24
    assert all(torch.equal(flat, torch.full_like(flat, 2.0)) for flat in flats)


def test_released_the_model_is_its_own_again(bound: Bound) -> None:
    bound.binding.release()
    weights = bound.buffers[0].weights[0]
    before = bound.model.first.weight.clone()
    weights.fill_(7.0)
    assert torch.equal(bound.model.first.weight, before)
    assert all(p.grad is None for p in bound.model.parameters())
    bound.backward()
    assert not bound.buffers[0].gradients[0].any()
