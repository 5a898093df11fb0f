"""Jobs under a real SLURM, of virtual nodes: the time limit, requeue, more workers, scancel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.test_isolation import SLOW
from tests.labs import Lab, script
from tests.processes import PATIENCE_S, ROOT, clean_environment, wait_until

pytestmark = pytest.mark.slurmlab

SAMPLES, EPOCHS = 400, 3
TRAINING = f"--dataset slow:Slow --model slow:model --epochs {EPOCHS} --batch-size 8"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


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

    def readers(self) -> int:
        """How many workers have begun to train, in all of its lives."""
        return len(list(self.folder.glob("reads-*")))


def submit(cluster: Cluster, folder: Path, *words: str, **variables: str) -> Job:
    """Give sbatch a script and its arguments."""
    folder.mkdir(exist_ok=True)
    (folder / "slow.py").write_text("\n".join(line[4:] for line in SLOW.splitlines()))
    said = cluster.exec(folder, "sbatch", "--parsable", *words, **variables)
    return Job(cluster, said.strip(), folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes for all tests."""
    made = Cluster(script("slurmlab"), f"psrpc-{os.getpid()}")
    for program in ("slurmctld", "slurmd", "sbatch", "munged"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: {made.slurmlab} install")
    made.run("up", "3", "--no-install")
    try:
        yield made
    finally:
        made.run("down")


@pytest.fixture(scope="module")
def limited(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """A job of each shape that will come to its time limit; it hears of that after 18 to 38 s.

    (SLURM sends the signal up to 22 s early.) They wait for that while other tests run.
    """
    jobs = {}
    for shape in ("roles", "torchrun"):
        resources = ["--nodes=3", "--ntasks-per-node=1", "--time=2", "--signal=B:USR1@80"]
        folder = tmp_path_factory.mktemp(shape)
        words = [*resources, str(ROOT / "launch" / "slurm.sbatch"), *TRAINING.split()]
        jobs[shape] = submit(cluster, folder, *words, PSRPC_SHAPE=shape)
    return jobs


def test_more_workers_come_and_scancel_leaves_nothing(
    cluster: Cluster, limited: dict[str, Job], tmp_path: Path
) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "slow.py").write_text("\n".join(line[4:] for line in SLOW.splitlines()))
    asked = ["psrpc", "slurm", "--nodes", "2", "--tasks", "1", "--", *TRAINING.split()]
    said = cluster.exec(tmp_path, *asked, TMPDIR=str(tmp_path / "t"))
    job = Job(cluster, said.split()[2], tmp_path)
    wait_until(lambda: job.readers() == 1, PATIENCE_S, job.shown)
    address = job.files / "address"
    assert address.stat().st_mode & 0o777 == 0o600
    words = ["--ntasks=1", str(ROOT / "launch" / "slurm-join.sbatch"), str(address)]
    more = submit(cluster, tmp_path, *words, TMPDIR=str(tmp_path / "t"))
    wait_until(lambda: job.readers() == 2, PATIENCE_S, more.shown)
    cluster.exec(tmp_path, "scancel", job.number)
    wait_until(lambda: job.state() == "CANCELLED", PATIENCE_S, job.shown)
    wait_until(lambda: more.state() in ENDED, PATIENCE_S, more.shown)
    wait_until(lambda: not list((tmp_path / "t").iterdir()), PATIENCE_S, more.shown)
    assert not (job.files / "result.json").exists()


@pytest.mark.parametrize("shape", ["roles", "torchrun"])
def test_a_job_that_comes_to_its_time_limit_goes_on(limited: dict[str, Job], shape: str) -> None:
    job = limited[shape]
    wait_until(lambda: int(job.facts()["Restarts"]) >= 1, PATIENCE_S, job.shown)
    (job.folder / "hurry").touch()
    job.cluster.run("exec", "--", "scontrol", "update", f"JobId={job.number}", "TimeLimit=30")
    wait_until(lambda: job.state() in ENDED, PATIENCE_S, job.shown)
    assert job.state() == "COMPLETED", job.shown()
    found = json.loads((job.files / "result.json").read_text())
    assert found["samples_counted_once"] is True
    assert [each["samples"] for each in found["epoch_accounts"]] == [SAMPLES] * EPOCHS
    assert 0 < found["worker_steps"] < SAMPLES * EPOCHS / 8, "each life has trained some"
    assert "psrpc: going on from" in job.shown()


def test_nothing_is_left_of_all_jobs(cluster: Cluster, limited: dict[str, Job]) -> None:
    for job in limited.values():
        assert job.state() in ENDED
    # On the head munged, slurmctld and the latter's child, on the others slurmd.
    wait_until(
        lambda: cluster.processes()[1:] == ["1", "1", "1"],
        PATIENCE_S,
        lambda: str(cluster.processes()),
    )
