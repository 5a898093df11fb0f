"""Instants in processes that others start, written down in a file that the environment names.

Times are seconds since the host's boot, which is what the kernel knows of a process's
begin. `python -m benchmarks.marks torch` or `ray` is what `startup` compares with;
`benchmarks.marks:net` is a model for `psrpc train` that tells when it is built and used.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

FILE = "PSRPC_BENCHMARK_MARKS"
READY = "ready"
BEGAN, BUILT, FIRST, SECOND = "began", "built", "first", "second"


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
    from torch import Tensor, nn

    class Marked(nn.Sequential):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            if self.training and self.calls < 2:
                make((FIRST, SECOND)[self.calls])
                self.calls += 1
            logits: Tensor = super().forward(images)
            return logits

    make(BEGAN, began_s())
    make(BUILT)
    return Marked(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


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
