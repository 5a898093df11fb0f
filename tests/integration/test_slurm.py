"""Jobs under a real SLURM, of virtual nodes: what it does to a job, and what is left of that."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_isolation import SLOW
from tests.labs import Lab, script
from tests.processes import ROOT, clean_environment
from tests.processes import wait_until as wait_often

pytestmark = pytest.mark.slurmlab

# A new interpreter for each process takes long on a busy machine.
LONG_S = 300.0
SAMPLES, EPOCHS = 400, 3
TRAINING = f"--dataset slow:Slow --model slow:model --epochs {EPOCHS} --batch-size 8"
SOUND = "--exclude=node4,node5"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def wait_until(happens: Callable[[], object], otherwise: Callable[[], str]) -> None:
    """Look once a second, for to ask SLURM takes a third of a second of a core."""
    wait_often(happens, LONG_S, otherwise, every_s=1.0)


@dataclass(frozen=True)
class Cluster:
    """Three nodes, on which jobs find psrpc as it is here."""

    slurmlab: Path
    name: str

    def run(self, *words: str, **variables: str) -> str:
        """Run one of slurmlab's commands; in `exec` a command on the cluster's head."""
        return self._run([*words], Path.cwd(), variables)

    def exec(self, folder: Path, *words: str, **variables: str) -> str:
        """Run a command on the cluster's head, in a folder."""
        return self._run(["exec", "--", *words], folder, variables)

    def _run(self, words: list[str], folder: Path, variables: dict[str, str]) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = clean_environment() | {"PATH": path, "PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(
            [str(self.slurmlab), "-l", self.name, *words],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}{done.stdout}"
        return done.stdout

    def processes(self) -> list[str]:
        """How many processes each host has."""
        listed = Lab(self.slurmlab.with_name("netlab"), self.name).set("list")
        return [line.split()[-1] for line in listed.splitlines()[1:]]


@dataclass(frozen=True)
class Job:
    """A job, the folder that it was submitted from, and what it shows."""

    cluster: Cluster
    number: str
    folder: Path

    @property
    def files(self) -> Path:
        """Where it keeps its files."""
        return self.folder / f"psrpc-{self.number}"

    def shown(self) -> str:
        """All that it has written."""
        return "\n".join(path.read_text() for path in self.folder.glob("slurm-*.out"))

    def facts(self) -> dict[str, str]:
        """What SLURM knows of it."""
        said = self.cluster.run("exec", "--", "scontrol", "-o", "show", "job", self.number)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def state(self) -> str:
        """As SLURM calls it."""
        return self.facts()["JobState"]

    def update(self, setting: str) -> None:
        """Let SLURM have another setting for it."""
        self.cluster.run("exec", "--", "scontrol", "update", f"JobId={self.number}", setting)

    def result(self) -> dict[str, Any]:
        """What it has counted, if it is done: each sample once."""
        assert self.state() == "COMPLETED", self.shown()
        found: dict[str, Any] = json.loads((self.files / "result.json").read_text())
        assert found["samples_counted_once"] is True
        assert [each["samples"] for each in found["epoch_accounts"]] == [SAMPLES] * EPOCHS
        return found

    def readers(self) -> int:
        """How many workers have begun to train, in all of its lives."""
        return len(list(self.folder.glob("reads-*")))

    def trains(self, workers: int) -> bool:
        """Whether so many workers have begun, and made steps."""
        return self.readers() == workers and bool(re.search("step [1-9]", self.shown()))


def submit(cluster: Cluster, folder: Path, *words: str, **variables: str) -> Job:
    """Give sbatch options, a script and its arguments."""
    said = cluster.exec(prepared(folder), "sbatch", "--parsable", *words, **variables)
    return Job(cluster, said.strip(), folder)


def submit_ours(
    cluster: Cluster, folder: Path, options: str, training: str = TRAINING, **variables: str
) -> Job:
    """Give `psrpc slurm` options, for itself and for `psrpc train`."""
    words = ["psrpc", "slurm", *options.split(), "--", *training.split()]
    said = cluster.exec(prepared(folder), *words, **variables)
    return Job(cluster, said.split()[2], folder)


def prepared(folder: Path) -> Path:
    """A folder with what is to be trained, slowly as long as there is no file `hurry`."""
    folder.mkdir(exist_ok=True)
    (folder / "slow.py").write_text("\n".join(line[4:] for line in SLOW.splitlines()))
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Five nodes for all tests. On the fourth urgent jobs push others aside, the fifth will die."""
    made = Cluster(script("slurmlab"), f"psrpc-{os.getpid()}")
    for program in ("slurmctld", "slurmd", "sbatch", "munged"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: {made.slurmlab} install")
    preemption = (
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "SlurmctldParameters=preempt_send_user_signal",
        "PartitionName=low Nodes=node4 PriorityTier=1 GraceTime=100",
        "PartitionName=high Nodes=node4 PriorityTier=9",
    )
    made.run("up", "5", "--no-install", *(word for line in preemption for word in ("--conf", line)))
    try:
        yield made
    finally:
        made.run("down")


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """A job for each of the tests below, which wait for SLURM together.

    Those by the names of the script's shapes come to their time limit: SLURM looks at these every
    half minute. It takes as long to see that `frail` has lost a node, and 10 s to start again.
    """
    folder = tmp_path_factory.mktemp
    script = str(ROOT / "launch" / "slurm.sbatch")
    made = {}
    for shape in ("roles", "torchrun"):
        asked = ["--nodes=2", "--ntasks-per-node=1", "--time=30", "--signal=B:USR1@110", SOUND]
        words = [*asked, script, *TRAINING.split()]
        made[shape] = submit(cluster, folder(shape), *words, PSRPC_SHAPE=shape)
    words = ["--nodes=2", "--ntasks=3", "--nodelist=node3,node5", script, *TRAINING.split()]
    made["frail"] = submit(cluster, folder("frail"), *words)
    asked = "--nodes 1 --tasks 2 --partition low"
    made["aside"] = submit_ours(cluster, folder("aside"), asked)
    for name, job in made.items():
        workers = 2 if name == "frail" else 1
        wait_until(lambda: job.trains(workers), job.shown)  # noqa: B023
        if name == "frail":
            cluster.run("kill", "node5")
        elif name == "aside":
            urgent = ["--partition=high", "--exclusive", "--wrap", "touch hurry"]
            submit(cluster, job.folder, *urgent)
        else:
            job.update("TimeLimit=2")  # which leaves less than is to be told before
            threading.Thread(target=limit_once, args=(job,), daemon=True).start()
    return made


def limit_once(job: Job) -> None:
    """Let a job's second life have the time that it needs."""
    wait_until(lambda: int(job.facts()["Restarts"]) >= 1, job.shown)
    job.update("TimeLimit=30")


