"""Servers are added to a running job and removed from it: each sample still counts once."""

from __future__ import annotations

import os
import re
import signal

import pytest
import torch

from psrpc.store.spare import spare_dynamo
from tests.processes import PATIENCE_S, PSRPC, Bench, wait_until
from tests.scaling import SLOW, begin


@pytest.mark.parametrize("plane", ["auto", "rpc"])
@pytest.mark.parametrize("mode", ["sync", "bounded", "async"])
def test_servers_come_and_go(bench: Bench, mode: str, plane: str) -> None:
    job = begin(bench, mode, plane)
    for before, servers in ((1, 2), (2, 3), (3, 1)):
        job.scale(before, servers)
        job.until_steps(5)
    report = job.finish()
    job.check(report)
    assert report["plane"] == ("rpc" if plane == "rpc" else "shm")
    changes = [(each["before"], each["servers"]) for each in report["reshards"]]
    assert changes == [(1, 2), (2, 3), (3, 1)]
    assert all(0 < each["held_s"] <= each["stall_s"] for each in report["reshards"])
    assert float((bench.folder / "beat").read_text()) == 9.0 / 5, "as the job asks of the command"


def reference(steps: int) -> dict[str, torch.Tensor]:
    """The weights that one process has after so many steps of the same batches."""
    spare_dynamo()  # which takes seconds to import
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(6, 30), torch.nn.Linear(30, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    data = torch.randn(100, 6, generator=torch.Generator().manual_seed(5))
    for step in range(steps):
        low = 5 * (step % 20)
        optimizer.zero_grad()
        (model(data[low : low + 5]) ** 2).mean().backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("plane", ["auto", "rpc"])
def test_rows_and_optimizer_state_move_bit_for_bit(bench: Bench, plane: str) -> None:
    """Adam, whose state moves with the rows: as one process that nobody disturbed."""
    job = begin(bench, "sync", plane, workers=1, optimizer="adam")
    for before, servers in ((1, 3), (3, 2)):
        job.scale(before, servers)
        job.until_steps(5)
    report = job.finish()
    assert report["samples_counted_once"] is True
    trained = torch.load(bench.folder / "model.pt")
    wanted = reference(report["worker_steps"])
    assert all(torch.equal(trained[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_worker_is_killed_meanwhile(bench: Bench, mode: str) -> None:
    job = begin(bench, mode, "auto")
    asked, _ = job.hold()
    job.kill(2)
    job.go_on()
    assert asked.finish().code == 0, job.ranks.shown()
    job.until_steps(5)
    report = job.finish()
    job.check(report)
    assert report["workers_lost"] == 1
    assert [each["servers"] for each in report["reshards"]] == [2]


def test_a_new_server_is_killed_before_it_serves(bench: Bench) -> None:
    job = begin(bench, "bounded", "auto")
    asked, spare = job.hold()
    spare.process.send_signal(signal.SIGKILL)
    job.spares.clear()
    ended = asked.finish()
    assert ended.code == 1
    assert "the job goes on with 1 server: the new server 1 is lost" in ended.err
    job.until_steps(5)
    job.scale(1, 2)
    job.until_steps(5)
    report = job.finish()
    job.check(report)
    assert [each["servers"] for each in report["reshards"]] == [2]


def test_the_command_is_killed_before_that(bench: Bench) -> None:
    job = begin(bench, "sync", "rpc")
    asked, spare = job.hold()
    asked.process.send_signal(signal.SIGKILL)
    asked.process.wait()
    job.until_steps(5)
    job.go_on()
    assert spare.finish().code == 1
    assert "nobody has asked for such a server" in spare.shown()
    job.spares.clear()
    report = job.finish()
    job.check(report)
    assert report["reshards"] == []


def test_what_cannot_be_is_refused(bench: Bench) -> None:
    job = begin(bench, "async", "auto")
    ended = job.ask(1).finish()
    assert (ended.code, ended.lines) == (
        1,
        ["Error: the job cannot be scaled: it has 1 server already"],
    )
    ended = bench.run(*PSRPC, "scale", "127.0.0.1:1", "--servers", "0")
    assert ended.code == 2
    assert "0 is not in the range x>=1" in ended.lines[-1]
    first, _ = job.hold()
    second = job.ask(3).finish()
    assert second.code == 1
    assert "it is being changed to 2 servers: wait until that is done" in second.err
    job.go_on()
    assert first.finish().code == 0
    job.check(job.finish())


def test_a_worker_that_overlaps_follows_with_what_is_under_way(bench: Bench) -> None:
    job = begin(bench, "overlap", "auto")
    job.scale(1, 2)
    job.until_steps(5)
    joined = bench.joiner(job.ranks)
    job.until_steps(1, "joined")
    job.scale(2, 1)
    job.until_steps(5, "joined")
    report = job.finish()
    assert joined.finish().code == 0
    job.check(report)


def test_checkpoints_are_made_of_the_servers_that_there_are(bench: Bench) -> None:
    job = begin(bench, "bounded", "auto", checkpoints="kept")
    for before, servers in ((1, 3), (3, 2)):
        job.scale(before, servers)
        wait_until(
            lambda wanted=servers: wanted in job.parts().values(), PATIENCE_S, job.ranks.shown
        )
    for command in (*job.ranks.commands, *job.spares):
        command.process.send_signal(signal.SIGKILL)
        command.process.wait()
    job.ranks.commands.clear()
    again = begin(bench, "bounded", "auto", checkpoints="kept")
    assert "going on from kept/checkpoint-" in again.ranks.shown()
    again.check(again.finish())


@pytest.mark.parametrize("replicas", [0, 1])
@pytest.mark.parametrize("by", ["another command", "SIGINT", "SIGTERM"])
def test_psrpc_scale_starts_the_servers_of_a_job_of_psrpc_train(
    bench: Bench, replicas: int, by: str
) -> None:
    bench.write("slow.py", SLOW)
    options = "--isolate --mode async --dataset slow:Slow --model slow:model --batch-size 5"
    more = f"--workers 1 --epochs 1000 --replicas {replicas}"
    trained = bench.start(*PSRPC, "train", *options.split(), *more.split())
    wait_until((bench.folder / "read").exists, PATIENCE_S, trained.shown)
    (address,) = re.findall(r"psrpc join (\S+)", trained.shown())
    added = bench.start(*PSRPC, "scale", address, "--servers", "2")
    wait_until(lambda: "the job has 2 servers now" in added.shown(), PATIENCE_S, added.shown)
    wait_until(lambda: "take them away first" in added.shown(), PATIENCE_S, added.shown)
    if by == "another command":
        (way_out,) = re.findall(r"`psrpc (.*)` take them away first", added.shown())
        removed = bench.run(*PSRPC, *way_out.split())
        assert removed.code == 0, removed.err
        assert "psrpc: the job has 1 server now, after 2" in removed.lines
    elif by == "SIGINT":
        os.killpg(added.process.pid, signal.SIGINT)
    else:
        added.process.send_signal(signal.SIGTERM)
    ended = added.finish()
    assert ended.code == (0 if by == "another command" else 130), ended.err
    added.leaves_nothing()
    (bench.folder / "read").unlink()
    wait_until((bench.folder / "read").exists, PATIENCE_S, trained.shown)
    os.killpg(trained.process.pid, signal.SIGINT)
    assert trained.finish().code == 130
    trained.leaves_nothing()
