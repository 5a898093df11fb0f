"""Each shard's two servers on different hosts, of which one dies, or is cut off and comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.faults.test_failover import SAMPLES, SCRIPT
from tests.labs import Lab, hosts
from tests.processes import PATIENCE_S, Bench, Finished, Ranks, free_port, wait_until

pytestmark = pytest.mark.netlab

# Two shards, two workers, two processes on each of three hosts. Spread means: the first server and
# a worker; the second server and a worker; both backups.
FIRST, SECOND, THIRD = (0, 1), (2, 3), (4, 5)
EPOCHS = 40

SPREAD = (
    SCRIPT.replace("elastic=", 'hosts=psrpc.Hosts(placement="spread"),\n        elastic=')
    .replace("time.sleep(float(seconds))", "wait()")
    .replace(
        "def train(worker):",
        """def wait():
        if not pathlib.Path("hurry").exists():
            time.sleep(float(seconds))

    def train(worker):""",
    )
    .replace("write_text(str(os.getpid()))", "write_text(os.uname().nodename)")
    .replace('"DEAD_AFTER_S", "30"', '"DEAD_AFTER_S", "4"')  # a busy machine is silent for a second
    .replace("elastic=", "collective_timeout_s=5.0,\n        elastic=")
    .replace(
        'pathlib.Path(f"steps-{rank}")',
        """planes = psrpc.planes.select.planes_of(worker.follower.links)
                pathlib.Path(f"plane-{rank}").write_text(planes)
                pathlib.Path(f"steps-{rank}")""",
    )
)
KEEPER = """
    import pathlib, sys, time
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    store = TCPStore(sys.argv[1], int(sys.argv[2]), is_master=True, wait_for_workers=False)
    reigns = PrefixStore("psrpc/job/0/replicas", store)
    while not pathlib.Path("done").exists():
        for shard in (0, 1):
            if reigns.check([f"reign/{shard}"]):
                new = pathlib.Path("reign.new")
                new.write_text(reigns.get(f"reign/{shard}").decode()[64:])
                new.rename(f"reign-{shard}")  # whoever reads it sees one or the other
        time.sleep(0.05)
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Three hosts."""
    with hosts(3) as lab:
        yield lab


@dataclass
class Job:
    """A running job."""

    bench: Bench
    lab: Lab
    ranks: Ranks
    epochs: int

    def reign(self, shard: int) -> dict[str, Any]:
        """Who reigns, as the servers' authority said last."""
        path = self.bench.folder / f"reign-{shard}"
        return json.loads(path.read_text()) if path.exists() else {}

    def host(self, shard: int) -> str:
        """The host of a shard's primary, when that has begun to reign."""
        path = self.bench.folder / f"server-{self.reign(shard).get('primary')}"
        return path.read_text() if path.exists() else ""

    def steps(self, rank: int) -> int:
        """How many steps a worker has made."""
        path = self.bench.folder / f"steps-{rank}"
        return int((path.exists() and path.read_text()) or 0)

    def plane(self, rank: int) -> str:
        """How a worker's last step travelled."""
        path = self.bench.folder / f"plane-{rank}"
        while not (text := path.read_text()):
            pass  # it is being written
        return text

    def until(self, happens: Any) -> None:
        """Wait for something."""
        wait_until(happens, PATIENCE_S, self.ranks.shown)

    def until_stepped(self, rank: int, more: int) -> None:
        """Wait until a worker has made `more` steps from now on."""
        wanted = self.steps(rank) + more
        self.until(lambda: self.steps(rank) >= wanted)

    def until_paired(self) -> None:
        """Wait until both shards have a backup."""
        self.until(lambda: all(self.reign(s).get("backup") is not None for s in (0, 1)))

    def crash(self, host: str, ranks: tuple[int, ...]) -> None:
        """Let a host die, of which nobody is told."""
        self.lab.set("cut", host)
        for rank in ranks:
            self.ranks.commands[rank].kill()

    def finish(self) -> tuple[list[Finished], dict[str, Any]]:
        """Let it hurry to its end; every sample is in the weights once."""
        (self.bench.folder / "hurry").touch()
        ended = self.ranks.finish()
        (out,) = [each.out for each in ended if each.out]
        report: dict[str, Any] = json.loads(out)
        assert report["samples_counted_once"] is True, report
        assert [(e["samples"], e["lost"], e["doubled"]) for e in report["epoch_accounts"]] == [
            (SAMPLES, 0, 0)
        ] * self.epochs
        return ended, report


