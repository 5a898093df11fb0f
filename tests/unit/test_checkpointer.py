"""Checkpoints of a job in one process, and jobs that go on from them."""

from __future__ import annotations

import threading
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
from psrpc.checkpoints.reading import open_checkpoint
from psrpc.coordinator import Coordinator
from psrpc.core.ledger import Ledger
from psrpc.display import ProgressLine
from psrpc.errors import CheckpointError
from psrpc.job import Checkpointing, Job
from psrpc.messages import Push, Stream, StreamKind, UpdateKey
from psrpc.modes import Asynchronous, Mode, Synchronous
from psrpc.moves import Agreed, Scale
from psrpc.orders import PutPart
from psrpc.planes.loopback import LoopbackLink
from psrpc.replication.state import server_of
from psrpc.report import Report
from psrpc.store.blueprint import draw
from psrpc.testing.local import LocalJob
from psrpc.worker import Worker
from tests.processes import PATIENCE_S, wait_until

DATA = TensorDataset(torch.arange(120.0).reshape(40, 3) / 120)
STEPS = 20  # 10 an epoch
Deliver = Callable[[PutPart], None]
optimizer = partial(torch.optim.Adam, lr=0.01)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))


class Saved:
    """A job of one worker that may be saved, and goes on from what is there."""

    def __init__(
        self,
        folder: Path,
        servers: int = 1,
        seed: int = 0,
        workers: int = 1,
        mode: Mode = Synchronous(),  # noqa: B008
    ) -> None:
        plan = Checkpointing(str(folder), every_s=None, resume="auto")
        self.folder = folder
        self.job = Job(workers, servers, mode, seed=seed, checkpointing=plan)
        self.local = LocalJob(self.job, model, optimizer)
        self.local.start()
        coordinator = self.local.services[0]
        assert isinstance(coordinator, Coordinator)
        self.coordinator = coordinator
        built = model()
        self.blueprint = draw(built, optimizer, None)
        self.checkpointer = Checkpointer(
            self.job,
            plan,
            coordinator,
            coordinator,
            self.blueprint,
            built,
            lambda: self.writers[0].options,
        )
        self.alter: Callable[[PutPart], PutPart] = lambda put: put
        self.writers = [
            PartWriter(server, self.blueprint, self._deliver)
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

        return self.run(steps)

    def run(self, train: Callable[[Worker], None]) -> Report:
        """Train so."""
        for writer in self.writers:
            writer.start()
        try:
            return self.local.run(train)
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
    assert report.samples_before == 4 * save_at
    assert report.samples_per_s == pytest.approx((80 - 4 * save_at) / report.train_s)
    assert report.worker_steps == STEPS - save_at, "what is in the checkpoint is not made again"
    ours, theirs = (list(saved.trained.parameters()) for saved in (again, first))
    assert all(map(torch.equal, ours, theirs))
    assert again.coordinator.core.incarnation == 1
    assert ProgressLine(again.coordinator.meter, 80).line().startswith("100% [")


def test_who_asks_for_servers_is_told_that_a_checkpoint_is_being_made(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    asked = LoopbackLink(saved.local.services[0])
    told: list[bool] = []

    def ask(put: PutPart) -> PutPart:
        reply, _ = asked.call(Scale(900, 2)).wait(0)
        assert isinstance(reply, Agreed)
        told.append(reply.saving)
        return put

    saved.alter = ask
    saved.train(3)
    assert told == [True]
    assert not saved.coordinator.saving(), "it was made"


def test_a_job_that_goes_on_after_its_last_checkpoint_makes_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer, made = Saved(tmp_path).checkpointer, list[str]()
    monkeypatch.setattr(checkpointer, "make", lambda: made.append(threading.current_thread().name))
    checkpointer.start()
    checkpointer.make_last()
    assert made == ["MainThread"]
    assert not checkpointer.kept_last(), "it is made now, and they are to ask again"
    wait_until(checkpointer.kept_last, PATIENCE_S, lambda: "the last one is never made")
    checkpointer.close()
    assert made == ["MainThread", "psrpc-checkpointer"]


def test_another_seed_is_another_order(tmp_path: Path) -> None:
    Saved(tmp_path).train(3)
    with pytest.raises(CheckpointError, match="of a job with seed 0, whose samples have another"):
        Saved(tmp_path, seed=1).resume()


def own_step(worker: Worker) -> None:
    """A step with data of the worker's own."""
    worker.model(torch.ones(4, 3)).square().sum().backward()
    worker.step()


class Half(Saved):
    """Two workers step; one dies with its last push on the first of two servers only."""

    def __init__(self, folder: Path, *, leased: bool = False) -> None:
        super().__init__(folder, servers=2, workers=2, mode=Asynchronous())
        self._leased = leased
        self._pushed, self._told = threading.Event(), threading.Event()

    def leave_half(self, then: Callable[[], None]) -> None:
        """Let worker 1 die so; worker 0, which lives, does `then` after that."""

        def train(worker: Worker) -> None:
            if worker.rank == 1:
                self._push_half(worker)
                self._pushed.set()
                assert self._told.wait(20)
                return
            own_step(worker)
            assert self._pushed.wait(20)
            try:
                self.coordinator.lose(1, "its connection was closed")
                then()
            finally:
                self._told.set()

        self.run(train)

    def _push_half(self, worker: Worker) -> None:
        if self._leased:
            next(iter(worker.batches(DATA, 4)))
        else:
            own_step(worker)
        progress = worker._progress
        key = progress.next_key()
        push = Push(progress.worker, progress.clock, key, 1, void=True)
        LoopbackLink(self.local.services[0]).call(push).wait(20)
        first, second = (server_of(s).core.ledger for s in self.local.services)  # type: ignore[arg-type]
        assert (key in first, key in second) == (True, False)


def ledgers_of(folder: Path) -> list[Any]:
    (found,) = (open_checkpoint(each) for each in folder.iterdir())
    return [part.facts["ledger"] for part in found.manifest.parts]


def test_what_the_dead_left_on_one_server_holds_no_checkpoint_up(tmp_path: Path) -> None:
    half = Half(tmp_path)
    half.leave_half(half.checkpointer.make)
    first, second = ledgers_of(tmp_path)
    assert first != second, "its last step stays uneven"
    Saved(tmp_path, 1).resume()
    again = Saved(tmp_path, 2, workers=2, mode=Asynchronous())
    again.resume()

    stepped, made = threading.Event(), threading.Event()

    def train(worker: Worker) -> None:
        own_step(worker)
        if worker.rank == 1:
            stepped.set()
            assert made.wait(20)
            return
        assert stepped.wait(20)
        try:
            again.checkpointer.make()
        finally:
            made.set()

    again.run(train)
    assert len(list(tmp_path.iterdir())) == 2, "the number of who is dead is another's now"


def test_a_lease_on_some_servers_is_kept_as_it_is(tmp_path: Path) -> None:
    """Each server knows what it has, so with as many it is made again where it lacks."""
    half = Half(tmp_path, leased=True)
    half.leave_half(half.checkpointer.make)
    first, second = ledgers_of(tmp_path)
    assert first != second
    with pytest.raises(CheckpointError, match="none of the checkpoints in"):
        Saved(tmp_path, 1).resume()
    again = Saved(tmp_path, 2)
    again.resume()
    report = again.train()
    assert report.samples_counted_once


def test_of_checkpoints_for_fewer_servers_an_older_even_one_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Saved(tmp_path, 2).train(3)
    half = Half(tmp_path, leased=True)
    half.checkpointer.start()
    half.leave_half(half.checkpointer.make)
    half.checkpointer.close()
    assert len(list(tmp_path.iterdir())) == 2
    Saved(tmp_path, 1).resume()
    assert "can only be gone on from with as many" in capsys.readouterr().err


def only_on_server_1(worker: int) -> Callable[[PutPart], PutPart]:
    """Has an own step of `worker` in the part of server 1, and in no other."""

    def alter(put: PutPart) -> PutPart:
        part: Any = put.part
        ledger = Ledger.from_json(part["facts"]["ledger"])
        ledger.record(UpdateKey(Stream(StreamKind.WORKER, worker, 0), 9))
        facts = {**part["facts"], "ledger": ledger.to_json()}
        return replace(put, part={**part, "facts": facts}) if put.worker else put

    return alter


def test_what_a_living_worker_has_on_one_server_is_no_checkpoint(tmp_path: Path) -> None:
    """One server heard of the cut too late, and went beyond it."""
    saved = Saved(tmp_path, 2)
    saved.alter = only_on_server_1(0)
    with pytest.raises(CheckpointError, match="its parts are of different updates"):
        saved.train(3)
    assert list(tmp_path.iterdir()) == []
    saved = Saved(tmp_path, 2)
    saved.alter = only_on_server_1(7)
    saved.train(3)
    assert len(list(tmp_path.iterdir())) == 1, "nobody has that number"


def test_parts_of_different_updates_are_no_checkpoint(tmp_path: Path) -> None:
    """One server heard of the cut too late, and went beyond it."""
    saved = Saved(tmp_path, 2)

    def alter(put: PutPart) -> PutPart:
        part: Any = put.part
        facts = {**part["facts"], "ledger": Ledger().to_json()}
        return replace(put, part={**part, "facts": facts}) if put.worker else put

    saved.alter = alter
    with pytest.raises(CheckpointError, match="its parts are of different updates"):
        saved.train(3)
    assert list(tmp_path.iterdir()) == []
