"""`psrpc train` on several virtual hosts with links of a given rate: worker steps per second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from benchmarks.contender import RATE, BenchmarkError, Plan, Sample
from benchmarks.namespaces import Fleet, deal
from benchmarks.nursery import Child, Nursery

_LONGEST_S = 120.0
_PORT = 7919
WORKERS = 3
MODES = {
    "sync": ["--mode", "sync"],
    "bounded": ["--mode", "bounded"],
    "async": ["--mode", "async"],
    "collective": ["--mode", "sync", "--plane", "collective"],
}


def net() -> nn.Module:
    """A model of 1.0 MB, for images of 28 x 28."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 320), nn.ReLU(), nn.Linear(320, 10))


class Apart:
    """One server, on the first host, and three workers, dealt out to `fleet`'s hosts."""

    def __init__(self, name: str, mode: str, fleet: Fleet, folder: Path, nursery: Nursery) -> None:
        self.name = name
        self._mode, self._fleet, self._nursery = mode, fleet, nursery
        self._result = folder / "apart.json"

    def start(self) -> None:
        """Do nothing: every turn is a job."""

    def run(self, plan: Plan) -> Sample:
        """Train for `plan.steps` steps of each worker, start-up not counted."""
        self._result.unlink(missing_ok=True)
        seats = [0, *deal(WORKERS, len(self._fleet.names))]
        # Ranks follow hosts: the server first, then the first host's workers.
        seats.sort()
        children = [
            Child(self._fleet.names[seat], self._words(plan), self._variables(rank, seats))
            for rank, seat in enumerate(seats)
        ]
        try:
            self._nursery.run(children, _LONGEST_S)
        except BenchmarkError as error:
            raise BenchmarkError(f"{self.name}: {error}") from None
        found = json.loads(self._result.read_text(encoding="utf-8"))
        return Sample({RATE.name: found["worker_steps_per_s"]})

    def stop(self) -> None:
        """See `Contender`. What runs goes with the nursery."""

    def _words(self, plan: Plan) -> list[str]:
        train = ["train", *MODES[self._mode], "--quiet", "--threads", "1"]
        train += ["--dataset", "synthetic", "--model", f"{__name__}:net", "--batch-size", "64"]
        return [*train, "--steps", str(plan.steps), "--json", str(self._result)]

    def _variables(self, rank: int, seats: Sequence[int]) -> dict[str, str]:
        seat = seats[rank]
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(seats)),
            "LOCAL_RANK": str(rank - seats.index(seat)),
            "LOCAL_WORLD_SIZE": str(seats.count(seat)),
            "MASTER_ADDR": self._fleet.addresses[0],
            "MASTER_PORT": str(_PORT),
            # torch asks for the names of all addresses, and nobody answers here.
            "RES_OPTIONS": "timeout:1 attempts:1",
        }
