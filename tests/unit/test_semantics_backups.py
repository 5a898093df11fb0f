"""Synchronous training with backup workers: the slow are left behind, and no sample is lost."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from psrpc.job import Job
from psrpc.modes import Synchronous
from psrpc.worker import Worker
from tests.unit.reference import run_local

SAMPLES, LATE, WAIT_S = 48, 2, 30.0


class Slow:
    """A training function in which worker 0 computes its first steps for two rounds each."""

    def __init__(self) -> None:
        self.rounds = threading.Condition()
        self.made = 0

    def train(self, worker: Worker) -> None:
        """Train on an epoch."""
        data = TensorDataset(torch.arange(float(SAMPLES)).unsqueeze(1))
        for (batch,) in worker.batches(data, 2, shuffle=False):
            with self.rounds:
                if worker.rank == 0 and worker.steps < LATE:
                    # Each of the others has been answered once at least since now.
                    assert self.rounds.wait_for(partial(self._is_made, self.made + 4), WAIT_S)
            F.mse_loss(worker.model(batch), batch / SAMPLES).backward()
            worker.step()
            with self.rounds:
                self.made += worker.rank > 0
                self.rounds.notify_all()

    def _is_made(self, steps: int) -> bool:
        return self.made >= steps


def model() -> nn.Module:
    return nn.Linear(1, 1, dtype=torch.float32)


@pytest.mark.parametrize("servers", [1, 3])
def test_all_samples_are_counted_once(servers: int) -> None:
    slow = Slow()
    job = Job(3, servers, Synchronous(1))

    class Net(nn.Module):
        """With tensors for three servers."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(model(), model(), model())

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layers(inputs / SAMPLES)
            return result

    report, models = run_local(job, Net, partial(torch.optim.SGD, lr=0.01), slow.train)
    assert report.updates_dropped_late >= LATE
    assert (report.samples, report.samples_counted_once) == (SAMPLES, True)
    assert report.updates_applied == report.worker_steps == SAMPLES // 2
    for other in models[1:]:
        for ours, theirs in zip(models[0].parameters(), other.parameters(), strict=True):
            assert torch.equal(ours, theirs)
