"""A worker on another host whose link is cut, and healed: two network namespaces, one cable."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.faults.test_churn import (
    SCRIPT,
    SILENT_S,
    counts_once,
    enough,
    until,
    until_more_steps,
    until_steps,
)
from tests.faults.test_isolation import SLOW, readers
from tests.processes import PATIENCE_S, PSRPC, Bench, Command, Ranks, free_port, wait_until

_numbers = itertools.count(os.getpid() % 200 * 256)


@dataclass(frozen=True)
class Hosts:
    """Two hosts, named by their namespaces; `cable` is the second one's interface."""

    names: tuple[str, str]
    addresses: tuple[str, str]
    cable: str

    def cut(self) -> None:
        """Let nothing pass, without a word to anybody."""
        self._set("down")

    def heal(self) -> None:
        """Let all pass again."""
        self._set("up")

    def _set(self, state: str) -> None:
        run("ip", "-n", self.names[1], "link", "set", self.cable, state)


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root can make network namespaces, with iproute2's ip")
    tag, number = uuid.uuid4().hex[:6], next(_numbers)
    names = (f"psa{tag}", f"psb{tag}")
    cables = (f"va{tag}", f"vb{tag}")
    net = f"10.{64 + number // 256 % 64}.{number % 256}"
    addresses = (f"{net}.1", f"{net}.2")
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "link", "add", cables[0], "netns", names[0], "type", "veth",
            "peer", "name", cables[1], "netns", names[1])  # fmt: skip
        for name, cable, address in zip(names, cables, addresses, strict=True):
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", cable)
            run("ip", "-n", name, "link", "set", cable, "up")
    except subprocess.CalledProcessError as error:
        remove(names)
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield Hosts(names, addresses, cables[1])
    remove(names)


def remove(names: tuple[str, str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.parametrize("mode", ["sync", "bounded", "async"])
def test_a_worker_that_is_cut_off_comes_back(bench: Bench, hosts: Hosts, mode: str) -> None:
    ranks = start(bench, hosts, mode)
    until_steps(bench, ranks, 2, 5)
    hosts.cut()
    until(bench, ranks, "lost")
    until_more_steps(bench, ranks, 1, 5)
    hosts.heal()
    until(bench, ranks, "back")
    ended = enough(bench, ranks)
    assert [each.code for each in ended] == [0, 0, 0], ranks.shown()
    assert counts_once(ended)["workers_lost"] == 1


def start(bench: Bench, hosts: Hosts, mode: str) -> Ranks:
    """A server and a worker on the first host, a worker on the second."""
    bench.write("script.py", SCRIPT)
    words = ("script.py", mode, "auto", "1", "never", "some", "0.02", "60")
    shared = {
        "DEAD_AFTER": SILENT_S,
        "WORLD_SIZE": "3",
        "MASTER_ADDR": hosts.addresses[0],
        "MASTER_PORT": str(free_port()),
    }
    commands: list[Command] = []
    for rank, host in enumerate((0, 0, 1)):
        local = {"LOCAL_RANK": str(rank % 2), "LOCAL_WORLD_SIZE": str(2 - host)}
        cable = hosts.cable if host else hosts.cable.replace("vb", "va", 1)
        variables = {**shared, **local, "RANK": str(rank), "TP_SOCKET_IFNAME": cable}
        commands.append(bench.start(*words, PSRPC_TEST_HOST=hosts.names[host], **variables))
    return Ranks(commands)


def test_a_worker_joins_from_another_host(bench: Bench, hosts: Hosts) -> None:
    bench.write("slow.py", SLOW)
    options = "--isolate --workers 1 --dataset slow:Slow --model slow:model --epochs 1"
    lab = {"RES_OPTIONS": "timeout:1 attempts:1"}  # torch asks for the names of all addresses
    inner = hosts.cable.replace("vb", "va", 1)
    first, second = ({**lab, "PSRPC_TEST_HOST": name} for name in hosts.names)
    command = bench.start(
        *PSRPC, "train", *options.split(), "--json", "-", **first, TP_SOCKET_IFNAME=inner
    )
    wait_until(lambda: readers(bench), PATIENCE_S, command.shown)
    (address,) = re.findall(r"psrpc join (\S+)", command.shown())
    assert address.startswith(hosts.addresses[0])
    joined = bench.start(*PSRPC, "join", address, **second)
    wait_until(lambda: len(readers(bench)) == 2, PATIENCE_S, joined.shown)
    (bench.folder / "hurry").touch()
    ended = command.finish()
    assert (ended.code, joined.finish().code) == (0, 0), ended.err + joined.shown()
    assert json.loads(ended.out)["samples_counted_once"] is True
    command.leaves_nothing()
    joined.leaves_nothing()
