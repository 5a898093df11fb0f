"""A contender that trains while its workers are killed, one every few seconds."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from benchmarks.contender import BenchmarkError, Figure, Plan, Sample
from benchmarks.contenders.killer import Killer, isolated_workers
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


class Chaos:
    """`psrpc train --isolate`; with `every_s` a worker dies by kill -9 that often.

    The first worker, which reports the results, is spared.
    """

    def __init__(self, name: str, course: Course, servers: int, every_s: float | None) -> None:
        self.name = name
        self._options = ["--servers", str(servers), *course.options()]
        self._first = servers + 1  # the first rank that may be killed
        self._every_s = every_s
        self._program = Program(name, _LONGEST_S)

    def start(self) -> None:
        """Do nothing: a turn is a whole job."""

    def run(self, plan: Plan) -> Sample:
        """Train once, whatever the plan."""
        killer = Killer(self._victims, self._every_s)
        command = [sys.executable, "-m", "psrpc", "train", "--isolate", "--json", "-"]
        out = self._program.run([*command, *self._options], {}, killer)
        if not out.strip():
            raise BenchmarkError(f"{self.name}: nobody has reported results")
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
        return list(isolated_workers(self._program.marking, self._first))
