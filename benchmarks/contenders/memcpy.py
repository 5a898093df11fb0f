"""Copying alone: what a step costs whose bytes only have to be moved."""

from __future__ import annotations

import torch

from benchmarks.contenders.job import Job
from benchmarks.member import Stage
from benchmarks.processes import Part


def name_of(processes: int) -> str:
    """What tables call it."""
    return f"memcpy, {processes} process{'' if processes == 1 else 'es'}"


def contender(size_bytes: int, processes: int) -> Job:
    """So many processes that copy at once. A step is two copies: gradients, and weights."""
    return Job(name_of(processes), [Part(play, (size_bytes,))] * processes)


def play(stage: Stage, size_bytes: int) -> None:
    """Copy between the same two places of memory, which are touched before."""
    torch.set_num_threads(1)
    source, target = torch.ones(size_bytes // 4), torch.ones(size_bytes // 4)

    def step() -> None:
        target.copy_(source)
        target.copy_(source)

    stage.play(step)
