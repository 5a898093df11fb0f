"""What is wrong with a checkpoint is said in one line; a crash leaves the old ones."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn, optim

from psrpc.checkpoints import writing
from psrpc.checkpoints.folder import Checkpoints, checkpoints_in, newest, partial_folder
from psrpc.checkpoints.manifest import MANIFEST
from psrpc.checkpoints.reading import open_checkpoint
from psrpc.errors import CheckpointError
from psrpc.store.blueprint import draw
from tests.unit.saving import load, save
from tests.unit.shards import OPTIMIZERS, Shards, assert_equal

FILES = (".metadata", "job.distcp", "psrpc.json", "server-0.distcp", "server-1.distcp")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shards = Shards(OPTIMIZERS["adam"], 2)
    shards.train([0])
    return save(shards, tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A good checkpoint to be damaged."""
    return Path(shutil.copytree(good, tmp_path / good.name))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


def test_these_are_its_files(good: Path) -> None:
    assert sorted(path.name for path in good.iterdir()) == sorted(FILES)
    assert good.name == "checkpoint-00000001"
    open_checkpoint(good)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(name: str, folder: Path) -> None:
    data = (folder / name).read_bytes()
    for keep in (0, len(data) // 2, len(data) - 2):
        (folder / name).write_bytes(data[:keep])
        assert "truncated" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte(name: str, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    # In the manifest: a digit of a number that JSON takes either way.
    at = data.index(b'"number": 1') + 10 if name == MANIFEST else len(data) // 2
    data[at] ^= 1 << 1
    (folder / name).write_bytes(data)
    assert "was changed after it was written" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_too_long(name: str, folder: Path) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"more")
    assert ("truncated or damaged" if name == MANIFEST else "too long") in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    text = refusal(folder)
    assert (f"has no {MANIFEST}" if name == MANIFEST else f"{name} is missing") in text


def test_a_quick_look_sees_sizes_only(folder: Path) -> None:
    data = bytearray((folder / "job.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "job.distcp").write_bytes(data)
    open_checkpoint(folder, thorough=False)
    (folder / "job.distcp").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(folder, thorough=False)


def test_a_newer_format(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "version": 2, "content": "other"}))
    assert "has version 2 of the format and this psrpc reads up to 1" in refusal(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "mine"}'])
def test_somebody_elses_manifest(text: str, folder: Path) -> None:
    (folder / MANIFEST).write_text(text)
    assert "is not a checkpoint of psrpc" in refusal(folder)


def test_foreign_folders(tmp_path: Path) -> None:
    assert "there is no folder" in refusal(tmp_path / "nowhere")
    assert "it has no psrpc.json" in refusal(tmp_path)
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"a": torch.ones(2)}, checkpoint_id=tmp_path / "torch", no_dist=True)
    assert "a checkpoint of PyTorch but not of psrpc" in refusal(tmp_path / "torch")


def test_another_model_is_named(good: Path) -> None:
    blueprint = draw(nn.Linear(2, 3), optim.Adam)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(good).shard(blueprint, blueprint.layouts(1)[0])
    assert (
        "'large' [40, 5] float32 where this job's model has the parameter 'weight' [3, 2] float32"
    ) in str(caught.value)


def test_a_model_with_a_parameter_more_or_less(good: Path) -> None:
    for missing, says in (("narrow", "this job's model has no more"), ("", "it has no more")):
        shards = Shards(OPTIMIZERS["adam"])
        model = shards.model
        if missing:
            del model.narrow
        else:
            model.zeros = nn.Parameter(torch.zeros(2))
        with pytest.raises(CheckpointError, match=says):
            open_checkpoint(good).check(draw(model, optim.Adam))


def test_another_optimizer_is_named(good: Path) -> None:
    blueprint = Shards(OPTIMIZERS["sgd"]).blueprint
    with pytest.raises(CheckpointError, match=r"with torch\.optim\.adam\.Adam, this job.*SGD"):
        open_checkpoint(good).check(blueprint)


