"""The limit: workers that compute their gradients and talk to nobody."""

from __future__ import annotations

import torch

from benchmarks.contenders.job import Job
from benchmarks.member import Stage
from benchmarks.processes import Part
from benchmarks.workload import Workload

NAME = "limit"


def contender(workload: Workload, workers: int) -> Job:
    """As many processes as the others have workers."""
    parts = [Part(play, (workload, rank, workers)) for rank in range(workers)]
    return Job(NAME, parts)


def play(stage: Stage, workload: Workload, rank: int, workers: int) -> None:
    """Be one worker."""
    torch.set_num_threads(1)
    stage.play(workload.gradients(workload.model(), rank, workers))
