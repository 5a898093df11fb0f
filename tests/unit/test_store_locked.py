"""A model beside the CPU's memory: copies each way, page-locked for a GPU's sake."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import psrpc
from psrpc.job import Job
from psrpc.planes.memory import Part, Region
from psrpc.store import locked
from psrpc.store.flats import Buffers
from psrpc.store.layout import ParameterSpec, ShardLayout, partition
from psrpc.testing.local import LocalJob
from psrpc.worker import Worker


class Driver:
    """Stands in for CUDA's: knows what is locked, and refuses what it would refuse."""

    def __init__(self) -> None:
        self.locked: dict[int, int] = {}
        self.answer = 0
        self.calls: list[str] = []

    def cudaHostRegister(self, address: int, size_bytes: int, flags: int) -> int:
        assert address not in self.locked
        assert size_bytes > 0
        assert flags == 1
        self.calls.append("lock")
        if not self.answer:
            self.locked[address] = size_bytes
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append("unlock")
        del self.locked[address]
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(locked, "_driver", lambda: driver)
    return driver


def layout() -> ShardLayout:
    (only,) = partition([ParameterSpec("weight", (3,), "float32", 0)], 1, divisible=True)
    return only


def covers(driver: Driver, flat: torch.Tensor) -> bool:
    low, high = flat.data_ptr(), flat.data_ptr() + flat.nbytes
    return any(start <= low and high <= start + size for start, size in driver.locked.items())


@pytest.fixture
def region() -> Iterator[Region]:
    region = Region.create(layout())
    yield region
    region.close()


def test_gradients_and_weights_are_locked_now_or_when_they_are_mapped(
    driver: Driver, region: Region
) -> None:
    (weights,) = region.part(Part.WEIGHTS)
    region.lock_pages()
    (gradients,) = region.part(Part.GRADIENTS)
    (ahead,) = region.part(Part.AHEAD)
    assert covers(driver, weights)
    assert covers(driver, gradients)
    assert not covers(driver, ahead)
    region.close()
    assert not driver.locked


def test_a_region_that_moves_is_locked_anew(driver: Driver, region: Region) -> None:
    (weights,) = region.part(Part.WEIGHTS)
    region.lock_pages()
    other = Region.create(layout())
    driver.calls.clear()
    region.move(os.dup(other.fd))
    assert driver.calls == ["unlock", "lock"]
    assert covers(driver, weights)
    other.close()


def test_a_fork_lets_go_of_it_without_the_driver(driver: Driver, region: Region) -> None:
    (weights,) = region.part(Part.WEIGHTS)
    region.lock_pages()
    child = os.fork()
    if child == 0:
        driver.cudaHostUnregister = os.abort  # type: ignore[method-assign, assignment]
        region.close()
        os._exit(0 if region.fd < 0 else 1)
    assert os.waitpid(child, 0) == (child, 0)
    assert covers(driver, weights)


def test_memory_that_cannot_be_locked_is_used_as_it_is(driver: Driver, region: Region) -> None:
    driver.answer = 2
    region.lock_pages()
    with pytest.warns(UserWarning, match=r"could not be page-locked \(CUDA error 2\).*ulimit -l"):
        (weights,) = region.part(Part.WEIGHTS)
    region.part(Part.GRADIENTS)  # said once
    weights.fill_(1.0)
    region.move(-1)
    assert weights.tolist() == [1.0] * 3


def test_private_buffers_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []

    def pin(flat: torch.Tensor) -> torch.Tensor:
        pinned.append(flat.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    buffers = Buffers.private(layout())
    buffers.weights[0].fill_(3.0)
    buffers.lock_pages()
    assert buffers.weights[0] is pinned[0]
    assert buffers.weights[0].tolist() == [3.0] * 3
    assert buffers.gradients[0] is pinned[1]
    buffers.turn()
    assert buffers.gradients[0] is pinned[2]


def trained(overlap: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    job = Job(1, servers=2, mode=psrpc.BoundedStaleness(1), overlap=overlap)
    local = LocalJob(job, lambda: nn.Linear(3, 4), lambda p: torch.optim.SGD(p, lr=0.1))

    def train(worker: Worker) -> None:
        torch.manual_seed(1)
        for (x,) in worker.batches(TensorDataset(torch.randn(24, 3)), 2):
            worker.model(x).square().sum().backward()
            worker.step()
        worker.pull().result()
        worker.model(torch.ones(1, 3)).sum().backward()
        worker.push().result()
        worker.push_pull().result()

    local.run(train)
    return [p.detach().clone() for p in local.workers[0].model.parameters()]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_model_beside_the_buffers_learns_the_same(
    monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    expected = trained(overlap)
    monkeypatch.setattr("psrpc.store.binding._is_apart", lambda device: True)
    for ours, theirs in zip(trained(overlap), expected, strict=True):
        assert torch.equal(ours, theirs)
