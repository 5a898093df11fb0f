"""Ctrl-C, SIGTERM and kill -9: the job ends soon, says so, and leaves no process."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults import endless
from tests.processes import SOON_S, Bench, wait_until


@pytest.mark.parametrize("options", ["", "--mode sync --plane collective"])
def test_ctrl_c_at_a_terminal(bench: Bench, options: str) -> None:
    command = endless.start(bench, *options.split())
    os.killpg(command.process.pid, signal.SIGINT)
    ended = command.finish()
    assert (ended.code, ended.lines) == (130, [])
    assert ended.took_s < SOON_S
    command.leaves_nothing()


def test_ctrl_c_while_a_worker_waits_for_a_stopped_one(bench: Bench) -> None:
    command = endless.start(bench, "--mode", "sync")
    os.kill(command.rank(2), signal.SIGSTOP)
    _wait_for_a_standstill(bench, rank=1)
    command.process.send_signal(signal.SIGINT)
    ended = command.finish()
    assert (ended.code, ended.lines) == (130, [])
    assert ended.took_s < SOON_S
    command.leaves_nothing()


def _wait_for_a_standstill(bench: Bench, rank: int) -> None:
    seen: list[tuple[float, int]] = [(time.monotonic(), -1)]

    def still() -> bool:
        count = endless.read(bench, rank)
        if count != seen[-1][1]:
            seen.append((time.monotonic(), count))
        return time.monotonic() - seen[-1][0] > 1

    wait_until(still, 30, lambda: f"rank {rank} goes on: {seen[-1]}")


def test_sigterm(bench: Bench) -> None:
    command = endless.start(bench)
    command.process.terminate()
    ended = command.finish()
    assert ended.code != 0
    assert len(ended.lines) <= 1
    assert ended.took_s < SOON_S
    command.leaves_nothing()


def test_kill_9_of_the_launcher(bench: Bench) -> None:
    command = endless.start(bench)
    command.process.kill()
    command.finish()
    command.leaves_nothing()


@pytest.mark.parametrize(("rank", "who"), [(0, "server 0"), (2, "worker 1")])
def test_kill_9_of_a_node(bench: Bench, rank: int, who: str) -> None:
    command = endless.start(bench)
    os.kill(command.rank(rank), signal.SIGKILL)
    ended = command.finish()
    assert ended.code == 1
    assert len(ended.lines) == 1
    assert who in ended.lines[0]
    assert ended.took_s < SOON_S
    command.leaves_nothing()
