"""A second host on this one: a network namespace of its own, and a wire to it. Needs root."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.contender import BenchmarkError
from benchmarks.machine import ROOT

# Addresses for benchmarks of networks (RFC 2544): nobody else has them.
_fleets = itertools.count()
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


@dataclass(frozen=True)
class Fleet:
    """Virtual hosts: namespaces by name, and their addresses."""

    names: tuple[str, ...]
    addresses: tuple[str, ...]


def deal(count: int, hosts: int) -> list[int]:
    """Which host each of `count` things is on, dealt out in turn."""
    return [number % hosts for number in range(count)]


@contextmanager
def fleet(count: int, rate_mbit: int) -> Iterator[Fleet]:
    """So many hosts on one switch, each with a link of `rate_mbit` megabits a second each way.

    They are network namespaces; all is gone afterwards. Raises BenchmarkError without root.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        raise BenchmarkError(
            "virtual hosts need root and iproute2; between two real ones there are `hosts --serve "
            "ADDRESS` and `hosts --connect ADDRESS`"
        )
    mine = f"{os.getpid()}-{next(_fleets)}"
    switch = f"psbs-{mine}"
    names = tuple(f"psb{number}-{mine}" for number in range(count))
    addresses = tuple(f"198.18.78.{number + 1}" for number in range(count))
    with ExitStack() as made:
        _namespace(switch, made)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        _ip("-n", switch, "link", "set", "br0", "up")
        for number, (name, address) in enumerate(zip(names, addresses, strict=True)):
            _namespace(name, made)
            port = f"p{number}"
            _ip(
                "-n",
                switch,
                "link",
                "add",
                port,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                name,
            )
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", switch, "link", "set", port, "master", "br0", "up")
            for space, device in ((name, "eth0"), (switch, port)):
                _limit(space, device, rate_mbit)
        yield Fleet(names, addresses)


def traffic(host: str) -> tuple[int, int]:
    """The bytes that a virtual host has received and sent so far, with all headers."""
    (link,) = json.loads(_ip("-n", host, "-s", "-j", "link", "show", "eth0"))
    counts = link["stats64"]
    return counts["rx"]["bytes"], counts["tx"]["bytes"]


def _namespace(name: str, made: ExitStack) -> None:
    _ip("netns", "add", name)
    made.callback(_ip, "netns", "del", name)
    _ip("-n", name, "link", "set", "lo", "up")


def _limit(space: str, device: str, rate_mbit: int) -> None:
    # A burst of 4 ms at the full rate is what keeps fast links exact.
    burst = max(32 * 1024, rate_mbit * 1_000_000 // 8 * 4 // 1000)
    words = ["qdisc", "add", "dev", device, "root", "tbf", "rate", f"{rate_mbit}mbit"]
    _tool("tc", "-n", space, *words, "burst", str(burst), "latency", "50ms")


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
    return _tool("ip", *arguments)


def _tool(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise BenchmarkError(f"iproute2 is needed: there is no command `{words[0]}`") from None
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"{' '.join(words)}: {error.stderr.strip()}") from error
    return done.stdout
