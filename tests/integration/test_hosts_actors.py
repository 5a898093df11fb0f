"""Actors on three hosts, made of namespaces: placed by what nodes have, and one host dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.labs import Lab, hosts
from tests.processes import PATIENCE_S, Bench, Command, wait_until

pytestmark = pytest.mark.netlab

DRIVER = """
import collections, os, socket, subprocess, sys, time
import psrpc
from psrpc.errors import PlacementError

here = socket.gethostbyname(socket.gethostname())
cluster = psrpc.init(listen=here, num_cpus=1, num_gpus=0, labels={"zone": "a"})
print(cluster.address, flush=True)
cluster.wait_for_nodes(3, 60)

@psrpc.actor(max_restarts=1)
class Where:
    def host(self):
        return socket.gethostname()

    def gpus(self):
        return os.environ.get("CUDA_VISIBLE_DEVICES")

def where(**options):
    return Where.options(**options).remote()

def host(actor):
    return actor.host.remote().result(60)

def refused(said, **options):
    try:
        psrpc.ready(where(**options), 60)
    except PlacementError as error:
        assert said in str(error), error
    else:
        raise AssertionError(options)

gpu = where(num_gpus=0.5)
assert (host(gpu), gpu.gpus.remote().result(60)) == ("node2", "0")
assert host(where(placement="affinity", near="node3")) == "node3"
zoned = [where(num_cpus=1, labels={"zone": "b"}) for _ in range(3)]
assert sorted(map(host, zoned)) == ["node2", "node2", "node3"]
waits = where(num_cpus=1, labels={"zone": "b"})
refused("no node can give 2 GPUs; the nearest is node2", num_gpus=2)
refused("no node can give the labels zone=c; the nearest is", labels={"zone": "c"})
refused("no node is named node9; there are", placement="affinity", near="node9")
status = subprocess.run([sys.executable, "-m", "psrpc", "status", cluster.address],
                        check=True, capture_output=True, text=True).stdout
assert "Where: waits for 1 CPUs and the labels zone=b" in status, status

class Job:
    def do(self, number):
        time.sleep(0.02)
        return number, socket.gethostname()

with psrpc.Pool(Job, size=9, placement="even") as pool:
    jobs = [pool.submit("do", number) for number in range(600)]
    for done, job in enumerate(psrpc.as_completed(jobs)):
        if done == 100:
            print("runs", flush=True)
results = [job.result() for job in jobs]
assert [number for number, _ in results] == list(range(600))
print("hosts", sorted({name for _, name in results}))
print("left", [node["name"] for node in cluster.status()["nodes"]])
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with hosts(3) as lab:
        yield lab


@pytest.fixture
def lab(made: Lab) -> Iterator[Lab]:
    yield made
    made.reset()


def killed(lab: Lab, second: Command) -> None:
    second.kill()


def without_power(lab: Lab, second: Command) -> None:
    lab.set("cut", "node2")
    second.kill()  # of which nobody is told


@pytest.mark.parametrize("death", [killed, without_power])
def test_actors_are_placed_on_hosts_and_outlive_one(
    bench: Bench, lab: Lab, death: Callable[[Lab, Command], None]
) -> None:
    bench.write("driver.py", DRIVER)
    driver = bench.start("driver.py", **lab.host(1))
    wait_until(lambda: "@" in driver.shown(), PATIENCE_S, driver.shown)
    node = ["-m", "psrpc", "node", driver.shown().split()[0], "--label", "zone=b", "--cpus"]
    second = bench.start(*node, "2", "--gpus", "1", **lab.host(2))
    third = bench.start(*node, "1", "--gpus", "0", **lab.host(3))
    wait_until(lambda: "runs" in driver.shown(), PATIENCE_S, lambda: driver.shown() + third.shown())
    death(lab, second)
    ended = driver.finish()
    assert (ended.code, ended.err) == (0, "")
    assert "hosts ['node1', 'node2', 'node3']" in ended.out
    assert "left ['node', 'node3']" in ended.out
    assert third.finish().code == 0
