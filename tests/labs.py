"""Virtual hosts and a virtual SLURM cluster on this machine, made by scripts that lie beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

VARIABLE = "PSRPC_TEST_LAB"


def script(name: str) -> Path:
    """The lab's script of this name. Skips the test where it is not, or cannot do its work."""
    named = os.environ.get(VARIABLE)
    parents = Path(__file__).resolve().parents
    folders = [Path(named)] if named else [each / "shared" / "lab" for each in parents]
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is None:
        pytest.skip(f"no {name} here: set {VARIABLE} to the folder that contains it")
    if os.geteuid() != 0:
        pytest.skip(f"{name} needs root, to make namespaces")
    if shutil.which("tc") is None:
        pytest.skip(f"{name} needs iproute2, with tc")
    return found


@dataclass(frozen=True)
class Lab:
    """Some hosts, node1, node2, ..., by the name of their lab."""

    netlab: Path
    name: str

    def host(self, number: int) -> dict[str, str]:
        """What puts a command of a `Bench` onto a host."""
        return {"PSRPC_TEST_HOST": f"{self.name}/node{number}"}

    def set(self, *words: object) -> str:
        """Give netlab a command: cut node2, delay node1 50, ..."""
        command = [str(self.netlab), "-l", self.name, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def reset(self) -> None:
        """Let all links be as good as they were."""
        for host, link in json.loads(self.set("list", "--json")).items():
            for kind in ("delay", "loss", "rate"):
                if link[kind]:
                    self.set(kind, host, 0)
            if link["state"] != "up":
                self.set("heal", host)


@contextmanager
def hosts(count: int) -> Iterator[Lab]:
    """So many hosts, for as long as the block lasts. Skips the test where there can be none."""
    lab = Lab(script("netlab"), f"psrpc-{os.getpid()}")
    up = subprocess.run(
        [str(lab.netlab), "-l", lab.name, "up", str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    if up.returncode != 0:
        pytest.skip(f"no virtual hosts here: {up.stderr.strip()}")
    try:
        yield lab
    finally:
        lab.set("down")
