"""`python -m psrpc ...` in forks of one process that has imported it, each in a network namespace.

Importing torch takes seconds of a core, which every process of every turn would spend again.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import proc
from benchmarks.contender import BenchmarkError
from benchmarks.machine import ROOT

_MARK = "PSRPC_BENCHMARK_NURSERY"
_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_SHOWN = 4000


@dataclass(frozen=True)
class Child:
    """What a fork shall be: the arguments of `python -m psrpc`, and where."""

    namespace: str
    arguments: Sequence[str]
    variables: Mapping[str, str]


class Nursery:
    """The harness's side; a context manager that leaves no process."""

    def __init__(self) -> None:
        self._marking = uuid.uuid4().hex
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Nursery:
        # What torch reads when it is imported.
        early = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.nursery"],
            cwd=ROOT,
            env=os.environ | early | {_MARK: self._marking},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def run(self, children: Sequence[Child], longest_s: float) -> None:
        """Run these, all at once, to their end. Blocks.

        Raises BenchmarkError with what the first of them wrote that did not end well, and after
        the deadline.
        """
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([asdict(child) for child in children]) + "\n")
            process.stdin.flush()
        except OSError:
            raise BenchmarkError("the process that starts others is gone") from None
        ready, _, _ = select.select([process.stdout], [], [], longest_s)
        answer = process.stdout.readline() if ready else ""
        if not answer:
            raise BenchmarkError(f"not done within {longest_s:g} s")
        for code, said in json.loads(answer):
            if code:
                raise BenchmarkError(f"exit code {code}\n{said}")

    def clear(self) -> None:
        """Kill whatever runs, this side's own process too."""
        proc.kill_marked(f"{_MARK}={self._marking}")


def main() -> None:
    """Be the process that forks: a line of children comes, a line of their ends goes."""
    from psrpc import interpreter

    interpreter.prepare()
    _die_with(os.getppid())
    for line in sys.stdin:
        running = [_fork(child) for child in json.loads(line)]
        ends = [_end(*each) for each in running]
        ends = [(0 if code == interpreter.DONE else code, said) for code, said in ends]
        print(json.dumps(ends), flush=True)


def _fork(child: dict[str, Any]) -> tuple[int, Any]:
    written = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the child is dead
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid, written
    try:
        _die_with(parent)
        os.environ.update(child["variables"])
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(written.fileno(), 2)
        _enter(child["namespace"])
        from psrpc import interpreter

        interpreter.become("-m", "psrpc", *child["arguments"])
    except SystemExit as leaving:
        sys.stderr.flush()
        os._exit(leaving.code if isinstance(leaving.code, int) else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(1)


def _end(pid: int, written: Any) -> tuple[int, str]:
    _, status = os.waitpid(pid, 0)
    with written:
        written.seek(0)
        return os.waitstatus_to_exitcode(status), written.read()[-_SHOWN:]


def _enter(namespace: str) -> None:
    with open(f"/run/netns/{namespace}", "rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter namespace {namespace}")


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
