"""Checkpoints: round trips onto other numbers of servers, and what plain PyTorch reads."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

from psrpc.checkpoints.reading import open_checkpoint
from psrpc.errors import CheckpointError
from psrpc.store.state import same
from tests.unit.saving import load, save
from tests.unit.shards import OPTIMIZERS, Net, Shards, assert_equal, two_groups


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 3), (3, 1), (3, 2)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_with_other_servers(
    name: str, before: int, after: int, tmp_path: Path
) -> None:
    one, other = Shards(OPTIMIZERS[name], before), Shards(OPTIMIZERS[name], after)
    if name != "own":
        assert any(
            p.first_row for layout in (*one.layouts, *other.layouts) for p in layout.pieces
        ) or (before == after), "a tensor is cut"
    one.train(range(3))
    load(other, save(one, tmp_path))
    assert_equal(one, other)
    for shards in (one, other):
        shards.train(range(3, 6))
    assert_equal(one, other)


@pytest.mark.parametrize("name", ["sgd-momentum", "adam", "adagrad", "asgd"])
def test_pieces_with_states_of_their_own(name: str, tmp_path: Path) -> None:
    one, other = Shards(OPTIMIZERS[name], 2), Shards(OPTIMIZERS[name], 3)
    one.train([0], absent=["scale"])
    one.train([1], absent=["scale", "large"])
    load(other, save(one, tmp_path))
    for shards in (one, other):
        shards.train([2, 3])
    assert_equal(one, other)


def test_groups_and_changed_options_go_along(tmp_path: Path) -> None:
    one, other = (Shards(OPTIMIZERS["adam"], n, two_groups) for n in (2, 3))
    one.train(range(2), lr=0.5, betas=(0.5, 0.6))
    load(other, save(one, tmp_path))
    assert other.stores[0].image().options == one.stores[0].image().options != ()


def test_facts_and_tensors_come_back(tmp_path: Path) -> None:
    shards = Shards(OPTIMIZERS["sgd"], 2)
    checkpoint = open_checkpoint(save(shards, tmp_path, ledger={"open": []}))
    contents = checkpoint.manifest
    assert [dict(part.facts) for part in contents.parts] == [
        {"clock": 0, "ledger": {"open": []}},
        {"clock": 1, "ledger": {"open": []}},
    ]
    assert dict(contents.job.facts) == {"epoch": 7}
    assert contents.settings == {"mode": "sync"}
    assert checkpoint.tensors(contents.parts[1])["random"].tolist() == [1, 2, 3]
    assert checkpoint.tensors(contents.job) == {}


def test_the_rest_of_the_model_comes_back(tmp_path: Path) -> None:
    shards = Shards(OPTIMIZERS["sgd"], 2)
    mean = [torch.full((4,), 2.5), torch.tensor(9)]
    checkpoint = open_checkpoint(save(shards, tmp_path, buffers=mean))
    rest = checkpoint.rest()
    assert set(rest) == {"frozen", "mean", "count"}
    assert torch.equal(rest["mean"], mean[0])
    assert torch.equal(rest["count"], mean[1])
    model = Net()
    model.load_state_dict(checkpoint.state_dict())
    assert list(checkpoint.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("name", ["adam", "own"])
def test_plain_pytorch_reads_it(name: str, servers: int, tmp_path: Path) -> None:
    shards = Shards(OPTIMIZERS[name], servers, two_groups)
    shards.train(range(2))
    folder = save(shards, tmp_path)
    model = Net()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    target = {"model": model.state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(target, checkpoint_id=folder, no_dist=True)
        dcp_to_torch_save(folder, tmp_path / "whole.pt")
    for key, tensor in shards.weights().items():
        assert torch.equal(target["model"][key], tensor)
    assert torch.equal(model.tied, model.bias)
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert set(whole) == {"model", "optimizer"}
    assert list(whole["optimizer"]["param_groups"][0]["params"]) == ["large", "narrow"]
    alone = Shards(OPTIMIZERS[name], 1, two_groups)
    alone.train(range(2))
    (store,) = alone.stores
    for piece, image in zip(store.layout.pieces, store.image().pieces, strict=True):
        state = whole["optimizer"]["state"][alone.specs[piece.parameter].name]
        assert state.keys() == image.state.keys()
        assert all(same(state[key], value) for key, value in image.state.items())


def test_a_plain_optimizer_takes_the_state(tmp_path: Path) -> None:
    shards = Shards(OPTIMIZERS["adam"], 2)
    shards.train(range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(save(shards, tmp_path), tmp_path / "whole.pt")
        whole = torch.load(tmp_path / "whole.pt", weights_only=True)
        model = Net()
        optimizer = OPTIMIZERS["adam"](p for p in model.parameters() if p.requires_grad)
        groups = whole["optimizer"]["param_groups"]
        groups[0]["params"].remove("frozen")
        set_optimizer_state_dict(model, optimizer, whole["optimizer"])
    assert float(optimizer.state[model.large]["step"]) == 2


def test_rows_without_a_state_are_zeros_to_plain_pytorch_and_none_to_psrpc(tmp_path: Path) -> None:
    """One server is a step ahead of the other."""
    shards = Shards(OPTIMIZERS["sgd-momentum"], 2)
    late, shards.stores = shards.stores[1], shards.stores[:1]
    shards.train([0])
    shards.stores.append(late)
    folder = save(shards, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(folder, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    buffer = whole["optimizer"]["state"]["large"]["momentum_buffer"]
    assert sorted(bool(row.any()) for row in buffer)[0] is False
    again = Shards(OPTIMIZERS["sgd-momentum"], 2)
    load(again, folder)
    for each in (shards, again):
        each.train([1])
    assert_equal(shards, again)


def test_a_state_that_cannot_be_kept_is_named(tmp_path: Path) -> None:
    shards = Shards(OPTIMIZERS["own"])
    shards.train([0])
    (store,) = shards.stores
    store._optimizer._optimizer.state[store._optimizer._of_segment[0][0]]["odd"] = tmp_path  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="'narrow odd' is a PosixPath"):
        save(shards, tmp_path)