@pytest.mark.usefixtures("jobs")
def test_the_doctor_looks_at_all_nodes(cluster: Cluster, tmp_path: Path) -> None:
    words = ["srun", "--nodes=2", "--ntasks-per-node=1", SOUND, "psrpc", "doctor", "--json"]
    found = json.loads(cluster.exec(tmp_path, *words))
    assert {each["level"] for each in found} <= {"ok", "warning"}, found
    assert {each["subject"] for each in found} >= {"slurm", "clock", "link"}


@pytest.mark.usefixtures("jobs")
def test_more_workers_come_and_scancel_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    temporary = {"TMPDIR": str(tmp_path / "t")}
    job = submit_ours(cluster, tmp_path, f"--nodes 2 --tasks 1 --sbatch {SOUND}", **temporary)
    wait_until(lambda: job.readers() == 1, job.shown)
    address = job.files / "address"
    assert address.stat().st_mode & 0o777 == 0o600
    words = ["--ntasks=1", SOUND, str(ROOT / "launch" / "slurm-join.sbatch"), str(address)]
    more = submit(cluster, tmp_path, *words, **temporary)
    wait_until(lambda: job.readers() == 2, more.shown)
    cluster.exec(tmp_path, "scancel", job.number)
    wait_until(lambda: job.state() == "CANCELLED", job.shown)
    wait_until(lambda: more.state() in ENDED, more.shown)
    wait_until(lambda: not list((tmp_path / "t").iterdir()), more.shown)
    assert not (job.files / "result.json").exists()


@pytest.mark.parametrize("shape", ["roles", "torchrun"])
def test_a_job_that_comes_to_its_time_limit_goes_on(jobs: dict[str, Job], shape: str) -> None:
    job = jobs[shape]
    limit_once(job)
    (job.folder / "hurry").touch()
    lived_twice(job)


def lived_twice(job: Job) -> None:
    """Wait for a job's end: both of its lives have trained, and what they did is counted once."""
    wait_until(lambda: job.state() in ENDED, job.shown)
    found = job.result()
    assert int(job.facts()["Restarts"]) >= 1
    assert 0 < found["worker_steps"] < SAMPLES * EPOCHS / 8, "each life has trained some"
    assert "psrpc: going on from" in job.shown()


def test_an_urgent_job_pushes_one_aside_that_goes_on_later(jobs: dict[str, Job]) -> None:
    lived_twice(jobs["aside"])


@pytest.mark.usefixtures("jobs")
def test_servers_have_nodes_of_their_own(cluster: Cluster, tmp_path: Path) -> None:
    prepared(tmp_path).joinpath("hurry").touch()
    asked = f"--server-nodes 1 --nodes 2 --tasks 1 --sbatch {SOUND}"
    job = submit_ours(cluster, tmp_path, asked, f"{TRAINING} --mode sync")
    assert "HetJobOffset" in job.facts()
    wait_until(lambda: job.state() in ENDED, job.shown)
    found = job.result()
    assert (found["servers"], found["workers"], found["plane"]) == (1, 2, "rpc")


@pytest.mark.usefixtures("jobs")
def test_an_array_takes_its_options_line_by_line(cluster: Cluster, tmp_path: Path) -> None:
    prepared(tmp_path).joinpath("hurry").touch()
    (tmp_path / "sweep").write_text("--mode sync --seed 1\n--mode async --seed 2\n")
    asked = f"--nodes 1 --tasks 2 --array 1 --sweep sweep --sbatch {SOUND}"
    array = submit_ours(cluster, tmp_path, asked)
    job = Job(cluster, f"{array.number}_1", tmp_path)
    wait_until(lambda: job.state() in ENDED, job.shown)
    found = json.loads((tmp_path / f"psrpc-{array.number}-1" / "result.json").read_text())
    assert (found["mode"], found["seed"], found["samples_counted_once"]) == ("async", 2, True)


def test_a_dead_node_is_the_loss_of_its_workers(jobs: dict[str, Job]) -> None:
    job = jobs["frail"]
    (job.folder / "hurry").touch()
    wait_until(lambda: job.state() in ENDED, job.shown)
    found = job.result()
    assert (found["workers_lost"], job.facts()["Restarts"]) == (1, "0")


def test_nothing_is_left_of_all_jobs(cluster: Cluster, jobs: dict[str, Job]) -> None:
    for job in jobs.values():
        assert job.state() in ENDED
    # On the head munged, slurmctld and the latter's child, on the others slurmd.
    wait_until(
        lambda: cluster.processes()[1:] == ["1", "1", "1", "1", "-"],
        lambda: str(cluster.processes()),
    )