@pytest.fixture
def begin(bench: Bench, lab: Lab) -> Iterator[Any]:
    """Starts a job, whose launcher's store is on the second host."""
    keepers = []

    def begin(mode: str, plane: str = "auto", epochs: int = EPOCHS) -> Job:
        bench.write("script.py", SPREAD)
        bench.write("store.py", KEEPER)
        port = str(free_port())
        keepers.append(bench.start("store.py", "node2", port, **lab.host(2)))
        shared = {
            "WORLD_SIZE": "6",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_WORLD_SIZE": "3",
            "MASTER_ADDR": "node2",
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        words = ("script.py", mode, plane, "2", str(epochs), "0.02", "30", "never")
        commands = [
            bench.start(
                *words,
                **shared,
                **lab.host(rank // 2 + 1),
                RANK=str(rank),
                LOCAL_RANK=str(rank % 2),
            )
            for rank in range(6)
        ]
        return Job(bench, lab, Ranks(commands, words, shared), epochs)

    yield begin
    (bench.folder / "done").touch()
    for keeper in keepers:
        keeper.finish()


def test_the_host_of_a_primary_dies(begin: Any) -> None:
    job = begin("async")
    job.until_paired()
    job.until_stepped(SECOND[1], 10)
    assert [job.host(shard) for shard in (0, 1)] == ["node1", "node2"]
    job.crash("node1", FIRST)
    job.until_stepped(SECOND[1], 20)
    assert [job.host(shard) for shard in (0, 1)] == ["node3", "node2"]
    ended, report = job.finish()
    assert [each.code for each in ended] == [-9, -9, 0, 0, 0, 0]
    assert report["workers_lost"] == 1
    moved = -5 * 2.0**-12 * EPOCHS * SAMPLES / 5
    assert report["weights"] == [[moved] * 4] * 3


def test_a_worker_whose_server_moves_to_another_host_goes_on_by_rpc(begin: Any) -> None:
    """It shared memory with the one that died, on its own host."""
    job = begin("async")
    job.until_paired()
    job.until_stepped(SECOND[1], 10)
    assert [job.plane(rank) for rank in (FIRST[1], SECOND[1])] == ["rpc+shm"] * 2
    job.ranks.commands[SECOND[0]].kill()
    job.until(lambda: job.host(1) == "node3")
    job.until_stepped(SECOND[1], 20)
    assert [job.plane(rank) for rank in (FIRST[1], SECOND[1])] == ["rpc+shm", "rpc"]
    ended, report = job.finish()
    assert [each.code for each in ended] == [0, 0, -9, 0, 0, 0]
    assert report["workers_lost"] == 0
    moved = -5 * 2.0**-12 * EPOCHS * SAMPLES / 5
    assert report["weights"] == [[moved] * 4] * 3


def test_the_host_of_a_primary_dies_on_the_collective_plane(begin: Any) -> None:
    """Of which no group is told: one ends at its time limit, and another is made."""
    job = begin("sync", "collective", epochs=8)
    job.until_paired()
    job.until_stepped(SECOND[1], 10)
    assert [job.host(shard) for shard in (0, 1)] == ["node1", "node2"]
    job.crash("node1", FIRST)
    job.until_stepped(SECOND[1], 20)
    assert [job.host(shard) for shard in (0, 1)] == ["node3", "node2"]
    ended, report = job.finish()
    assert [each.code for each in ended] == [-9, -9, 0, 0, 0, 0]
    assert (report["plane"], report["workers_lost"]) == ("collective", 1)


def test_a_host_is_cut_off_and_comes_back_in_time_for_the_death_of_the_next(begin: Any) -> None:
    """The first host's primary is fenced, and becomes the backup that takes over in the end."""
    job = begin("sync")
    job.until_paired()
    job.until_stepped(SECOND[1], 10)
    job.lab.set("cut", "node1")
    job.until(lambda: job.host(0) == "node3")
    job.until_stepped(SECOND[1], 20)
    job.lab.set("heal", "node1")
    job.until(lambda: job.ranks.over(0))
    fenced = job.ranks.commands[0].finish()
    assert fenced.code == 1
    assert "another server has shard 0 now" in fenced.err
    again = {**job.ranks.shared, **job.lab.host(1), "RANK": "0", "LOCAL_RANK": "0"}
    job.ranks.commands.append(job.bench.start(*job.ranks.words, **again))
    job.until_paired()
    job.until_stepped(FIRST[1], 10)
    job.crash("node3", THIRD)
    job.until_stepped(SECOND[1], 20)
    assert [job.host(shard) for shard in (0, 1)] == ["node1", "node2"]
    ended, _ = job.finish()
    assert [each.code for each in ended] == [1, 0, 0, 0, -9, -9, 0]
