"""A contender that trains while its workers are killed, one every few seconds."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from contextlib import suppress
from pathlib import Path

from benchmarks import proc
from benchmarks.contender import BenchmarkError, Figure, Plan, Sample
from benchmarks.machine import ROOT

RATE = Figure("samples/s")
TRAINED = Figure("training, s", 1)
ACCURACY = Figure("test accuracy %", 2)
ONCE = Figure("samples once (1) or not (0)")
KILLED = Figure("workers lost")
REDONE = Figure("updates made again")
FIGURES = (RATE, TRAINED, ACCURACY, ONCE, KILLED, REDONE)

_MARK = "PSRPC_BENCHMARK_CHAOS"
_LONGEST_S = 600.0


class Chaos:
    """`psrpc train --isolate OPTIONS`; with `every_s` a worker dies by kill -9 that often."""

    def __init__(self, name: str, options: list[str], servers: int, every_s: float | None) -> None:
        self.name = name
        self._options = options
        self._servers = servers
        self._every_s = every_s
        self._marking = f"{_MARK}={uuid.uuid4().hex}"
        self._random = random.Random(0)

    def start(self) -> None:
        """Do nothing: a turn is a whole job."""

    def run(self, plan: Plan) -> Sample:
        """Train once, whatever the plan."""
        command = [sys.executable, "-m", "psrpc", "train", "--isolate", "--json", "-"]
        process = subprocess.Popen(
            [*command, "--servers", str(self._servers), *self._options],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | dict([self._marking.split("=")]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        over = threading.Event()
        killer = threading.Thread(target=self._kill_now_and_then, args=(over,), daemon=True)
        killer.start()
        try:
            out, err = process.communicate(timeout=_LONGEST_S)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{self.name}: not done within {_LONGEST_S:g} s") from None
        finally:
            over.set()
            killer.join()
            self.stop()
            process.kill()
            process.wait()
        if process.returncode != 0:
            raise BenchmarkError(f"{self.name}: exit code {process.returncode}\n{err}")
        if not out.strip():
            raise BenchmarkError(f"{self.name}: the worker that reports was killed after training")
        results = json.loads(out)
        return Sample(
            {
                RATE.name: results["samples_per_s"],
                TRAINED.name: results["train_s"],
                ACCURACY.name: 100.0 * (results["test_accuracy"] or 0.0),
                ONCE.name: float(results["samples_counted_once"]),
                KILLED.name: results["workers_lost"],
                REDONE.name: results["duplicates_dropped"],
            }
        )

    def stop(self) -> None:
        """See `Contender`."""
        proc.kill_marked(self._marking)

    def _kill_now_and_then(self, over: threading.Event) -> None:
        if self._every_s is None:
            return
        while not self._workers() and not over.wait(0.2):
            pass
        while not over.wait(self._every_s):
            workers = self._workers()
            if workers:
                with suppress(ProcessLookupError):
                    os.kill(self._random.choice(workers), signal.SIGKILL)

    def _workers(self) -> list[int]:
        """The processes that are workers now; not their agents, which have no rank."""
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with suppress(OSError):
                words = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                env = dict(word.split("=", 1) for word in words if "=" in word)
                place = json.loads(env.get("PSRPC_PLACE", "{}"))
                marked = self._marking in words and "RANK" in env
                if marked and place.get("rank", -1) >= self._servers:
                    found.append(int(folder.name))
        return found
