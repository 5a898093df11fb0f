"""A contender that trains while its workers or servers are killed, one every few seconds."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from benchmarks.contender import BenchmarkError, Figure, Plan, Sample
from benchmarks.contenders.killer import Killer, isolated_servers, isolated_workers
from benchmarks.contenders.program import Program

RATE = Figure("samples/s")
TRAINED = Figure("training, s", 1)
ACCURACY = Figure("test accuracy %", 2)
FINISHED = Figure("finished %")
LOST = Figure("samples lost")
DOUBLED = Figure("samples doubled")
KILLED = Figure("kills")
FIGURES = (RATE, TRAINED, ACCURACY, FINISHED, LOST, DOUBLED, KILLED)

_LONGEST_S = 600.0


@dataclass(frozen=True)
class Course:
    """What all contenders train: so many epochs of a data set, with plain SGD."""

    dataset: str
    data_root: str | None
    mode: str
    workers: int
    epochs: int
    batch_size: int
    lr: float

    def options(self) -> list[str]:
        """The same for `psrpc train`."""
        root = [] if self.data_root is None else ["--data-root", self.data_root]
        named = {
            "dataset": self.dataset,
            "model": "convnet",
            "mode": self.mode,
            "reduction": "sum" if self.mode == "sync" else "mean",
            "workers": self.workers,
            "epochs": self.epochs,
            "batch-size": self.batch_size,
            "optimizer": "sgd",
            "momentum": 0,
            "lr": self.lr,
            "threads": 1,
            "warmup": 0,
        }
        return [
            *root,
            *(word for name, value in named.items() for word in (f"--{name}", str(value))),
        ]


@dataclass(frozen=True)
class Blows:
    """Whom kill -9 meets how often: nobody without `every_s`."""

    every_s: float | None = None
    servers: bool = False  # else workers


class Chaos:
    """`psrpc train --isolate` while processes die.

    The first worker, which reports the results, is spared.
    """

    def __init__(
        self, name: str, course: Course, servers: int, blows: Blows, *, replicas: int = 0
    ) -> None:
        self.name = name
        counts = ["--servers", str(servers), "--replicas", str(replicas)]
        self._options = [*counts, *course.options()]
        self._serving = servers * (1 + replicas)
        self._blows = blows
        self._program = Program(name, _LONGEST_S)

    def start(self) -> None:
        """Do nothing: a turn is a whole job."""

    def run(self, plan: Plan) -> Sample:
        """Train once, whatever the plan."""
        killer = Killer(self._victims, self._blows.every_s)
        command = [sys.executable, "-m", "psrpc", "train", "--isolate", "--json", "-"]
        out = self._program.run([*command, *self._options], {}, killer)
        if not out.strip():
            raise BenchmarkError(f"{self.name}: nobody has reported results")
        if self._blows.every_s is not None and not killer.killed:
            raise BenchmarkError(f"{self.name}: nobody was killed; give more --epochs")
        results = json.loads(out)
        return Sample(
            {
                RATE.name: results["samples_per_s"],
                TRAINED.name: results["train_s"],
                ACCURACY.name: 100.0 * (results["test_accuracy"] or 0.0),
                FINISHED.name: 100.0,
                LOST.name: results["samples_lost"],
                DOUBLED.name: results["samples_doubled"],
                KILLED.name: len(killer.killed),
            }
        )

    def stop(self) -> None:
        """See `Contender`."""
        self._program.kill()

    def _victims(self) -> list[int]:
        if self._blows.servers:
            return isolated_servers(self._program.marking, self._serving)
        return isolated_workers(self._program.marking, self._serving + 1)
