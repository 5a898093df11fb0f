"""PyTorch's DistributedDataParallel over Gloo: an all-reduce, and a step in every process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.contenders.job import Job
from benchmarks.member import Stage
from benchmarks.processes import Part
from benchmarks.workload import Workload

NAME = "DDP on Gloo"


def contender(workload: Workload, workers: int) -> Job:
    """As many processes as the others have workers; there is no server."""
    parts = [Part(play, (workload, rank, workers)) for rank in range(workers)]
    return Job(NAME, parts)


def play(stage: Stage, workload: Workload, rank: int, workers: int) -> None:
    """Be one worker. Gradients live in the buckets that are reduced, which saves a copy."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        model = DistributedDataParallel(workload.model(), gradient_as_bucket_view=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=workload.lr)
        gradients = workload.gradients(model, rank, workers, autograd=True)

        def step() -> None:
            gradients()
            optimizer.step()

        stage.play(step)
    finally:
        dist.destroy_process_group()
