"""A second host on this one: a network namespace of its own, and a wire to it. Needs root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.contender import BenchmarkError
from benchmarks.machine import ROOT

# Addresses for benchmarks of networks (RFC 2544): nobody else has them.
_NEAR, _FAR, _BITS = "198.18.77.1", "198.18.77.2", 30


@contextmanager
def far_side(port: int) -> Iterator[str]:
    """Run `hosts --serve` in a namespace; gives its address. All of it is gone afterwards."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise BenchmarkError(
            "a second network namespace needs root and iproute2; or run `hosts --serve ADDRESS` "
            "on one host and `hosts --connect ADDRESS` on another"
        )
    name, here, there = f"psb-{os.getpid()}", f"psbn{os.getpid()}", f"psbf{os.getpid()}"
    with ExitStack() as made:
        _ip("netns", "add", name)
        # The wire goes with the namespace that its other end is in.
        made.callback(_ip, "netns", "del", name)
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        _ip("addr", "add", f"{_NEAR}/{_BITS}", "dev", here)
        _ip("link", "set", here, "up")
        _ip("-n", name, "addr", "add", f"{_FAR}/{_BITS}", "dev", there)
        for device in (there, "lo"):
            _ip("-n", name, "link", "set", device, "up")
        command = [sys.executable, "-m", "benchmarks", "hosts", "--serve", _FAR]
        process = subprocess.Popen(
            ["ip", "netns", "exec", name, *command, "--port", str(port)],
            cwd=ROOT,
            # torch logs a warning of each connection that ends.
            env=os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR"},
            process_group=0,
        )
        made.callback(_end, process)
        yield _FAR


def interface_of(address: str) -> str:
    """The network interface that has this address. Raises BenchmarkError if none has."""
    for line in _ip("-o", "addr", "show").splitlines():
        fields = line.split()
        if fields[3].partition("/")[0] == address:
            return fields[1]
    raise BenchmarkError(f"no network interface of this host has the address {address}")


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10.0)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ip(*arguments: str) -> str:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise BenchmarkError("iproute2 is needed: there is no command `ip`") from None
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"ip {' '.join(arguments)}: {error.stderr.strip()}") from error
    return done.stdout
