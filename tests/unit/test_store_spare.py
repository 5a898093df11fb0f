"""A job does not import torch's compiler, which costs each process seconds and 150 MB."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from psrpc.store.spare import plain_step, spare_dynamo
from tests.processes import ROOT

JOB = """
import sys
from functools import partial
import torch
from psrpc.job import Job
from psrpc.testing.local import LocalJob

def train(worker):
    for _ in range(3):
        worker.model(torch.ones(3, 4)).sum().backward()
        worker.step()

for kind in sys.argv[1:]:
    optimizer = partial(getattr(torch.optim, kind), lr=0.1)
    LocalJob(Job(1, 2), lambda: torch.nn.Linear(4, 2), optimizer).run(train)
    print(kind, "torch._dynamo" in sys.modules)
"""


def test_common_optimizers_do_without_the_compiler() -> None:
    kinds = ["SGD", "Adam", "AdamW", "Adagrad"]
    words = [sys.executable, "-c", JOB, *kinds]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [f"{kind} False" for kind in kinds]


def test_nothing_changes_where_the_compiler_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.optim.Optimizer.add_param_group.__wrapped__
    before = dict(vars(hidden))
    monkeypatch.setitem(sys.modules, "torch._dynamo", sys)
    spare_dynamo()
    assert vars(hidden) == before


def test_a_plain_step_is_the_classes_own() -> None:
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    for parameter in (ours, theirs):
        parameter.grad = torch.arange(3.0)
    torch.optim.Adam([theirs], lr=0.1).step()
    with torch.no_grad():
        plain_step(torch.optim.Adam)(torch.optim.Adam([ours], lr=0.1))
    assert torch.equal(ours, theirs)
