"""What is told on stderr holds nobody up."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

import pytest

from psrpc.saying import say


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe's reading end, and its other one."""
    reads, writes = os.pipe()
    with suppress(OSError), os.fdopen(writes, "w") as stderr:
        yield reads, stderr


def fill(pipe: TextIO) -> int:
    """Write until it takes no more; returns how much that was."""
    filled = 0
    os.set_blocking(pipe.fileno(), False)
    with suppress(BlockingIOError):
        while True:
            filled += os.write(pipe.fileno(), b"x" * 4096)
    os.set_blocking(pipe.fileno(), True)
    return filled


def test_lines_are_told_at_once(pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    reads, stderr = pipe
    monkeypatch.setattr(sys, "stderr", stderr)
    say("one")
    assert os.read(reads, 100) == b"psrpc: one\n"
    os.close(reads)


def test_a_reader_that_is_slow_holds_nobody_up_and_misses_nothing(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, stderr = pipe
    monkeypatch.setattr(sys, "stderr", stderr)
    filled = fill(stderr)
    for number in range(50):
        say(f"line {number}")
    wanted = b"x" * filled + b"".join(b"psrpc: line %d\n" % number for number in range(50))
    read = b""
    while len(read) < len(wanted):
        read += os.read(reads, 1 << 16)
    assert read == wanted
    say("at once again")
    assert os.read(reads, 100) == b"psrpc: at once again\n"
    os.close(reads)


def test_a_fork_begins_anew_while_its_parent_waits(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, stderr = pipe
    monkeypatch.setattr(sys, "stderr", stderr)
    fill(stderr)
    say("later")
    pid = os.fork()
    if pid == 0:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        say("in the fork")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    while b"psrpc: later\n" not in os.read(reads, 1 << 17):
        pass
    os.close(reads)


@pytest.mark.parametrize("closed", [False, True])
def test_a_reader_that_is_gone_is_no_error(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    reads, stderr = pipe
    monkeypatch.setattr(sys, "stderr", stderr)
    os.close(reads)
    say("to nobody")
    if closed:
        with suppress(BrokenPipeError):  # what is in its buffer
            stderr.close()
    say("to nobody")


def test_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    say("to nobody")
