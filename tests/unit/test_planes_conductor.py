"""What a server's conductor keeps of the rounds that it has played."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from psrpc.messages import Push, Stepped, Stream, StreamKind, UpdateKey
from psrpc.modes import Reduction
from psrpc.planes.base import Answer
from psrpc.planes.conductor import Conductor, Cue, Enter

WAIT_S = 10.0


class Server:
    """Steps whenever all of `workers` have come."""

    def __init__(self, workers: Sequence[int]) -> None:
        self.workers = list(workers)
        self.snapshots: list[weakref.ref[torch.Tensor]] = []

    def gather(self, pushes: Sequence[Push]) -> list[tuple[Push, bool]] | None:
        complete = {push.worker for push in pushes} >= set(self.workers)
        return [(push, True) for push in pushes] if complete else None

    def wants(self, push: Push) -> bool:
        return True

    def repeat(self, push: Push, answer: Answer) -> bool:
        return False

    def join(self, pushes: Sequence[Push], total: object, answers: Sequence[Answer]) -> bool:
        weights = torch.zeros(3)
        self.snapshots.append(weakref.ref(weights))
        for answer in answers:
            answer((Stepped(1, 1, 0), [weights]))
        return True


def test_nothing_is_kept_of_workers_that_have_ended() -> None:
    server, spread = Server([0, 1]), threading.Semaphore(0)
    group = SimpleNamespace(reduce=lambda tensor: None, broadcast=lambda tensor: spread.release())
    groups: Any = SimpleNamespace(
        keep=lambda numbers: None, join=lambda *_: group, close=lambda: None
    )
    staging: Any = SimpleNamespace(
        clear=lambda: None, sums=[], total=list, weights=[], spread=None, put=lambda *_: None
    )
    service: Any = None
    conductor = Conductor(service, server, lambda error: None, staging, groups, Reduction.MEAN)
    conductor.start()
    # Each round is of a worker that stays, and of another one than before.
    for number in range(1, 4):
        server.workers = [0, number]
        cues = [threading.Event() for _ in server.workers]
        for worker, cue in zip(server.workers, cues, strict=True):
            push = Push(worker, number, UpdateKey(Stream(StreamKind.WORKER, worker, 0), number), 1)

            def answer(payload: Any, cue: threading.Event = cue) -> None:
                assert isinstance(payload[0], Cue)
                cue.set()

            conductor.handle(Enter(worker, push, number), (), answer)
        assert all(cue.wait(WAIT_S) for cue in cues)
        assert spread.acquire(timeout=WAIT_S)
    conductor.close()  # which waits for its thread
    assert len(server.snapshots) == 3
    assert [snapshot() for snapshot in server.snapshots] == [None] * 3
    assert conductor._parts == {}
