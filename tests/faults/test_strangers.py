"""Strangers at all the ports of a running job: no code runs, nothing counts, the job goes on."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.bomb import Bomb
from tests.faults.test_isolation import SLOW, readers
from tests.processes import PATIENCE_S, PSRPC, Bench, Command, wait_until

OTHER = "a secret of somebody else"
SHORT_S = 0.2
LISTENS = "0A"
NOISE = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\xff" * 4096,
    random.Random(6).randbytes(4096),
    pickle.dumps(Bomb()) * 10,
    b"",
]


class Port(NamedTuple):
    """Where a process listens."""

    host: str
    port: int


def listened(command: Command) -> set[Port]:
    """Where the processes of a command listen."""
    found = set()
    for pid in command.pids():
        inodes = set()
        with suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
        found |= {port for inode, port in _listening(pid) if inode in inodes}
    return found


def _listening(pid: int) -> list[tuple[str, Port]]:
    found = []
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                address, port = fields[1].split(":")
                if fields[3] == LISTENS:
                    words = bytes.fromhex(address)
                    packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                    host = socket.inet_ntop(family, packed)
                    found.append((fields[9], Port(host, int(port, 16))))
    return found


def bother(port: Port, noise: bytes) -> bool:
    """Say something at a port; returns whether anybody listened."""
    with suppress(OSError), socket.create_connection(port, SHORT_S) as sock:
        with suppress(OSError):
            sock.sendall(noise)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 12):
                pass
        return True
    return False


@pytest.mark.parametrize("plane", ["rpc", "shm"])
def test_a_job_on_one_host_goes_on_and_counts_right(bench: Bench, plane: str) -> None:
    bench.write("slow.py", SLOW)
    options = "--isolate --servers 2 --workers 2 --dataset slow:Slow --model slow:model --epochs 5"
    command = bench.start(*PSRPC, "train", *options.split(), "--plane", plane, "--json", "-")
    wait_until(lambda: len(readers(bench)) == 2, PATIENCE_S, command.shown)
    ports = listened(command)
    assert {port.host for port in ports} == {"127.0.0.1"}, "nobody else can reach it"
    shut = {port for port in ports for noise in NOISE if not bother(port, noise)}
    assert len(shut) == 4, "torch RPC's own: two of servers, two of workers"
    assert len(ports) >= len(shut) + 4, "a store, two gates, a pulse; and streams"
    (address,) = re.findall(r"psrpc join (\S+)", command.shown())
    refused = bench.run(*PSRPC, "join", address, PSRPC_SECRET=OTHER)
    assert refused.code == 1
    assert "has another secret than you: joining needs the one" in refused.err
    assert OTHER not in refused.err
    (bench.folder / "hurry").touch()
    ended = command.finish()
    assert ended.code == 0, ended.err
    results = json.loads(ended.out)
    assert results["samples_counted_once"] is True
    assert (results["workers_lost"], results["duplicates_dropped"]) == (0, 0)
    command.leaves_nothing()


def test_a_secret_is_in_no_command_line_and_no_output(bench: Bench) -> None:
    bench.write("slow.py", SLOW)
    options = "--isolate --workers 1 --dataset slow:Slow --model slow:model --epochs 1"
    command = bench.start(*PSRPC, "train", *options.split(), PSRPC_SECRET=OTHER, fresh=True)
    wait_until(lambda: readers(bench), PATIENCE_S, command.shown)
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in command.pids()]
    assert len(lines) >= 4
    assert not any(OTHER in line for line in lines)
    (bench.folder / "hurry").touch()
    assert command.finish().code == 0
    assert OTHER not in command.shown()
    command.leaves_nothing()


def test_a_process_with_another_secret_is_told_so_and_the_job_goes_on(bench: Bench) -> None:
    bench.write("slow.py", SLOW)
    words = (
        *PSRPC,
        "train",
        *["--workers", "1", "--dataset", "slow:Slow", "--model", "slow:model"],
    )
    ranks = bench.ranks(*words, "--epochs", "1", "--start-timeout", "60", count=2)
    wait_until(lambda: readers(bench), PATIENCE_S, ranks.shown)
    stranger = bench.joiner(ranks, PSRPC_SECRET=OTHER)
    ranks.commands.remove(stranger)
    ended = stranger.finish()
    assert ended.code == 1
    assert "has another secret than the processes that came before" in ended.err
    (bench.folder / "hurry").touch()
    assert [each.code for each in ranks.finish()] == [0, 0]