def test_the_newest_good_one_is_taken_and_others_are_said(tmp_path: Path) -> None:
    shards = Shards(OPTIMIZERS["adam"], 2)
    folders = []
    for step in range(3):
        shards.train([step])
        folders.append(save(shards, tmp_path, keep=5))
    (folders[2] / "job.distcp").unlink()
    (folders[1] / MANIFEST).write_text("{")
    checkpoint, passed = newest(tmp_path, shards.blueprint)
    assert checkpoint is not None
    assert checkpoint.folder == folders[0]
    assert [where for where, _ in passed] == [folders[2], folders[1]]
    assert "job.distcp is missing" in passed[0][1]
    other = draw(nn.Linear(2, 2), optim.Adam)
    nothing, passed = newest(tmp_path, other)
    assert nothing is None
    assert len(passed) == 3
    assert newest(tmp_path / "nowhere") == (None, ())


def test_the_newest_are_kept_and_damaged_ones_do_not_count(tmp_path: Path) -> None:
    shards = Shards(OPTIMIZERS["sgd"])
    for _ in range(5):
        save(shards, tmp_path)
    assert [int(path.name[-8:]) for path in checkpoints_in(tmp_path)] == [5, 4, 3]
    (tmp_path / "checkpoint-00000005" / MANIFEST).unlink()
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.start()
    checkpoint, _ = checkpoints.newest(shards.blueprint)
    assert checkpoint is not None
    checkpoints._prune()
    assert [int(path.name[-8:]) for path in checkpoints_in(tmp_path)] == [5, 4, 3]


class Crash(BaseException):
    """The process ends here."""


def crash(*_: object) -> None:
    raise Crash


@pytest.mark.parametrize("at", ["_write_job", "mark_of", "write_whole", "sync_folder"])
def test_a_crash_leaves_the_old_one(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards(OPTIMIZERS["adam"], 2)
    shards.train([0])
    first = save(shards, tmp_path)
    shards.train([1])
    with monkeypatch.context() as patch:
        patch.setattr(writing, at, crash)
        with pytest.raises(Crash):
            save(shards, tmp_path)
    checkpoint, passed = newest(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.folder, passed) == (first, ())
    assert partial_folder(tmp_path, 2).is_dir()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.start()
    assert list(tmp_path.iterdir()) == [first]
    again = Shards(OPTIMIZERS["adam"], 1)
    load(again, save(shards, tmp_path))
    assert_equal(shards, again)


def test_a_checkpoint_given_up_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "deep" / "er")
    checkpoints.start()
    number = checkpoints.begin()
    checkpoints.abandon(number)
    assert list(checkpoints.directory.iterdir()) == []
    assert checkpoints.begin() == number + 1


def test_a_part_that_is_missing_is_found(tmp_path: Path) -> None:
    shards = Shards(OPTIMIZERS["adam"], 2)
    shards.stores.pop()
    with pytest.raises(CheckpointError, match="do not make a whole"):
        save(shards, tmp_path)
    assert newest(tmp_path) == (None, ())


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(Shards(OPTIMIZERS["sgd"]), tmp_path / "file")


def test_partial_settings_of_an_optimizer_are_its_class(good: Path) -> None:
    model = Shards(OPTIMIZERS["adam"]).model
    open_checkpoint(good).check(draw(model, partial(optim.Adam, lr=0.5)))


def test_what_is_still_written_into_one_that_was_given_up_goes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.start()
    number = checkpoints.begin()
    checkpoints.abandon(number)
    late = partial_folder(tmp_path, number)
    late.mkdir()
    (late / "server-1.distcp").write_text("late")
    following = checkpoints.begin()
    assert [path.name for path in tmp_path.iterdir()] == [partial_folder(tmp_path, following).name]
    checkpoints.clear()
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_deposed_clears_nothing_of_its_successor(tmp_path: Path) -> None:
    before, after = Checkpoints(tmp_path), Checkpoints(tmp_path)
    before.start()
    number = before.begin()
    after.start(after=number)
    following = after.begin()
    assert following == number + 1
    before.clear()
    before.abandon(number)
    assert [path.name for path in tmp_path.iterdir()] == [partial_folder(tmp_path, following).name]


def test_older_ones_are_another_jobs(tmp_path: Path) -> None:
    shards = Shards(OPTIMIZERS["sgd"])
    for _ in range(2):
        last = save(shards, tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest_number() == 2
    assert checkpoints.newest(shards.blueprint, above=2) == (None, ())
    found, _ = checkpoints.newest(shards.blueprint, above=1)
    assert found is not None
    assert found.folder == last
