"""`psrpc.run` says all that is wrong with its arguments at once, before anything starts."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import psrpc
from psrpc.errors import ConfigError


def problems_of(patch: pytest.MonkeyPatch, world_size: int = 3, **settings: Any) -> list[str]:
    """What one of a launcher's processes is told about these arguments."""
    place = {"RANK": 0, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in place.items():
        patch.setenv(name, str(value))
    patch.setattr(sys, "excepthook", sys.excepthook)
    sgd = partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(ConfigError) as caught:
        psrpc.run(lambda worker: None, model=nn.Linear(2, 2), optimizer=sgd, **settings)
    return list(caught.value.problems)


def test_all_wrong_names_and_numbers_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = problems_of(
        monkeypatch,
        reduction="max",
        nonfinite="hide",
        plane="pigeon",
        backend="mpi",
        device="tpu",
        servers=3,
        mode="sync",
        collective_timeout_s=0.0,
        start_timeout_s=-1.0,
    )
    beginnings = (
        "reduction must be one of mean, sum, not 'max'",
        "nonfinite must be one of error, skip, not 'hide'",
        "plane must be one of auto, rpc, shm, collective, not 'pigeon'",
        "device must be one of auto, cpu, cuda, not 'tpu'",
        "backend must be one of gloo, nccl, not 'mpi'",
        "3 processes cannot hold 3 servers and a worker",
        "mode must be psrpc.Synchronous(), psrpc.Asynchronous() or ",
        "the collective timeout must be above 0 s, not 0.0",
        "the start timeout must be above 0 s, not -1.0",
    )
    assert len(problems) == len(beginnings)
    for problem, beginning in zip(problems, beginnings, strict=True):
        assert problem.startswith(beginning)


def test_settings_that_contradict_each_other_are_reported_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mode = psrpc.BoundedStaleness(0)
    problems = problems_of(
        monkeypatch, servers="1", mode=mode, overlap=True, plane="collective", backend="gloo"
    )
    assert [problem.split(":")[0] for problem in problems] == [
        "servers must be a whole number, not '1'",
        "overlap makes weights one step older, which this mode forbids",
        "the collective plane is for synchronous training, not for BoundedStaleness(staleness=0)",
    ]


def test_a_backend_without_its_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems_of(monkeypatch, backend="gloo") == [
        'backend belongs to the collective plane, not to auto: give plane="collective" as well, '
        "or no backend"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here are GPUs")
def test_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = problems_of(monkeypatch, device="cuda", plane="collective", backend="nccl")
    assert [problem.split(":")[0] for problem in problems] == [
        "backend nccl needs a GPU of its own for every process, servers included",
        "device is cuda, but torch finds no usable GPU here",
    ]


def test_arguments_of_another_kind_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as found:
        psrpc.run(
            None,  # type: ignore[arg-type]
            model=3,  # type: ignore[arg-type]
            optimizer=torch.optim.SGD,
            seed="x",  # type: ignore[arg-type]
            checkpointing="folder",  # type: ignore[arg-type]
            elastic={},  # type: ignore[arg-type]
            hosts="node1",  # type: ignore[arg-type]
        )
    assert list(found.value.problems) == [
        "train must be a function, which is called with a Worker, not None",
        "model must be a torch.nn.Module, or a class or function that makes one, not 3",
        "seed must be a whole number, not 'x'",
        "checkpointing must be a psrpc.Checkpointing, not 'folder'",
        "elastic must be a psrpc.Elastic, not {}",
        "hosts must be a psrpc.Hosts, not 'node1'",
    ]


def test_what_a_checkpoint_cannot_be_made_of() -> None:
    wrong = psrpc.Checkpointing(None, resume=None)  # type: ignore[arg-type]
    assert wrong.problems() == [
        "a checkpoint's directory needs a name",
        'resume is "never", "auto" or a folder, not None',
    ]
