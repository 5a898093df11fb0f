"""Commands run as a user would run them, watched from outside: what they show, what they leave."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What Python is given to run these.
PSRPC = ("-m", "psrpc")
TORCHRUN = ("-m", "torch.distributed.run")
MARK = "PSRPC_TEST_MARK"
# Far beyond what anything here takes: only a hang gets there.
PATIENCE_S = 100.0
# Far below the half minute that torch gives a process to end; a busy machine needs some of it.
SOON_S = 10.0

# For what a killed torchrun leaves; short, since paths of Unix sockets end at 107 characters.
TEMPORARY = tempfile.TemporaryDirectory(prefix="p")

# The secret of all jobs that tests start, in place of the user's own.
SECRET_FILE = Path(TEMPORARY.name) / "secret"
SECRET_FILE.touch(0o600)
SECRET_FILE.write_text(uuid.uuid4().hex)

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
    """Whether a line of stderr is the progress of a running job, or of one that begins slowly."""
    if re.match(r"psrpc: (\d+ of \d+ have come in|.* has waited) \d+ s", line):
        return True
    return bool(re.fullmatch(r"(.*\] {2})?step \d+ .*staleness \d+(-\d+)?", line))


class Process(Protocol):
    """The part of `subprocess.Popen` that is used here."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...


class Forks:
    """Runs Python's arguments in forks of one process that has imported torch (see `forking`)."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "forking.py"), str(theirs.fileno())],
                env=clean_environment() | {"PYTHONPATH": str(ROOT)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def fork(
        self, words: Sequence[str], folder: Path, variables: Mapping[str, str], out: Path, err: Path
    ) -> Fork:
        """Run `words` in a session of its own."""
        request = {"words": words, "variables": variables, "folder": str(folder)}
        return Fork(self, self.ask({**request, "out": str(out), "err": str(err)}))

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Send a request, and return its answer."""
        self._requests.send(json.dumps(request).encode())
        return json.loads(self._requests.recv(1 << 10))

    def close(self) -> None:
        """Let it end by itself."""
        self._requests.close()
        self._process.wait(PATIENCE_S)


