"""Ctrl-C, SIGTERM and kill -9: the job ends soon, says so, and leaves no process."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults import endless
from tests.processes import PATIENCE_S, SOON_S, Bench, descriptors, kill_if_there, wait_until

_WAITED_FOR = ("--dead-after", "1000")  # whoever stands still


@pytest.mark.parametrize("options", ["", "--mode sync --plane collective"])
def test_ctrl_c_at_a_terminal(bench: Bench, options: str) -> None:
    command = endless.start(bench, *options.split())
    os.killpg(command.process.pid, signal.SIGINT)
    ended = command.finish()
    assert (ended.code, ended.lines) == (130, [])
    assert ended.took_s < SOON_S
    command.leaves_nothing()


def test_ctrl_c_while_a_worker_waits_without_processor_time(bench: Bench) -> None:
    command = endless.start(bench, "--mode", "sync", "--plane", "shm", *_WAITED_FOR, workers=2)
    _waits_without_processor_time(bench, [command.rank(rank) for rank in range(3)])
    command.process.send_signal(signal.SIGINT)
    ended = command.finish()
    assert (ended.code, ended.lines) == (130, [])
    assert ended.took_s < SOON_S
    command.leaves_nothing()


def test_waiting_over_rpc_costs_no_processor_time(bench: Bench) -> None:
    ranks = endless.ranks(bench, "--mode", "sync", "--plane", "rpc", *_WAITED_FOR)
    _waits_without_processor_time(bench, [ranks.pid(rank) for rank in range(3)])


def _waits_without_processor_time(bench: Bench, pids: Sequence[int]) -> None:
    """Stop worker 1: a held worker and a server with nothing to do use under 1% of a core each.

    What others take of a core while one of them has it counts as theirs, so they may be looked at
    again: whoever polls does so all the time.
    """
    *waiting, stopped = pids
    os.kill(stopped, signal.SIGSTOP)
    _wait_for_a_standstill(bench, rank=1)
    seen: list[list[float]] = []

    def idle() -> bool:
        seen.append(_shares(waiting))
        return max(seen[-1]) < 0.01

    wait_until(idle, 30, lambda: f"shares of a core: {seen}")


def _shares(pids: Sequence[int]) -> list[float]:
    """The shares of a core that processes use, over a few seconds."""
    before = [_cpu_s(pid) for pid in pids]
    began_s = time.monotonic()
    time.sleep(4.0)
    took_s = time.monotonic() - began_s
    after = [_cpu_s(pid) for pid in pids]
    return [(now - earlier) / took_s for now, earlier in zip(after, before, strict=True)]


def _cpu_s(pid: int) -> float:
    """The time for which a process's threads have run, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _wait_for_a_standstill(bench: Bench, rank: int) -> None:
    seen: list[tuple[float, int]] = [(time.monotonic(), -1)]

    def still() -> bool:
        count = endless.read(bench, rank)
        if count != seen[-1][1]:
            seen.append((time.monotonic(), count))
        return time.monotonic() - seen[-1][0] > 0.5

    wait_until(still, 30, lambda: f"rank {rank} goes on: {seen[-1]}")


def test_sigterm(bench: Bench) -> None:
    command = endless.start(bench)
    command.process.send_signal(signal.SIGTERM)
    ended = command.finish()
    assert ended.code != 0
    assert len(ended.lines) <= 1
    assert ended.took_s < SOON_S
    command.leaves_nothing()


@pytest.mark.parametrize("options", [(), ("--isolate",)])
def test_kill_9_of_the_launcher(bench: Bench, options: tuple[str, ...]) -> None:
    # Not the test's own folder: paths of Unix sockets end at 107 characters.
    with tempfile.TemporaryDirectory(prefix="p") as folder:
        command = endless.start(bench, *options, TMPDIR=folder)
        command.process.send_signal(signal.SIGKILL)
        command.finish()
        command.leaves_nothing()
        assert os.listdir(folder) == []


def test_kill_9_of_everything_leaves_no_shared_memory(bench: Bench) -> None:
    files = set(os.listdir("/dev/shm"))
    command = endless.start(bench, "--plane", "shm")
    inodes = set(descriptors(command.rank(0)).values())
    ours = {name for inode, name in _doors().items() if f"socket:[{inode}]" in inodes}
    assert ours, "the server has a door"
    for pid in command.pids():
        kill_if_there(pid)
    command.leaves_nothing()
    # The kernel closes a process's files a moment after its memory is gone.
    wait_until(lambda: not ours & set(_doors().values()), SOON_S, lambda: f"left: {ours}")
    # Other tests have files there for a moment.
    new = lambda: set(os.listdir("/dev/shm")) - files  # noqa: E731
    wait_until(lambda: not new(), PATIENCE_S, lambda: f"left: {new()}")


def _doors() -> dict[str, str]:
    """The names of the abstract sockets of psrpc on this machine, by inode."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return {fields[-2]: fields[-1] for fields in lines if fields[-1].startswith("@psrpc-")}


@pytest.mark.parametrize(("rank", "who"), [(0, "server 0"), (2, "worker 1")])
def test_kill_9_of_a_node(bench: Bench, rank: int, who: str) -> None:
    command = endless.start(bench, workers=2)
    os.kill(command.rank(rank), signal.SIGKILL)
    ended = command.finish()
    assert ended.code == 1
    *more, line = ended.lines
    assert who in line
    assert [each.partition(" (")[0] for each in more] == [f"psrpc: {who} is lost"] * len(more)
    assert ended.took_s < SOON_S
    command.leaves_nothing()
