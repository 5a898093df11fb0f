"""Commands run as a user would run them, watched from outside: what they show, what they leave."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PSRPC = (sys.executable, "-m", "psrpc")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
MARK = "PSRPC_TEST_MARK"
# Far beyond what anything here takes: only a hang gets there.
PATIENCE_S = 100.0
# Far below the half minute that torch gives a process to end; a busy machine needs some of it.
SOON_S = 10.0

# What another launcher, or this test's own, may have left in the environment.
_FOREIGN = re.compile(r"RANK|WORLD_SIZE|LOCAL_|MASTER_|GROUP_|ROLE_|TORCH|PSRPC_|TP_")


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str
    took_s: float

    @property
    def lines(self) -> list[str]:
        """What it wrote to stderr, without progress."""
        return [line for line in self.err.splitlines() if line and not is_progress(line)]


def is_progress(line: str) -> bool:
    """Whether a line of stderr is the progress of a running job."""
    return bool(re.fullmatch(r"(.*\] {2})?step \d+ .*staleness \d+(-\d+)?", line))


class Command:
    """A process in a session of its own, and all that it starts."""

    def __init__(self, words: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
        self._mark = uuid.uuid4().hex
        self._out = folder / f"{self._mark}.out"
        self._err = folder / f"{self._mark}.err"
        self._began = time.monotonic()
        env = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
        env |= {MARK: self._mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        # A launcher that is killed leaves its temporary folder.
        env |= {"TMPDIR": str(folder), **variables}
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                words,
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def finish(self, within_s: float = PATIENCE_S) -> Finished:
        """Wait for the command to end by itself, and say how it did."""
        began = time.monotonic()
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {within_s} s:\n{self.shown()}")
        took_s = time.monotonic() - began
        return Finished(code, self._out.read_text(), self._err.read_text(), took_s)

    def shown(self) -> str:
        """All that it has written so far."""
        return f"{self._out.read_text()}\n{self._err.read_text()}"

    def pids(self) -> dict[int, dict[str, str]]:
        """Every living process of this command, with its environment."""
        alive = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                env = _environment(folder)
                if env.get(MARK) == self._mark:
                    alive[int(folder.name)] = env
        return alive

    def rank(self, rank: int) -> int:
        """The process id of a rank."""
        ours = [pid for pid, env in self.pids().items() if env.get("RANK") == str(rank)]
        assert len(ours) == 1, f"rank {rank} is {ours}"
        return ours[0]

    def leaves_nothing(self, within_s: float = SOON_S) -> None:
        """Fail unless all of its processes are gone soon."""
        wait_until(lambda: not self.pids(), within_s, lambda: f"left: {sorted(self.pids())}")

    def kill(self) -> None:
        """End whatever is left."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Ranks:
    """The processes of a job that no torchrun started."""

    command: Command
    folder: Path
    count: int

    def pid(self, rank: int) -> int:
        """The process id of a rank."""
        return int((self.folder / f"{rank}.pid").read_text())

    def finish(self, within_s: float = PATIENCE_S) -> list[Finished]:
        """Wait for all to end by themselves; none is left."""
        all_of_them = self.command.finish(within_s)
        assert (all_of_them.code, all_of_them.err) == (0, "")
        self.command.leaves_nothing()
        return [self._finished(rank, all_of_them.took_s) for rank in range(self.count)]

    def _finished(self, rank: int, took_s: float) -> Finished:
        code, out, err = ((self.folder / f"{rank}.{n}").read_text() for n in ("code", "out", "err"))
        return Finished(int(code), out, err, took_s)


@dataclass
class Bench:
    """A folder in which commands are run; none of their processes survives a test."""

    folder: Path

    def __post_init__(self) -> None:
        self._commands: list[Command] = []

    def write(self, name: str, text: str) -> Path:
        """Put a file of the user's into the folder."""
        path = self.folder / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def start(self, *words: str, **variables: str) -> Command:
        """Start a command and return at once."""
        command = Command(words, self.folder, variables)
        self._commands.append(command)
        return command

    def train(self, options: str, **variables: str) -> Finished:
        """Run `psrpc train OPTIONS` to its end."""
        return self.run(*PSRPC, "train", *options.split(), **variables)

    def torchrun(self, options: str, **variables: str) -> Finished:
        """Run `torchrun OPTIONS` to its end."""
        return self.run(*TORCHRUN, *options.split(), **variables)

    def run(self, *words: str, **variables: str) -> Finished:
        """Run a command to its end; it must leave no process."""
        command = self.start(*words, **variables)
        ended = command.finish()
        command.leaves_nothing()
        return ended

    def ranks(self, *words: str, count: int, **variables: str) -> Ranks:
        """Start a script as a launcher would that only sets variables."""
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", **variables}
        words = (sys.executable, str(ROOT / "tests" / "forking.py"), *words)
        command = self.start(*words, **shared, MASTER_PORT=str(free_port()))
        return Ranks(command, self.folder, count)

    def clear(self) -> None:
        """End all commands."""
        for command in self._commands:
            command.kill()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A folder to run commands in."""
    # A shell that starts the tests in the background lets them ignore Ctrl-C, and commands inherit
    # that; a handler they do not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    bench = Bench(tmp_path)
    yield bench
    bench.clear()
    signal.signal(signal.SIGINT, before)


def wait_until(
    happens: Callable[[], object], within_s: float, otherwise: Callable[[], str]
) -> None:
    """Look again and again until something is so; fail with `otherwise` if it takes too long."""
    deadline = time.monotonic() + within_s
    while not happens():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within_s} s; {otherwise()}")
        time.sleep(0.02)


def _environment(folder: Path) -> dict[str, str]:
    try:
        text = (folder / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
