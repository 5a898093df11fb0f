"""What the kernel says of processes, in /proc. One that has gone has used nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contender import BenchmarkError

_MB = 1e6
_KILL_S = 10.0


@dataclass(frozen=True)
class Memory:
    """Resident memory in MB (1e6 bytes).

    `rss` counts every page that is mapped here; `pss` divides a page by the number
    of processes that map it; `uss` counts those that nobody else maps.
    """

    rss: float
    pss: float
    uss: float


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    memory: Memory
    threads: int
    files: int


def cpu_s(pid: int) -> float:
    """The processor time that a process has used so far; ticks of 10 ms."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / os.sysconf("SC_CLK_TCK")


def waits(pid: int) -> int:
    """How often the threads of a process have stopped to wait for something, and woken up."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def parent(pid: int) -> int | None:
    """The process that started another one."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def host_cpu_s() -> float:
    """The processor time that was used on this host since its boot, by whomever.

    What a hypervisor gave to other guests is in it: it was not there for us either.
    """
    user, nice, system, _, _, hard, soft, stolen = _cpu_line()[:8]
    return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")


def footprint(pid: int) -> Footprint:
    """What a living process holds now."""
    kinds: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        kind, amount, _ = line.split(maxsplit=2)
        kinds[kind.rstrip(":")] = int(amount) * 1024 / _MB
    private = kinds["Private_Clean"] + kinds["Private_Dirty"]
    return Footprint(
        Memory(kinds["Rss"], kinds["Pss"], private),
        len(os.listdir(f"/proc/{pid}/task")),
        len(os.listdir(f"/proc/{pid}/fd")),
    )


def marked(variable: str) -> list[int]:
    """All processes with this `NAME=value` in their environment: a mark that children inherit."""
    return [pid for pid, environment in _environments() if variable.encode() in environment]


def kill_marked(variable: str) -> None:
    """Kill all with this mark, until none is seen: one may just be being born.

    Raises BenchmarkError when some cannot be killed.
    """
    deadline = time.monotonic() + _KILL_S
    while left := marked(variable):
        if time.monotonic() > deadline:
            raise BenchmarkError(f"processes {left} cannot be killed")
        tell(left, signal.SIGKILL)
        time.sleep(0.01)


def tell(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _cpu_line() -> list[int]:
    with Path("/proc/stat").open() as file:
        return [int(field) for field in file.readline().split()[1:]]


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                yield int(folder.name), (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
