"""Every dataset by name, and every way in which one cannot be had."""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from psrpc import datasets
from psrpc.datasets import Splits, mirrors
from psrpc.errors import ConfigError, DatasetError


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that writes a user's module `mine` into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(body: str) -> None:
        head = "import torch\nfrom torch.utils.data import *\n"
        (tmp_path / "mine.py").write_text(head + textwrap.dedent(body))

    yield write
    sys.modules.pop("mine", None)


def load(name: str, data_root: str | Path | None = None, seed: int = 0) -> Splits:
    return datasets.load(name, data_root=None if data_root is None else str(data_root), seed=seed)


def whole(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(dataset, TensorDataset)
    images, labels = dataset.tensors
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert len(images) == len(labels)
    return images, labels


def refusal(name: str, data_root: Path | None = None) -> str:
    """Return the one line with which `name` is refused."""
    with pytest.raises(DatasetError) as caught:
        load(name, data_root)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_names_are_loadable_and_others_are_refused_with_them() -> None:
    assert datasets.names() == ("digits", "mnist", "synthetic")
    for call in (lambda: load("digit"), lambda: datasets.prepare("digit", data_root=None)):
        with pytest.raises(ConfigError, match=r"digits, mnist, synthetic, or package\.module:"):
            call()


def test_digits_are_the_real_ones_normalised() -> None:
    splits = load("digits")
    train, test = whole(splits.train), whole(splits.test)
    assert (splits.input_shape, splits.num_classes) == ((1, 8, 8), 10)
    assert train[0].shape == (1438, 1, 8, 8)
    assert test[0].shape == (359, 1, 8, 8)
    images, labels = (torch.cat(pair) for pair in zip(train, test, strict=True))
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    # The counts that UCI publishes for this part.
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_held_out_fifth_is_fixed_and_apart() -> None:
    first, second = load("digits", seed=0), load("digits", seed=1)
    for a, b in ((first.train, second.train), (first.test, second.test)):
        assert all(map(torch.equal, whole(a), whole(b)))
    train = {bytes(image.numpy()) for image in whole(first.train)[0]}
    test = {bytes(image.numpy()) for image in whole(first.test)[0]}
    assert len(train) + len(test) == 1797
    assert not train & test
    # The split must not move between versions of psrpc, or accuracies cannot be compared.
    labels = bytes(whole(first.test)[1].to(torch.uint8).tolist())
    assert hashlib.sha256(labels).hexdigest()[:16] == "b3b70d435af67e32"


def test_synthetic_has_mnists_shape_and_depends_on_the_seed_alone() -> None:
    splits, again, other = load("synthetic", seed=3), load("synthetic", seed=3), load("synthetic")
    images, labels = whole(splits.train)
    assert images.shape == (12_000, 1, 28, 28)
    assert len(whole(splits.test)[0]) == 2_400
    assert (splits.input_shape, splits.num_classes) == ((1, 28, 28), 10)
    assert labels.unique().tolist() == list(range(10))
    assert images.std().item() == pytest.approx(1, abs=0.05)
    assert all(map(torch.equal, whole(splits.train), whole(again.train)))
    assert not torch.equal(images, whole(other.train)[0])


def test_synthetic_can_be_learned_and_leaves_the_global_random_state() -> None:
    state = torch.get_rng_state()
    splits = load("synthetic")
    assert torch.equal(state, torch.get_rng_state())
    (images, labels), (held_out, wanted) = whole(splits.train), whole(splits.test)
    means = torch.stack([images[labels == digit].mean(0).flatten() for digit in range(10)])
    guesses = torch.cdist(held_out.flatten(1), means).argmin(1)
    assert (guesses == wanted).float().mean().item() > 0.98


def idx(values: torch.Tensor) -> bytes:
    """Return uint8 `values` as the bytes of an idx file."""
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return head + bytes(values.flatten().tolist())


def idx_files(train: int = 20, test: int = 8) -> dict[str, bytes]:
    files = {}
    for part, count in (("train", train), ("t10k", test)):
        images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 28, 28)
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(torch.arange(count, dtype=torch.uint8) % 10)
    return files


@pytest.fixture
def fake_root(tmp_path: Path) -> Path:
    raw = tmp_path / "fake" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in idx_files().items():
        (raw / name).write_bytes(content)
    return tmp_path / "fake"


