"""The limit: workers that compute their gradients and talk to nobody."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.contenders.job import Job
from benchmarks.member import Stage
from benchmarks.processes import Part
from benchmarks.workload import Workload


def contender(workload: Workload, workers: int) -> Job:
    """As many processes as the others have workers."""
    parts = [Part(play, (workload, rank, workers)) for rank in range(workers)]
    return Job("limit", parts)


def play(stage: Stage, workload: Workload, rank: int, workers: int) -> None:
    """Be one worker."""
    torch.set_num_threads(1)
    model, batches = workload.model(), workload.batches(rank, workers)

    def step() -> None:
        images, labels = next(batches)
        F.cross_entropy(model(images), labels).backward()
        model.zero_grad()

    stage.play(step)
