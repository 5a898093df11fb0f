"""What a number was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Machine:
    """Hardware, versions (name, number) and commit; `load` as it was before the run."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    load: float
    versions: tuple[tuple[str, str], ...]
    commit: str


def describe(packages: Sequence[str]) -> Machine:
    """Look at this machine now; `packages` are distributions whose versions matter."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30,
        system=f"{platform.system()} {platform.release()}",
        load=os.getloadavg()[0],
        versions=(("python", platform.python_version()), *((p, _version(p)) for p in packages)),
        commit=_commit(),
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _commit() -> str:
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "psrpc", "benchmarks")
    return f"{commit or 'unknown'}{' with local changes' if changed else ''}"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
