"""`psrpc doctor` as a user runs it: alone, under torchrun, and on two hosts."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from typing import Any

from tests.faults.test_cut_link import Hosts, hosts
from tests.processes import PATIENCE_S, PSRPC, TORCHRUN, Bench, free_port, wait_until

__all__ = ["hosts"]


def is_up(host: str, cable: str) -> bool:
    """Whether a new cable carries already, which torch looks at."""
    shown = ["ip", "-n", host, "link", "show", cable]
    return b"state UP" in subprocess.run(shown, check=True, capture_output=True).stdout


def found(text: str) -> dict[str, Any]:
    return {each["subject"]: each for each in json.loads(text)}


def test_it_looks_at_this_host(bench: Bench) -> None:
    ended = bench.run(*PSRPC, "doctor")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    for subject in ("torch", "address", "filter", "secret", "ports", "descriptors", "gpu", "slurm"):
        assert any(line.split()[1:2] == [subject] for line in lines), subject
    assert lines[-1].startswith("0 bad, ")


def test_what_is_bad_has_a_remedy_and_the_exit_code(bench: Bench) -> None:
    secret = bench.write("secret", "0123456789abcdef")
    secret.chmod(0o644)
    ended = bench.run(*PSRPC, "doctor", "--json", PSRPC_SECRET_FILE=str(secret))
    assert ended.code == 1
    assert found(ended.out)["secret"]["level"] == "bad"
    ended = bench.run(*PSRPC, "doctor", "--json", TP_SOCKET_IFNAME="nosuch0")
    assert ended.code == 1
    assert "TP_SOCKET_IFNAME=eth0" in found(ended.out)["address"]["remedy"]


def test_under_torchrun_one_process_speaks(bench: Bench) -> None:
    words = ("--standalone", "--nproc-per-node=2", *PSRPC, "doctor", "--json")
    ended = bench.run(*TORCHRUN, *words)
    assert ended.code == 0, ended.err
    subjects = [each["subject"] for each in json.loads(ended.out)]
    assert len(subjects) == len(set(subjects)), "of one host all is said once"
    assert "link" not in subjects


def test_two_hosts_are_compared(bench: Bench, hosts: Hosts) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": hosts.addresses[0], "LOCAL_WORLD_SIZE": "1"}
    shared |= {"MASTER_PORT": str(free_port()), "LOCAL_RANK": "0"}
    commands = []
    for rank, name in enumerate(hosts.names):
        cable = hosts.cable if rank else hosts.cable.replace("vb", "va", 1)
        wait_until(partial(is_up, name, cable), PATIENCE_S, lambda: "a cable without a carrier")
        local = {"RANK": str(rank), "TP_SOCKET_IFNAME": cable, "PSRPC_TEST_HOST": name}
        commands.append(bench.start(*PSRPC, "doctor", "--json", **shared, **local))
    first, second = (command.finish() for command in commands)
    assert (first.code, second.code, second.out) == (0, 0, ""), first.out + first.err
    findings = json.loads(first.out)
    assert [each["subject"] for each in findings].count("link") == 2
    assert [each["subject"] for each in findings].count("clock") == 2
    told = [each["text"] for each in findings if each["subject"] == "address"]
    assert all(any(address in text for text in told) for address in hosts.addresses)