class Fork:
    """A process that `Forks` started."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self.pid = pid
        self._forks = forks
        self._code: int | None = None

    def poll(self) -> int | None:
        """See `subprocess.Popen`."""
        if self._code is None:
            self._code = self._forks.ask({"pid": self.pid})
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """See `subprocess.Popen`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """See `subprocess.Popen`."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Command:
    """A process in a session of its own, and all that it starts.

    `words` are Python's arguments: for a fork, or without `forks` for a new interpreter.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        variables: Mapping[str, str],
        forks: Forks | None = None,
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._out = folder / f"{self._mark}.out"
        self._err = folder / f"{self._mark}.err"
        env = {**clean_environment(), MARK: self._mark, "PYTHONPATH": str(ROOT)}
        env |= {"TMPDIR": TEMPORARY.name, **variables}
        self.process = (
            forks.fork(words, folder, env, self._out, self._err)
            if forks
            else self._execute(words, folder, env)
        )

    def _execute(self, words: Sequence[str], folder: Path, env: Mapping[str, str]) -> Process:
        with self._out.open("w") as out, self._err.open("w") as err:
            return subprocess.Popen(
                [sys.executable, *words],
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
        written = [path.read_text() if path.exists() else "" for path in (self._out, self._err)]
        return "\n".join(written)

    def pids(self) -> dict[int, dict[str, str]]:
        """Every living process of this command, with the environment that it was started in."""
        alive = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                env = _environment(folder)
                # A fork has not been started in an environment of its own.
                if env.get(MARK) == self._mark or _session(folder) == self.process.pid:
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
            kill_if_there(pid)
        self.process.wait()


@dataclass(frozen=True)
class Ranks:
    """The processes of a job that no torchrun started."""

    commands: list[Command]
    words: tuple[str, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)

    def pid(self, rank: int) -> int:
        """The process id of a rank."""
        return self.commands[rank].process.pid

    def over(self, rank: int) -> bool:
        """Whether a rank has ended."""
        return self.commands[rank].process.poll() is not None

    def shown(self) -> str:
        """All that they have written so far."""
        return "\n".join(command.shown() for command in self.commands)

    def finish(self, within_s: float = PATIENCE_S) -> list[Finished]:
        """Wait for all to end by themselves; none is left."""
        began = time.monotonic()
        ended = [command.finish(within_s) for command in self.commands]
        took_s = time.monotonic() - began
        for command in self.commands:
            command.leaves_nothing()
        return [replace(each, took_s=took_s) for each in ended]


@dataclass
class Bench:
    """A folder in which commands are run; none of their processes survives a test."""

    folder: Path
    forks: Forks

    def __post_init__(self) -> None:
        self._commands: list[Command] = []

    def write(self, name: str, text: str) -> Path:
        """Put a file of the user's into the folder."""
        path = self.folder / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def start(self, *words: str, fresh: bool = False, **variables: str) -> Command:
        """Run Python with these arguments, in a fork or a `fresh` interpreter; return at once."""
        command = Command(words, self.folder, variables, None if fresh else self.forks)
        self._commands.append(command)
        return command

    def train(self, options: str, **variables: str) -> Finished:
        """Run `psrpc train OPTIONS` to its end."""
        return self.run(*PSRPC, "train", *options.split(), **variables)

    def torchrun(self, options: str, **variables: str) -> Finished:
        """Run `torchrun OPTIONS` to its end."""
        return self.run(*TORCHRUN, *options.split(), **variables)

    def run(self, *words: str, fresh: bool = False, **variables: str) -> Finished:
        """Run Python with these arguments to the end; it must leave no process."""
        command = self.start(*words, fresh=fresh, **variables)
        ended = command.finish()
        command.leaves_nothing()
        return ended

    def ranks(self, *words: str, count: int, **variables: str) -> Ranks:
        """Run Python as a launcher would that only sets variables."""
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", **variables}
        shared.setdefault("MASTER_PORT", str(free_port()))
        commands = [self.start(*words, **shared, RANK=str(rank)) for rank in range(count)]
        return Ranks(commands, words, shared)

    def again(self, ranks: Ranks, rank: int) -> Command:
        """Start a rank once more, as the launcher of that one process would."""
        return self._add(ranks, RANK=str(rank))

    def joiner(self, ranks: Ranks, **variables: str) -> Command:
        """Start one more worker of a job that runs."""
        shared = ranks.shared
        place = {
            "rank": -1,
            "world_size": int(shared["WORLD_SIZE"]),
            "local_rank": 0,
            "local_world_size": int(shared["WORLD_SIZE"]),
            "address": shared["MASTER_ADDR"],
            "port": int(shared["MASTER_PORT"]),
            "agent_keeps_store": True,
            "job": "job/0",
        }
        return self._add(ranks, PSRPC_PLACE=json.dumps(place), **variables)

    def _add(self, ranks: Ranks, **variables: str) -> Command:
        command = self.start(*ranks.words, **ranks.shared, **variables)
        ranks.commands.append(command)
        return command

    def clear(self) -> None:
        """End all commands."""
        for command in self._commands:
            command.kill()


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Imports torch once for all commands."""
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def bench(tmp_path: Path, forks: Forks) -> Iterator[Bench]:
    """A folder to run commands in."""
    # A shell that starts the tests in the background lets them ignore Ctrl-C, and commands inherit
    # that; a handler they do not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    bench = Bench(tmp_path, forks)
    yield bench
    bench.clear()
    signal.signal(signal.SIGINT, before)


def wait_until(
    happens: Callable[[], object],
    within_s: float,
    otherwise: Callable[[], str],
    every_s: float = 0.02,
) -> None:
    """Look again and again until something is so; fail with `otherwise` if it takes too long."""
    deadline = time.monotonic() + within_s
    while not happens():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within_s} s; {otherwise()}")
        time.sleep(every_s)


def kill_if_there(pid: int) -> None:
    """End a process that may have ended meanwhile, as one does whose launcher has."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def descriptors(pid: int) -> dict[str, str]:
    """What the descriptors of a process are, by its own paths of them. It may be closing some."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[str(path)] = os.readlink(path)
    return found


def clean_environment() -> dict[str, str]:
    """This process's environment without what a launcher may have left there."""
    env = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    return {**env, "OMP_NUM_THREADS": "1", "PSRPC_SECRET_FILE": str(SECRET_FILE)}


def _session(folder: Path) -> int | None:
    """The session of a process; None if it is dead, though its parent may not know it yet."""
    try:
        state, _, _, session = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
    except OSError:
        return None
    return None if state in "ZX" else int(session)


def _environment(folder: Path) -> dict[str, str]:
    try:
        text = (folder / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)


def _ports() -> Iterator[int]:
    """Those of this process of pytest's, below the ones that kernels give out."""
    mine = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 6
    first, count = 26_000 + 1_000 * mine, 1_000
    return itertools.cycle([first + (os.getpid() + each) % count for each in range(count)])


_PORTS = _ports()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens, and that nobody else takes by chance."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the ports have no end")
