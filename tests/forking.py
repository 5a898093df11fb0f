"""A launcher that only sets variables, and imports torch once for all: SCRIPT [ARGUMENT ...].

Forks WORLD_SIZE processes that run the script. What rank 1 writes lands in `1.out`
and `1.err`, its process id in `1.pid`, and in the end its exit code in `1.code`.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import psrpc.trainer  # Everything that a script may need.

assert psrpc


def be(rank: int) -> None:
    """Turn into that rank."""
    os.environ["RANK"] = str(rank)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    Path(f"{rank}.new").write_text(str(os.getpid()))
    os.replace(f"{rank}.new", f"{rank}.pid")
    sys.argv = sys.argv[1:]
    sys.path[0] = os.getcwd()
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    """Fork, and wait for all."""
    ranks: dict[int, int] = {}
    for rank in range(int(os.environ["WORLD_SIZE"])):
        pid = os.fork()
        if pid == 0:
            return be(rank)
        ranks[pid] = rank
    while ranks:
        pid, status = os.wait()
        Path(f"{ranks.pop(pid)}.code").write_text(str(os.waitstatus_to_exitcode(status)))


main()
