"""Many hands: large work on memory, done in parts by as many threads as there are cores.

One core moves half of what this host's memory could; while a round is stepped and its weights
are written, the workers wait and leave the cores to the server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
Span = tuple[int, int]

_MOST = 4  # memory is busy with fewer
_pool: ThreadPoolExecutor | None = None


def spans(size: int, grain: int) -> list[Span]:
    """The numbers from 0 to `size`, cut into ranges [low, high) of `grain` or less."""
    return [(low, min(low + grain, size)) for low in range(0, size, grain)]


def spread(work: Callable[[int, int], T], parts: Sequence[Span]) -> list[T]:
    """Call `work(low, high)` for every part, on several threads; returns the results in order.

    Blocks until all calls have ended, then raises the error of one that failed.
    """
    hands = min(_count(), len(parts))
    if hands < 2:
        return [work(*part) for part in parts]
    share = -(-len(parts) // hands)
    shares = [parts[first : first + share] for first in range(0, len(parts), share)]
    others = [_threads().submit(_do, work, each) for each in shares[1:]]
    try:
        done = _do(work, shares[0])
    finally:
        wait(others)
    for other in others:
        done += other.result()
    return done


def _do(work: Callable[[int, int], T], parts: Sequence[Span]) -> list[T]:
    return [work(*part) for part in parts]


def _count() -> int:
    return min(len(os.sched_getaffinity(0)), _MOST)


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(_count() - 1, thread_name_prefix="psrpc-hand")
    return _pool


def _forget() -> None:
    """In a forked child, which has none of the threads."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget)
