"""What `psrpc slurm` asks SLURM for."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from psrpc.cli import cli
from psrpc.errors import ConfigError, JobFailedError, UsageError
from psrpc.slurm import Submission, submit, template
from tests.processes import ROOT


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line]


def test_the_script_comes_with_the_package() -> None:
    assert template() == (ROOT / "launch" / "slurm.sbatch").read_text()


def test_a_submission_of_defaults_asks_for_what_the_script_does() -> None:
    assert sorted(directives(Submission().script([]))) == sorted(directives(template()))


def test_the_script_has_the_options_of_psrpc_train_as_they_were_given(tmp_path: Path) -> None:
    options = ["--dataset", "my module:data", "--lr", "0.1", "$HOME"]
    script = Submission(directory=tmp_path / "a b").script(options)
    shown = script.partition("shape=${")[0] + '\nprintf "%s\\n" "$PSRPC_JOB_DIR" "$@"'
    done = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(tmp_path / "a b"), *options]


def test_a_job_in_parts_has_servers_first() -> None:
    asked = Submission(server_nodes=1, server_partition="cpu", partition="gpu", gpus=4)
    first, second = " ".join(directives(asked.script([]))).split(" hetjob ")
    assert "--nodes=1 --ntasks-per-node=1 --cpus-per-task=1 --partition=cpu" in first
    assert "--partition=gpu --gpus-per-node=4" in second
    assert "gpu" not in first


def test_all_that_cannot_be_is_said_at_once() -> None:
    asked = Submission(shape="mpi", sweep=Path("x"), server_partition="cpu")
    with pytest.raises(ConfigError) as refused:
        asked.check()
    assert len(refused.value.problems) == 3
    with pytest.raises(ConfigError, match="roles"):
        Submission(shape="torchrun", server_nodes=1).check()
    with pytest.raises(ConfigError, match="no arrays"):
        Submission(array="0-1", server_nodes=1).check()


def test_the_scripts_are_bash() -> None:
    for script in (*sorted((ROOT / "launch").glob("*.s*")),):
        subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that keeps what it gets; with a file `refuse` it complains."""
    kept = tmp_path / "submitted"
    program = tmp_path / "sbatch"
    program.write_text(
        f"#!/bin/bash\n[ -e {shlex.quote(str(tmp_path / 'refuse'))} ] && "
        f"{{ echo 'no such partition' >&2; exit 1; }}\ncat > {shlex.quote(str(kept))}\necho 42\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return kept


def test_what_is_submitted_is_what_a_dry_run_shows(sbatch: Path) -> None:
    words = ["slurm", "--nodes", "3", "--", "--dataset", "digits"]
    shown = CliRunner().invoke(cli, [*words[:1], "--dry-run", *words[1:]], obj=[])
    assert not sbatch.exists()
    done = CliRunner().invoke(cli, words, obj=[])
    assert sbatch.read_text() == shown.output
    assert done.output.splitlines()[0] == (
        "Submitted job 42 (psrpc) on 3 nodes: psrpc train --dataset digits"
    )
    assert "psrpc join psrpc-42/address" in done.output


def test_what_sbatch_complains_of(
    sbatch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "refuse").touch()
    with pytest.raises(JobFailedError, match="no such partition"):
        submit("#!/bin/bash")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="no sbatch here"):
        submit("#!/bin/bash")
