"""The threads of a runner: few while they are quick, more while they are stuck."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

LOOK_AGAIN_S = 0.02
_AT_FIRST = 4
_MOST = 1_000
_IDLE_S = 5.0

Job = Callable[[], None]


class Threads:
    """Runs jobs, each on some thread. Nobody who waits for others' jobs can stop them for good.

    `take` and `look` are called by one thread. While jobs wait and none is begun, each `look` lets
    there be twice as many threads.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._idle = 0
        self._begun = 0
        self._seen = -1

    def take(self, job: Job) -> None:
        """Run this as soon as a thread is free."""
        self._jobs.put(job)
        with self._lock:
            add = self._count < _AT_FIRST and self._idle < self._jobs.qsize()
        if add:
            self._add()

    def due(self) -> float | None:
        """How soon to `look`, in seconds; None if nothing waits."""
        return None if self._jobs.empty() else LOOK_AGAIN_S

    def look(self) -> None:
        """See to it that jobs which wait are begun."""
        waiting = self._jobs.qsize()
        now_s = time.monotonic()
        if not waiting:
            self._seen = -1
            return
        if self._seen != self._begun:
            self._seen, self._since_s = self._begun, now_s
        elif now_s - self._since_s >= LOOK_AGAIN_S:
            self._since_s = now_s
            for _ in range(min(max(self._count, 1), waiting, _MOST - self._count)):
                self._add()

    def _add(self) -> None:
        with self._lock:
            self._count += 1
        threading.Thread(target=self._run, name="psrpc-actors", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            try:
                job = self._jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                job = None
            with self._lock:
                self._idle -= 1
                if job is None:
                    self._count -= 1
                    return
                self._begun += 1
            job()
