"""A job's settings, and what is said of wrong ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from psrpc.errors import ConfigError
from psrpc.job import Backend, Checkpointing, Job, PlaneChoice
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.planes import groups
from psrpc.settings import parse


@pytest.mark.parametrize("mode", [Asynchronous(), BoundedStaleness(0), BoundedStaleness(4)])
def test_the_collective_plane_is_for_synchronous_training(mode: Mode) -> None:
    with pytest.raises(ConfigError, match="is for synchronous training, not for ") as caught:
        Job(2, mode=mode, plane=PlaneChoice.COLLECTIVE).check()
    assert len(caught.value.problems) == 1
    Job(2, plane=PlaneChoice.COLLECTIVE).check()
    Job(2, mode=mode).check()


def test_backup_workers_leave_some_to_wait_for() -> None:
    with pytest.raises(ConfigError, match="2 backup workers leave none of 2 workers"):
        Job(2, mode=Synchronous(2)).check()
    Job(3, mode=Synchronous(2)).check()


def test_backup_workers_and_the_collective_plane() -> None:
    with pytest.raises(ConfigError, match="cannot do without backup workers"):
        Job(2, mode=Synchronous(1), plane=PlaneChoice.COLLECTIVE).check()


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Job(0, 0, start_timeout_s=0, collective_timeout_s=-1).check()
    assert len(caught.value.problems) == 4


def test_a_worker_and_a_server_must_have_the_same_backend() -> None:
    assert Job(1).settings != Job(1, backend=Backend.NCCL).settings


def test_nccl_needs_a_gpu_for_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    groups.check(Backend.GLOO, 8)
    groups.check(Backend.NCCL, 3)
    with pytest.raises(ConfigError, match="4 processes run here and torch finds 3 GPUs"):
        groups.check(Backend.NCCL, 4)
    assert groups.device_of(Backend.NCCL, 2) == torch.device("cuda", 2)


def test_only_servers_without_backups_go_back_to_a_checkpoint() -> None:
    plan = Checkpointing("folder", revived=True)
    assert Job(1, checkpointing=plan).goes_back
    assert not Job(1).goes_back
    assert not Job(1, checkpointing=replace(plan, revived=False)).goes_back
    assert not Job(1, checkpointing=replace(plan, every_s=None)).goes_back, "there will be none"
    assert not Job(1, checkpointing=plan, replicas=1).goes_back
    assert parse({"checkpoint_dir": "folder"}, isolate=True).goes_back
    assert not parse({"checkpoint_dir": "folder"}).goes_back
    assert parse({"checkpoint_dir": "folder", "replicas": "1"}, isolate=True).checkpointing
