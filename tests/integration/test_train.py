"""`psrpc train` as a user calls it: what it writes, shows and leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import psrpc
from psrpc import datasets, models
from tests.processes import PSRPC, Bench, is_progress

KEYS = {
    "psrpc_version", "torch_version", "mode", "staleness", "servers", "workers", "plane",
    "dataset", "model", "optimizer", "batch_size", "seed", "epochs", "test_accuracy",
    "final_loss", "samples", "worker_steps", "updates_applied", "duplicates_dropped", "wall_s",
    "train_s", "samples_per_s", "worker_steps_per_s", "wait_share", "staleness_histogram",
    "max_clock_gap",
}  # fmt: skip
DIGITS = 1438


def check(
    results: dict[str, Any], *, epochs: int | None, train_size: int = DIGITS, plane: str = "shm"
) -> None:
    """What must hold of the results of every job that ended well."""
    assert results.keys() >= KEYS
    assert results["psrpc_version"] == psrpc.__version__
    assert results["torch_version"] == torch.__version__
    assert results["plane"] == plane
    if epochs is not None:
        assert results["samples"] == epochs * train_size
    assert results["updates_applied"] == results["worker_steps"]
    assert results["updates_applied"] == sum(results["staleness_histogram"].values())
    assert results["duplicates_dropped"] == results["nonfinite_skipped"] == 0
    assert 0 < results["train_s"] < results["wall_s"]
    assert 0 <= results["wait_share"] <= 1
    per_s = results["samples"] / results["train_s"]
    assert results["samples_per_s"] == pytest.approx(per_s)


def test_synchronous_on_two_servers_and_three_workers(bench: Bench) -> None:
    options = (
        "--mode sync --servers 2 --workers 3 --warmup 10 --epochs 15 --plane rpc "
        "--json results.json --output model.pt"
    )
    ranks = bench.ranks(*PSRPC, "train", *options.split(), count=5).finish()
    assert [ended.code for ended in ranks] == [0] * 5, ranks
    results = json.loads((bench.folder / "results.json").read_text())
    check(results, epochs=15, plane="rpc")
    assert (results["mode"], results["servers"], results["workers"]) == ("sync", 2, 3)
    assert results["staleness"] == results["max_clock_gap"] == 0
    assert results["test_accuracy"] >= 0.97
    assert set(results["staleness_histogram"]) == {"0"}
    _look_at_what_is_shown(ranks[2].out, ranks[0].err, results)
    assert [(ended.out, ended.lines) for ended in (ranks[1], *ranks[3:])] == [("", [])] * 3
    _look_at_the_weights(bench.folder / "model.pt", results)


def _look_at_what_is_shown(out: str, err: str, results: dict[str, Any]) -> None:
    progress = err.splitlines()
    assert progress
    assert all(is_progress(line) for line in progress), err
    assert "100%" in progress[-1]
    assert f"step {results['updates_applied']}" in progress[-1]
    assert out.startswith("digits with mlp, sync: 2 server(s), 3 worker(s)\n")
    assert f"test accuracy  {results['test_accuracy']:.2%}\n" in out


def _look_at_the_weights(path: Path, results: dict[str, Any]) -> None:
    state = torch.load(path, weights_only=True)
    storages = [value.untyped_storage() for value in state.values()]
    assert len({storage.data_ptr() for storage in storages}) == len(state)
    sizes = [value.numel() * value.element_size() for value in state.values()]
    assert [storage.nbytes() for storage in storages] == sizes
    splits = datasets.load("digits", data_root=None, seed=0)
    model = models.build("auto", input_shape=splits.input_shape, num_classes=splits.num_classes)
    model.load_state_dict(state, strict=True)
    assert splits.test is not None
    images, labels = splits.test[:]
    accuracy = (model(images).argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(results["test_accuracy"], abs=1e-6)


def test_quiet_asynchronous_steps_with_the_results_on_stdout(bench: Bench) -> None:
    options = "--quiet --mode async --steps 40 --batch-size 16 --seed 7 --optimizer adam --json -"
    ended = bench.run(*PSRPC, "train", *options.split(), fresh=True)
    assert (ended.code, ended.lines) == (0, [])
    results = json.loads(ended.out)
    check(results, epochs=None)
    # Whoever begins a moment later begins at the other one's clock, which may have come to 40.
    assert 40 <= results["worker_steps"] <= 80
    assert (results["mode"], results["staleness"], results["epochs"]) == ("async", None, None)
    assert (results["optimizer"], results["batch_size"], results["seed"]) == ("adam", 16, 7)


def test_synchronous_over_process_groups(bench: Bench) -> None:
    options = (
        "--mode sync --plane collective --backend gloo --servers 2 --warmup 10 --epochs 12 "
        "--json results.json"
    )
    ranks = bench.ranks(*PSRPC, "train", *options.split(), count=4).finish()
    assert [(ended.code, ended.lines) for ended in ranks] == [(0, [])] * 4
    results = json.loads((bench.folder / "results.json").read_text())
    check(results, epochs=12, plane="collective")
    assert results["staleness"] == results["max_clock_gap"] == 0
    assert results["test_accuracy"] >= 0.97


OURS = """
    import torch
    from torch.utils.data import Dataset

    class Signs(Dataset):
        def __init__(self, samples, seed):
            random = torch.Generator().manual_seed(seed)
            self.inputs = torch.randn(samples, 6, generator=random)

        def __len__(self):
            return len(self.inputs)

        def __getitem__(self, index):
            return self.inputs[index], int(self.inputs[index].sum() > 0)

    def data():
        return Signs(300, 1), Signs(100, 2)

    def model():
        return torch.nn.Linear(6, 2)
"""


def test_under_torchrun_with_the_users_own_data_and_model(bench: Bench) -> None:
    bench.write("ours.py", OURS)
    ended = bench.torchrun(
        "--standalone --nproc-per-node=3 -m psrpc train --dataset ours:data --model ours:model "
        "--staleness 2 --batch-size 10 --epochs 12 --optimizer sgd --lr 0.2 --json results.json"
    )
    assert ended.code == 0, ended.err
    assert ended.lines == []
    results = json.loads((bench.folder / "results.json").read_text())
    check(results, epochs=12, train_size=300)
    assert (results["mode"], results["staleness"], results["workers"]) == ("bounded", 2, 2)
    assert results["max_clock_gap"] <= 2
    assert results["test_accuracy"] >= 0.9
    assert ended.out.startswith("ours:data with ours:model, bounded staleness 2:")
