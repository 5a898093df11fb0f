"""Checkpoints of a job in one process, and jobs that go on from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from psrpc.checkpointer import Checkpointer, PartWriter, restore_server
from psrpc.coordinator import Coordinator
from psrpc.core.ledger import Ledger
from psrpc.errors import CheckpointError
from psrpc.job import Checkpointing, Job
from psrpc.orders import PutPart
from psrpc.replication.state import server_of
from psrpc.report import Report
from psrpc.store.blueprint import draw
from psrpc.testing.local import LocalJob
from psrpc.worker import Worker

DATA = TensorDataset(torch.arange(120.0).reshape(40, 3) / 120)
STEPS = 20  # 10 an epoch
Deliver = Callable[[PutPart], None]
optimizer = partial(torch.optim.Adam, lr=0.01)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))


class Saved:
    """A job of one worker that may be saved, and goes on from what is there."""

    def __init__(self, folder: Path, servers: int = 1, seed: int = 0) -> None:
        plan = Checkpointing(str(folder), every_s=None, resume="auto")
        self.folder = folder
        self.job = Job(1, servers, seed=seed, checkpointing=plan)
        self.local = LocalJob(self.job, model, optimizer)
        self.local.start()
        coordinator = self.local.services[0]
        assert isinstance(coordinator, Coordinator)
        self.coordinator = coordinator
        built = model()
        self.blueprint = draw(built, optimizer, None)
        self.checkpointer = Checkpointer(
            self.job, plan, coordinator, self.blueprint, built, lambda: self.writers[0].options
        )
        self.alter: Callable[[PutPart], PutPart] = lambda put: put
        self.writers = [
            PartWriter(server, server.store, self.blueprint, self._deliver)
            for server in map(server_of, self.local.services)  # type: ignore[arg-type]
        ]

    def _deliver(self, put: PutPart) -> None:
        self.coordinator.part_came(self.alter(put))

    def resume(self) -> None:
        """Go on from the newest checkpoint."""
        found = self.checkpointer.resume()
        assert found is not None
        for service in self.local.services:
            server = server_of(service)  # type: ignore[arg-type]
            restore_server(found, server, server.store, self.blueprint)
        ledgers = [Ledger.from_json(part.facts["ledger"]) for part in found.manifest.parts]
        self.coordinator.restore(found.manifest.job.facts, found.rest(), ledgers)

    def train(self, save_at: int | None = None) -> Report:
        """Two epochs; after `save_at` steps a checkpoint is made."""

        def steps(worker: Worker) -> None:
            for _ in range(2):
                for (x,) in worker.batches(DATA, 4):
                    worker.model(x).square().sum().backward()
                    worker.step()
                    if worker.steps == save_at:
                        self.checkpointer.make()

        for writer in self.writers:
            writer.start()
        try:
            return self.local.run(steps)
        finally:
            for writer in self.writers:
                writer.close()

    @property
    def trained(self) -> nn.Module:
        return self.local.workers[0].model


@pytest.mark.parametrize(("before", "after", "save_at"), [(1, 2, 3), (1, 1, 10), (2, 1, 14)])
def test_one_synchronous_worker_goes_on_bit_by_bit(
    tmp_path: Path, before: int, after: int, save_at: int
) -> None:
    first = Saved(tmp_path, before)
    assert first.train(save_at).samples_counted_once
    again = Saved(tmp_path, after)
    again.resume()
    assert again.coordinator.server.core.gate.floor == save_at
    report = again.train()
    assert report.samples_counted_once
    assert report.samples == 80
    assert report.worker_steps == STEPS - save_at, "what is in the checkpoint is not made again"
    ours, theirs = (list(saved.trained.parameters()) for saved in (again, first))
    assert all(map(torch.equal, ours, theirs))
    assert again.coordinator.core.incarnation == 1


def test_another_seed_is_another_order(tmp_path: Path) -> None:
    Saved(tmp_path).train(3)
    with pytest.raises(CheckpointError, match="of a job with seed 0, whose samples have another"):
        Saved(tmp_path, seed=1).resume()


def test_parts_of_different_updates_are_no_checkpoint(tmp_path: Path) -> None:
    """One server heard of the cut too late, since a worker died with its push on the other."""
    saved = Saved(tmp_path, 2)

    def alter(put: PutPart) -> PutPart:
        part: Any = put.part
        facts = {**part["facts"], "ledger": Ledger().to_json()}
        return replace(put, part={**part, "facts": facts}) if put.worker else put

    saved.alter = alter
    with pytest.raises(CheckpointError, match="its parts are of different updates"):
        saved.train(3)
    assert list(tmp_path.iterdir()) == []
