"""A cluster of actors whose driver or node is killed: nothing hangs, nothing is left."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.processes import PATIENCE_S, Bench, Command, wait_until

DRIVER = """
import sys, time
import psrpc

class Stuck:
    def forever(self):
        while True:
            time.sleep(0.01)

    def sum(self):
        return sum(range(10**12))  # holds the interpreter's lock for long

kinds = [psrpc.actor(Stuck), psrpc.actor(Stuck, own_process=True)]
stuck = [kind.remote() for kind in kinds for _ in range(2)]
for each in stuck:
    psrpc.ready(each)
calls = [each.forever.remote() for each in stuck[:3]] + [stuck[3].sum.remote()]
waits = psrpc.actor(Stuck, num_cpus=1_000, labels={"zone": "a"}).remote()
print("ready", flush=True)
psrpc.get(calls)
"""


def driver(bench: Bench) -> Command:
    bench.write("driver.py", DRIVER)
    command = bench.start("driver.py")
    wait_until(lambda: "ready" in command.shown(), PATIENCE_S, command.shown)
    assert len(command.pids()) >= 5  # the driver, its node, two or more shared, two apart
    return command


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_driver_that_is_killed(bench: Bench, number: signal.Signals) -> None:
    command = driver(bench)
    command.process.send_signal(number)
    command.finish()
    command.leaves_nothing()


SPREAD = """
import os, subprocess, sys, time
import psrpc

cluster = psrpc.init(num_cpus=1, listen="127.0.0.1")
options = ["--name", "second", "--cpus", "1", "--label", "zone=b"]
second = subprocess.Popen([sys.executable, "-m", "psrpc", "node", cluster.address, *options])
while len(cluster.status()["nodes"]) < 2:
    time.sleep(0.02)

@psrpc.actor(max_restarts=1)
class Where:
    def pid(self):
        return os.getppid()

there = Where.options(labels={"zone": "b"}).remote()
moves = Where.options(placement="pack", num_cpus=0.5, own_process=False).remote()
either = Where.options(num_cpus=0.5).remote()
assert there.pid.remote().result() == second.pid
lines = subprocess.run([sys.executable, "-m", "psrpc", "status", cluster.address],
                       check=True, capture_output=True, text=True).stdout
print(lines, flush=True)
second.kill()
second.wait()
try:
    while True:
        there.pid.remote().result(60)
except psrpc.errors.PlacementError as error:
    print(error)
except psrpc.errors.ActorLostError as error:
    print("lost", error)
node = moves.pid.remote().result(60)
assert node == either.pid.remote().result(60) != second.pid
"""


def test_what_was_on_a_killed_node_goes_to_another_that_can(bench: Bench) -> None:
    bench.write("spread.py", SPREAD)
    ended = bench.run("spread.py")
    assert (ended.code, ended.err) == (0, "")
    assert "second: 0 CPUs, 0 GPUs" in ended.out or "second: 0.5 CPUs" in ended.out
    assert "zone=b in use" not in ended.out
    assert "Where: lives on second" in ended.out
    assert ended.out.splitlines()[-1].startswith(("lost Where was lost", "Where: "))
    pids = re.findall(r"lives on \w+, process (\d+)", ended.out)
    assert pids
    for pid in pids:  # those of the killed node, and the driver's own
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), PATIENCE_S, lambda: ended.out)  # type: ignore[misc]


UNABLE = """
import sys
import psrpc

sys.path.insert(0, "broken")  # where the node finds another psrpc, that cannot be imported

@psrpc.actor
class Any:
    def do(self):
        pass

try:
    Any.remote().do.remote().result(60)
except psrpc.errors.PeerLostError as error:
    print(error)
"""


def test_a_node_that_cannot_start_is_an_error(bench: Bench) -> None:
    bench.write("unable.py", UNABLE)
    (bench.folder / "broken" / "psrpc").mkdir(parents=True)
    bench.write("broken/psrpc/__init__.py", "raise SystemExit(3)")
    ended = bench.run("unable.py")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("the cluster has ended")


def test_status_without_a_cluster(bench: Bench) -> None:
    ended = bench.run("-m", "psrpc", "status", f"{'0' * 32}@unix:psrpc-head-none")
    assert (ended.code, ended.out) == (1, "")
    assert len(ended.lines) == 1
    assert "nobody answers at unix:psrpc-head-none" in ended.lines[0]
    ended = bench.run("-m", "psrpc", "status", "somewhere")
    assert ended.code == 1
    assert ended.lines == [
        "Error: 'somewhere' is no address of a cluster: give what psrpc.init(...).address shows"
    ]
