"""Instants in processes that others start, written down in a file that the environment names.

Times are seconds since the host's boot, which is what the kernel knows of a process's
begin. `python -m benchmarks.marks torch` or `ray` is what `startup` compares with;
`benchmarks.marks:net` is a model for `psrpc train` that tells when it is built and used first,
`benchmarks.marks:stepping` one that tells of every step.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

FILE = "PSRPC_BENCHMARK_MARKS"
READY = "ready"
BEGAN, BUILT, FIRST, SECOND = "began", "built", "first", "second"
STEP = "step"


@dataclass(frozen=True)
class Mark:
    """What happened, where and when."""

    name: str
    pid: int
    at_s: float


def now_s() -> float:
    """Seconds since the host's boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def make(name: str, at_s: float | None = None) -> None:
    """Write a mark down: one line, so that processes do not mix theirs up."""
    line = f"{name} {os.getpid()} {now_s() if at_s is None else at_s}\n"
    with Path(os.environ[FILE]).open("a") as file:
        file.write(line)


def read(file: Path) -> list[Mark]:
    """All marks in the file, in the order of writing."""
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [Mark(name, int(pid), float(at_s)) for name, pid, at_s in lines]


def began_s() -> float:
    """When this process began; ticks of 10 ms."""
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def net() -> nn.Module:
    """A model for the digits, marked at its building and before its first two steps."""
    return _marked((FIRST, SECOND))


def stepping() -> nn.Module:
    """A model for 8 x 8 images, marked at its building and before every step, in a file of its own.

    The file is the named one with `-PID` behind it, so that whoever looks need not read it all.
    """
    os.environ[FILE] = f"{os.environ[FILE]}-{os.getpid()}"
    return _marked(itertools.repeat(STEP))


def _marked(names: Iterable[str]) -> nn.Module:
    from torch import Tensor, nn

    left = iter(names)

    class Marked(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            if self.training and (name := next(left, None)):
                make(name)
            logits: Tensor = super().forward(images)
            return logits

    make(BEGAN, began_s())
    make(BUILT)
    return Marked(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def many() -> Dataset[Any]:
    """A million samples for `stepping`: an epoch that does not end."""
    import torch
    from torch.utils.data import TensorDataset

    count = 1_000_000
    images, labels = torch.ones(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    return TensorDataset(images.expand(count, 1, 8, 8), labels.expand(count))


def main(what: str, folder: str) -> None:
    """Be ready as soon as torch is imported, or Ray has run its first task."""
    if what == "torch":
        import torch  # noqa: F401

        make(READY)
        return
    from benchmarks.contenders.ray_example import start

    ray = start(folder, store_mb=200, num_cpus=3)
    ray.get(ray.remote(_nothing).remote())
    make(READY)
    ray.shutdown()


def _nothing() -> None:
    """A first task."""


if __name__ == "__main__":
    main(*sys.argv[1:])