def listing(root: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*"))


@pytest.fixture
def no_vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision is not installed."""
    monkeypatch.setitem(sys.modules, "torchvision", None)


@pytest.mark.usefixtures("no_vision")
def test_mnist_is_read_whole_and_its_folder_left_alone(fake_root: Path) -> None:
    before = listing(fake_root)
    datasets.prepare("mnist", data_root=str(fake_root))
    splits = load("mnist", fake_root)
    images, labels = whole(splits.train)
    assert images.shape == (20, 1, 28, 28)
    assert images[7, 0, 0, 0].item() == pytest.approx((7 / 255 - 0.1307) / 0.3081)
    assert labels.tolist() == [*range(10), *range(10)]
    assert len(whole(splits.test)[0]) == 8
    assert (splits.input_shape, splits.num_classes) == ((1, 28, 28), 10)
    assert listing(fake_root) == before


def test_mnist_is_looked_for_in_data_without_a_root(
    fake_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_root.rename(fake_root.with_name("data"))
    monkeypatch.chdir(fake_root.parent)
    assert len(whole(load("mnist").train)[0]) == 20


def test_real_mnist(mnist_root: Path) -> None:
    splits = load("mnist", mnist_root)
    images, labels = whole(splits.train)
    assert images.shape == (60_000, 1, 28, 28)
    assert len(whole(splits.test)[0]) == 10_000
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(("train-images-idx3-ubyte", slice(0, 5000)), id="truncated images"),
        pytest.param(("train-images-idx3-ubyte", slice(0, 0)), id="empty file"),
        pytest.param(("t10k-labels-idx1-ubyte", slice(0, 10)), id="truncated labels"),
        pytest.param(("t10k-images-idx3-ubyte", slice(4, None)), id="no magic number"),
    ],
)
def test_damaged_mnist_is_refused(fake_root: Path, damage: tuple[str, slice]) -> None:
    name, kept = damage
    file = fake_root / "MNIST" / "raw" / name
    file.write_bytes(file.read_bytes()[kept])
    text = refusal("mnist", fake_root)
    assert name[:5] in text
    assert "damaged" in text
    assert "delete them" in text
    with pytest.raises(DatasetError, match="damaged"):
        datasets.prepare("mnist", data_root=str(fake_root))


def test_mnist_whose_parts_do_not_fit_is_refused(fake_root: Path) -> None:
    raw = fake_root / "MNIST" / "raw"
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(torch.zeros(19, dtype=torch.uint8)))
    assert "labels (19,)" in refusal("mnist", fake_root)
    labels.write_bytes(idx(torch.full((20,), 77, dtype=torch.uint8)))
    assert "a label is 77" in refusal("mnist", fake_root)
    (raw / "train-images-idx3-ubyte").write_bytes(idx(torch.zeros(20, 8, 8, dtype=torch.uint8)))
    assert "images (20, 8, 8)" in refusal("mnist", fake_root)


@pytest.fixture
def mirror(vision: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a mirror; another mirror does not answer."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for name, content in idx_files().items():
        packed = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    source = vision.datasets.MNIST
    monkeypatch.setattr(source, "resources", resources)
    monkeypatch.setattr(
        source, "mirrors", [f"{(tmp_path / 'none').as_uri()}/", f"{folder.as_uri()}/"]
    )
    return folder


def test_absent_mnist_is_downloaded_once(
    mirror: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new" / "root"
    datasets.prepare("mnist", data_root=str(root))
    raw = root / "MNIST" / "raw"
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == idx_files()
    before = listing(root)
    assert len(whole(load("mnist", root).train)[0]) == 20
    assert listing(root) == before
    assert capfd.readouterr() == ("", "")


def test_mnist_archives_copied_by_hand_are_used(mirror: Path, tmp_path: Path) -> None:
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.parent.mkdir(parents=True)
    mirror.rename(raw)
    assert len(whole(load("mnist", tmp_path / "root").train)[0]) == 20


def test_mnist_that_cannot_be_had_is_refused_in_one_line(
    mirror: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mirror.rename(tmp_path / "gone")
    root = tmp_path / "new"
    text = refusal("mnist", root)
    assert str(root / "MNIST" / "raw") in text
    assert "No such file or directory" in text
    assert "--dataset digits" in text
    assert not root.exists()
    assert capfd.readouterr() == ("", "")


def test_mnist_with_a_wrong_checksum_is_refused(mirror: Path, tmp_path: Path) -> None:
    (mirror / "t10k-labels-idx1-ubyte.gz").write_bytes(b"<html>Please log in</html>")
    assert "another checksum" in refusal("mnist", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_silent_mirrors_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "_ANSWER_S", 0.0)
    monkeypatch.setattr(mirrors, "_ask", lambda *_: None)
    with pytest.raises(OSError, match="no answer within 0 s"):
        mirrors.download([("a.gz", "")], ["http://a/", "http://b/"], tmp_path)


@pytest.mark.usefixtures("no_vision")
def test_a_missing_torchvision_is_named_every_time(tmp_path: Path) -> None:
    texts = {refusal("mnist", tmp_path) for _ in range(3)}
    assert texts == {
        "dataset 'mnist' needs torchvision, which is not installed: "
        "install it (pip install torchvision), or use --dataset digits"
    }


def test_a_torchvision_for_another_torch_is_named_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "extension.py").write_text("")
    (package / "__init__.py").write_text(
        "from torchvision import extension\n"
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    texts = {refusal("mnist") for _ in range(3)}
    sys.modules.pop("torchvision.extension", None)
    assert len(texts) == 1
    assert f"does not work with torch {torch.__version__}" in texts.pop()


def test_a_users_dataset(module: Any) -> None:
    module("def make(): return TensorDataset(torch.zeros(6, 3, 4), torch.arange(6) % 3)")
    datasets.prepare("mine:make", data_root=None)
    splits = load("mine:make")
    assert len(splits.train) == 6  # type: ignore[arg-type]
    assert splits.test is None
    assert (splits.input_shape, splits.num_classes) == ((3, 4), 3)


@pytest.mark.parametrize("kind", ["tuple", "list"])
def test_a_users_pair(module: Any, kind: str) -> None:
    module(f"""
        def make():
            data = TensorDataset(torch.zeros(10, 2), torch.arange(10))
            return {kind}(random_split(data, [7, 3]))
    """)
    splits = load("mine:make")
    assert [len(part) for part in (splits.train, splits.test)] == [7, 3]  # type: ignore[arg-type]
    assert (splits.input_shape, splits.num_classes) == ((2,), 10)


def test_a_users_dataset_that_tells_its_classes_only(module: Any) -> None:
    module("""
        class Data(Dataset):
            classes = ["cat", "dog"]
            def __len__(self): return 3
            def __getitem__(self, index): return torch.zeros(2), 0
    """)
    splits = load("mine:Data")
    assert (splits.input_shape, splits.num_classes) == (None, 2)
    assert len(list(DataLoader(splits.train))) == 3


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("def make(): return 7", "an object of type int as the training set; expected a map-style"),
        ("def make(): return None", "NoneType"),
        ("def make(): return torch.zeros(3)", "type Tensor"),
        ("def make(): return [1, 2, 3]", "a list of 3 (int, int, int)"),
        ("def make(): return (TensorDataset(torch.ones(1)), 3)", "type int as the test set"),
        ("def make(): return DataLoader(TensorDataset(torch.ones(1)))", "type DataLoader"),
        ("def make(): return ChainDataset([])", "IterableDataset as the training set: its samples"),
        ("class make(Dataset): pass", "type make as the training set"),
        ("def make(): return TensorDataset(torch.zeros(0, 2))", "empty dataset"),
        ("def make(): raise ValueError('no\\nsuch disk')", "ValueError: no"),
        ("def make(): raise SystemExit(2)", "SystemExit: 2"),
        ("def make(folder): pass", "missing 1 required positional argument: 'folder'"),
        ("make = 3", "an object of type int; a function or a class is needed"),
        ("def made(): pass", "module 'mine' has no attribute 'make'"),
        ("import not_there", "No module named 'not_there'"),
        ("raise SystemExit('usage: mine')", "SystemExit: usage: mine"),
        ("def make(:", "SyntaxError"),
    ],
)
def test_a_users_dataset_that_cannot_be_used(module: Any, body: str, text: str) -> None:
    module(body)
    refused = refusal("mine:make")
    assert "'mine:make'" in refused
    assert text in refused


def test_a_users_module_that_does_not_exist(module: Any, tmp_path: Path) -> None:
    assert f"there is no module 'not_mine' in {tmp_path}" in refusal("not_mine.data:make")
    with pytest.raises(DatasetError, match="no module 'not_mine'") as caught:
        datasets.prepare("not_mine:make", data_root=None)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert "package.module:callable" in refusal("mine:")
