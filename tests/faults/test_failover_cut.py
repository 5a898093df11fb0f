"""A primary on another host whose link is cut, and healed: it answers nobody any more."""

from __future__ import annotations

import json

import pytest

from tests.faults.test_churn import enough, until, until_more_steps, until_over, until_steps
from tests.faults.test_cut_link import Hosts, hosts
from tests.faults.test_failover import SAMPLES, SCRIPT, SILENT_S
from tests.processes import PATIENCE_S, Bench, Command, Ranks, free_port, wait_until

__all__ = ["hosts"]

# Keeps the store of the job, and says who reigns.
STORE = """
    import json, pathlib, sys, time
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    store = TCPStore(sys.argv[1], int(sys.argv[2]), is_master=True, wait_for_workers=False)
    reigns = PrefixStore("psrpc/job/0/replicas", store)
    while not pathlib.Path("done").exists():
        if reigns.check(["reign/0"]):
            new = pathlib.Path("reign.new")
            new.write_text(reigns.get("reign/0").decode()[64:])
            new.rename("reign")  # whoever reads it sees one or the other
        time.sleep(0.05)
"""


def start(bench: Bench, hosts: Hosts, mode: str, port: int) -> Ranks:
    """A primary on the first host; its backup and two workers on the second."""
    words = ("script.py", mode, "auto", "1", "some", "0.02", "30", "never")
    shared = {
        "DEAD_AFTER_S": SILENT_S,
        "WORLD_SIZE": "4",
        "MASTER_ADDR": hosts.addresses[1],
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    commands: list[Command] = []
    for rank, host in enumerate((0, 1, 1, 1)):
        local = {"LOCAL_RANK": str(max(rank - 1, 0)), "LOCAL_WORLD_SIZE": str(1 + 2 * host)}
        cable = hosts.cable if host else hosts.cable.replace("vb", "va", 1)
        variables = {**shared, **local, "RANK": str(rank), "TP_SOCKET_IFNAME": cable}
        commands.append(bench.start(*words, PSRPC_TEST_HOST=hosts.names[host], **variables))
    return Ranks(commands)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_primary_that_is_cut_off_is_deposed(bench: Bench, hosts: Hosts, mode: str) -> None:
    bench.write("script.py", SCRIPT)
    bench.write("store.py", STORE)
    port = free_port()
    address = hosts.addresses[1]
    store = bench.start("store.py", address, str(port), PSRPC_TEST_HOST=hosts.names[1])
    ranks = start(bench, hosts, mode, port)
    until_steps(bench, ranks, 2, 5)
    hosts.cut()
    until(bench, ranks, "reign")
    reign = bench.folder / "reign"
    wait_until(lambda: json.loads(reign.read_text())["epoch"] == 3, PATIENCE_S, ranks.shown)
    until_more_steps(bench, ranks, 2, 20)
    hosts.heal()
    until_over(ranks, 0)
    ended = enough(bench, ranks)
    (bench.folder / "done").touch()
    assert store.finish().code == 0
    assert [each.code for each in ended] == [1, 0, 0, 0], ranks.shown()
    assert "another server has shard 0 now" in ended[0].err
    (out,) = [each.out for each in ended if each.out]
    report = json.loads(out)
    assert report["samples_counted_once"] is True
    if mode == "async":
        moved = -5 * 2.0**-12 * len(report["epoch_accounts"]) * SAMPLES / 5
        assert report["weights"] == [[moved] * 4] * 3
