"""Kills a process every few seconds (kill -9), while something else goes on."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmarks import marks, proc

_LOOK_AGAIN_S = 0.2
_NAME = "psrpc rank "


class Killer:
    """A context manager. `find` says who may be killed now; without `every_s` nobody is.

    The first kill comes `every_s` after somebody was found first. Whom it meets is drawn from
    a seed. `killed` are the instants (seconds since the host's boot) and process ids.
    """

    def __init__(self, find: Callable[[], list[int]], every_s: float | None) -> None:
        self.killed: list[tuple[float, int]] = []
        self._find = find
        self._every_s = every_s
        self._random = random.Random(0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        if self._every_s is None:
            return
        while not self._find() and not self._over.wait(_LOOK_AGAIN_S):
            pass
        while not self._over.wait(self._every_s):
            victims = self._find()
            if victims:
                victim = self._random.choice(sorted(victims))
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    self.killed.append((marks.now_s(), victim))


def isolated(marking: str) -> dict[int, int]:
    """The processes (not their agents) of a `psrpc train --isolate`, and their ranks.

    They tell it by their names, for as forks they have no environment of their own in `/proc`.
    """
    ranks: dict[int, int] = {}
    for pid in proc.marked(marking):
        with suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name.startswith(_NAME):
                ranks[pid] = int(name.removeprefix(_NAME))
    return ranks


def isolated_workers(marking: str, first: int) -> list[int]:
    """Those of rank `first` or above."""
    return [pid for pid, rank in isolated(marking).items() if rank >= first]


def isolated_servers(marking: str, end: int) -> list[int]:
    """Those of a rank below `end`, the longest alive first: of a pair that is the primary."""
    servers = [pid for pid, rank in isolated(marking).items() if rank < end]
    return sorted(servers, key=_born)


def _born(pid: int) -> int:
    """When a process was started, in ticks; one that is gone comes last."""
    try:
        # The name in brackets may have spaces.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return sys.maxsize
