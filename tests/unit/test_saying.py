"""What is told on stderr holds nobody up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

import pytest

from psrpc.saying import hushed, say, unlogged


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


LOG = """\
[W1130 04:49:37.050931360 tensorpipe_agent.cpp:917] RPC agent for worker1 encountered error
[rank3]:[E1130 04:49:37.051232429 socket.cpp:1012] [c10d] Exception in task: EPIPE: broken pipe
Exception raised from handleException at /pytorch/rref_context.cpp:111 (most recent call first):
frame #0: c10::Error::Error(c10::SourceLocation) + 0x9d (0x7f6c2eeb460d in libc10.so)
<omitting python frames>
frame #9: <unknown function> + 0x10e3853 (0x7f6babae3853 in libtorch_python.so)

[W1130 06:16:31.117559976 rref_context.cpp:161] Detected RRef Leaks during shutdown.
Leaking RRef GloballyUniqueId(created_on=0, local_id=4)
Leaking RRef GloballyUniqueId(created_on=0, local_id=0)

"""


def test_what_torch_logs_is_known_by_its_form() -> None:
    assert unlogged(LOG) == ""
    assert unlogged(f"one\n{LOG}two\n\n{LOG}") == "one\ntwo\n\n"
    assert unlogged(f"{LOG}frame #7 of the film\n") == "frame #7 of the film\n"
    assert unlogged("step 3  [W]\rstep 4") == "step 3  [W]\rstep 4"


MEANWHILE = """
import os, sys, threading
from psrpc.saying import hushed, say

def others():
    say("a worker has come")
    os.write(2, b"the user's own\\n")

thread = threading.Thread(target=others)
with hushed():
    os.write(2, sys.argv[1].encode())
    thread.start()
    thread.join()
    if sys.argv[2:]:
        raise LookupError
"""


@pytest.mark.parametrize("fails", [(), ("fails",)])
def test_what_others_write_meanwhile_is_written_afterwards(fails: tuple[str, ...]) -> None:
    words = [sys.executable, "-c", MEANWHILE, LOG, *fails]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == len(fails)
    first, second, *traceback = ended.stderr.splitlines()
    assert (first, second) == ("psrpc: a worker has come", "the user's own")
    assert traceback[-1:] == ["LookupError"][: len(fails)]


def test_a_closed_stderr_is_no_fault() -> None:
    kept = os.dup(2)
    os.close(2)
    try:
        with hushed():
            pass
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(2)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
