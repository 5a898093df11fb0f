"""What the launcher says of a job that ended: the reason, not its consequences."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import pytest

from psrpc.errors import ModelError, PeerLostError, PsrpcError
from psrpc.launch import _STOP_S, _cause

NAMES = ("server 0", "worker 0", "worker 1")
ROUND = PeerLostError("collective plane: a round was not finished")
KILLED = "worker 1 was killed (SIGKILL; did the host run out of memory?), so the job was ended"


@dataclass(frozen=True)
class Ended:
    """How torch's launcher describes a process that failed."""

    exitcode: int
    timestamp: float


def said(confessed: PsrpcError | None, *ended: tuple[int, int, float]) -> str:
    """What is said of processes that ended: rank, exit code, seconds."""
    failures = {rank: Ended(code, 1000.0 + at_s) for rank, code, at_s in ended}
    return str(_cause(confessed, failures, NAMES))


@pytest.mark.parametrize("late_s", [_STOP_S + 0.5, 30.0])
def test_a_stopped_worker_that_torch_killed_in_the_end_is_not_the_reason(late_s: float) -> None:
    after = [(1, 1, 0.0), (0, -signal.SIGTERM, 0.1), (2, -signal.SIGKILL, late_s)]
    assert said(ROUND, *after) == str(ROUND)


def test_a_killed_worker_is_the_reason_for_what_its_peers_lost() -> None:
    after = [(2, -signal.SIGKILL, 0.0), (1, 1, 0.2), (0, -signal.SIGTERM, 0.3)]
    assert said(ROUND, *after) == KILLED
    assert said(None, *after) == KILLED


def test_what_a_process_confessed_is_the_reason_for_all_others() -> None:
    mine = ModelError("this model is no good")
    assert said(mine, (2, 1, 0.0), (1, -signal.SIGKILL, 0.1)) == str(mine)


def test_without_a_word_the_first_exit_code_is_told() -> None:
    after = [(1, 7, 0.0), (0, -signal.SIGTERM, 0.1)]
    assert said(None, *after) == "worker 0 ended with code 7, so the job was ended"
