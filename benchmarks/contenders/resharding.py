"""A job that goes from one server to two and back while it trains; and, as a program, that job."""

from __future__ import annotations

import functools
import json
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.contender import BenchmarkError, Figure, Plan, Sample
from benchmarks.contenders.program import Program

STALL = Figure("ms without a step, 1 to 2", 0)
HELD = Figure("ms of that until in force", 0)
BACK = Figure("ms without a step, 2 to 1", 0)
USUAL = Figure("ms usual step", 1)
FIGURES = (STALL, HELD, BACK, USUAL)
OPTIMIZERS = ("SGD", "momentum", "Adam")

_LONGEST_S = 110.0
_LOOK_AGAIN_S = 0.02
_SERVERS = 1


class Resharding:
    """Two workers, and gradients that cost next to nothing, so that all is moving and stepping."""

    def __init__(
        self, name: str, size_bytes: int, plane: str, mode: str, optimizer: str, folder: Path
    ) -> None:
        self.name = name
        self._folder = folder
        self._job = ["-m", "benchmarks.contenders.resharding", str(size_bytes)]
        self._job += [plane, mode, optimizer, str(folder)]
        self._program = Program(name, _LONGEST_S)

    def start(self) -> None:
        """See `Contender`."""
        for path in self._folder.iterdir():
            path.unlink()

    def run(self, plan: Plan) -> Sample:
        """Go to two servers and back, `plan.steps` steps apart."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=3", f"--master-port={port}"]
        variables = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        with ExitStack() as started:
            job = started.enter_context(
                self._program.open([sys.executable, *torchrun, *self._job], variables)
            )
            self._await_steps(job, 0, plan.steps)
            for layout, servers in ((1, 2), (2, 1)):
                words = ["-m", "psrpc", "scale", f"127.0.0.1:{port}", "--servers", str(servers)]
                started.enter_context(
                    self._program.open([sys.executable, *words, "--", *self._job], variables)
                )
                self._await_steps(job, layout, plan.steps)
            (self._folder / "enough").touch()
            out, err = job.communicate(timeout=_LONGEST_S)
        if job.returncode:
            raise BenchmarkError(f"{self.name}: exit code {job.returncode}\n{out}{err}")
        return self._sample(json.loads(out))

    def stop(self) -> None:
        """See `Contender`."""
        self._program.kill()

    def _sample(self, report: dict[str, Any]) -> Sample:
        there, back = report["reshards"]
        return Sample(
            {
                STALL.name: 1e3 * there["stall_s"],
                HELD.name: 1e3 * there["held_s"],
                BACK.name: 1e3 * back["stall_s"],
                USUAL.name: 1e3 * report["usual_s"],
            }
        )

    def _await_steps(self, job: Any, layout: int, steps: int) -> None:
        """Wait until the first worker has made so many steps in a layout."""
        path = self._folder / f"layout-{layout}"
        deadline = time.monotonic() + _LONGEST_S
        while not path.exists() or path.stat().st_size < steps:
            if job.poll() is not None or time.monotonic() > deadline:
                job.kill()
                raise BenchmarkError(
                    f"{self.name}: no steps in layout {layout}\n{job.stderr.read()}"
                )
            time.sleep(_LOOK_AGAIN_S)


def main() -> None:
    """Be one process of the job."""
    import torch

    import psrpc
    from benchmarks.contenders.ours import MODES
    from benchmarks.workload import Cheap

    size_bytes, plane, mode, optimizer, name = sys.argv[1:]
    folder, work = Path(name), Cheap(int(size_bytes) // 4)
    taken: list[float] = []

    def train(worker: psrpc.Worker) -> None:
        make = work.gradients(worker.model, worker.rank, worker.num_workers, cleared=True)
        while not (folder / "enough").exists():
            began = time.perf_counter()
            make()
            worker.step()
            taken.append(time.perf_counter() - began)
            if worker.rank == 0:
                with (folder / f"layout-{worker.follower.layout}").open("a") as steps:
                    steps.write(".")

    factories = {
        "SGD": functools.partial(torch.optim.SGD, lr=work.lr),
        "momentum": functools.partial(torch.optim.SGD, lr=work.lr, momentum=0.9),
        "Adam": functools.partial(torch.optim.Adam, lr=work.lr),
    }
    result = psrpc.run(
        train,
        model=work.model,
        optimizer=factories[optimizer],
        mode=MODES[mode],
        plane=plane,
        servers=_SERVERS,
        device="cpu",
        threads=1,
    )
    if result.is_main and result.report is not None:
        usual_s = sorted(taken)[len(taken) // 2]
        changes = [vars(change) for change in result.report.reshards]
        print(json.dumps({"reshards": changes, "usual_s": usual_s}))


if __name__ == "__main__":
    main()
