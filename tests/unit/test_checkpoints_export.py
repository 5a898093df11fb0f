"""`psrpc export`: a plain file, and what is said where there is none to make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from psrpc import cli
from tests.unit.saving import save
from tests.unit.shards import OPTIMIZERS, Net, Shards


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["export", *map(str, arguments)])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def trained(directory: Path, steps: int = 2) -> Shards:
    shards = Shards(OPTIMIZERS["adam"], 2)
    for step in range(steps):
        shards.train([step])
        save(shards, directory)
    return shards


def test_the_model_takes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = trained(tmp_path / "all")
    target = tmp_path / "model.pt"
    for source in (tmp_path / "all", tmp_path / "all" / "checkpoint-00000002"):
        assert run(source, target) == 0
        assert "checkpoint-00000002" in capsys.readouterr().out
        state = torch.load(target, weights_only=True)
        model = Net()
        assert list(state) == list(model.state_dict())
        model.load_state_dict(state)
        for name, tensor in shards.weights().items():
            assert torch.equal(model.get_parameter(name), tensor)
        assert state["tied"].data_ptr() == state["bias"].data_ptr()
        target.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def test_a_damaged_one_is_passed_over_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path / "all")
    (tmp_path / "all" / "checkpoint-00000002" / "job.distcp").unlink()
    assert run(tmp_path / "all", tmp_path / "model.pt") == 0
    out, err = capsys.readouterr()
    assert "job.distcp is missing" in err
    assert "checkpoint-00000001" in out
    assert run(tmp_path / "all" / "checkpoint-00000002", tmp_path / "other.pt") == 1
    (tmp_path / "all" / "checkpoint-00000001" / "job.distcp").unlink()
    assert run(tmp_path / "all", tmp_path / "other.pt") == 1
    assert "has no good checkpoint; of the newest: " in capsys.readouterr().err
    assert not (tmp_path / "other.pt").exists()


@pytest.mark.parametrize(
    ("source", "target", "code", "says"),
    [
        ("nowhere", "model.pt", 1, "there is no folder"),
        (".", "model.pt", 1, "is not a checkpoint of psrpc"),
        ("all", ".", 2, "is a folder"),
        ("all", "nowhere/model.pt", 2, "is no folder"),
    ],
)
def test_errors_are_one_line(
    source: str,
    target: str,
    code: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained(tmp_path / "all", 1)
    capsys.readouterr()
    assert run(tmp_path / source, tmp_path / target) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_arguments_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "DIR" in capsys.readouterr().err
