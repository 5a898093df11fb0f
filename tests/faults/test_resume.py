"""Checkpoints of a job whose processes are all killed, and jobs that go on from them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.processes import PATIENCE_S, PSRPC, Bench, Finished, wait_until

SCRIPT = """
    import dataclasses, functools, json, pathlib, sys, time, torch, psrpc
    from torch.utils.data import TensorDataset

    mode, servers, epochs, seconds, resume = sys.argv[1:6]
    modes = {
        "sync": psrpc.Synchronous(),
        "bounded": psrpc.BoundedStaleness(2),
        "async": psrpc.Asynchronous(),
    }

    def train(worker):
        for _ in range(int(epochs)):
            for (x,) in worker.batches(TensorDataset(torch.randn(400, 4)), 5):
                worker.model(x).sum().backward()
                time.sleep(float(seconds))
                worker.step()
                pathlib.Path("stepped").touch()

    def model():
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))

    plan = psrpc.Checkpointing("checkpoints", every_s=None, every_updates=30, resume=resume)
    result = psrpc.run(
        train,
        model=model,
        optimizer=functools.partial(torch.optim.Adam, lr=1e-9),
        mode=modes[mode],
        servers=int(servers),
        checkpointing=plan,
        elastic=psrpc.Elastic(rejoin_timeout_s=0.5),
    )
    if result.is_main:
        print(json.dumps(dataclasses.asdict(result.report)))
"""


def checkpoints(bench: Bench) -> list[Path]:
    """The finished ones, the newest last."""
    folder = bench.folder / "checkpoints"
    return sorted(p for p in folder.glob("checkpoint-*") if p.suffix != ".partial")


def updates_in(checkpoint: Path) -> int:
    """How many updates are in its weights."""
    manifest = json.loads((checkpoint / "psrpc.json").read_text())
    updates: int = manifest["content"]["parts"][0]["facts"]["updates"]
    return updates


def kill_when_there_are(bench: Bench, count: int, mode: str, servers: int) -> None:
    """Run a job of two workers until it has so many checkpoints, and kill all of it."""
    bench.write("script.py", SCRIPT)
    words = ("script.py", mode, str(servers), "100", "0.005", "auto")
    ranks = bench.ranks(*words, count=servers + 2)
    wait_until(lambda: len(checkpoints(bench)) >= count, PATIENCE_S, ranks.shown)
    for command in ranks.commands:
        command.process.send_signal(signal.SIGKILL)
    ranks.finish()


def go_on(bench: Bench, mode: str, servers: int, workers: int, epochs: int = 8) -> list[Finished]:
    words = ("script.py", mode, str(servers), str(epochs), "0", "auto")
    return bench.ranks(*words, count=servers + workers).finish()


@pytest.mark.parametrize(
    ("mode", "before", "after"), [("sync", 1, 2), ("bounded", 2, 1), ("async", 2, 3)]
)
def test_a_killed_job_goes_on_with_other_numbers(
    bench: Bench, mode: str, before: int, after: int
) -> None:
    kill_when_there_are(bench, 3, mode, before)
    newest = checkpoints(bench)[-1]
    had = updates_in(newest) * 5
    epochs = had // 400 + 2
    ended = go_on(bench, mode, after, 3, epochs)
    assert [each.code for each in ended] == [0] * (after + 3)
    assert f"going on from checkpoints/{newest.name}" in ended[0].err
    (out,) = [each.out for each in ended if each.out]
    report = json.loads(out)
    assert report["samples"] == epochs * 400, "each sample once, relative to the checkpoint"
    assert report["samples_counted_once"] is True
    assert [each["samples"] for each in report["epoch_accounts"]] == [400] * epochs
    assert all(each["over"] for each in report["epoch_accounts"])
    assert report["worker_steps"] < epochs * 80, "what the checkpoint has is not made again"
    assert report["samples_before"] == had


@pytest.mark.parametrize("told", [(0, 1, 2, 3), (1,)])
def test_a_job_that_is_told_to_stop_is_cut_first(bench: Bench, told: tuple[int, ...]) -> None:
    """SIGTERM to all at once, as SLURM sends it, or to a server that does not coordinate."""
    script = SCRIPT.replace("every_updates=30", "every_updates=10**9")
    bench.write("script.py", script)
    ranks = bench.ranks("script.py", "bounded", "2", "100", "0.005", "auto", count=4)
    wait_until((bench.folder / "stepped").exists, PATIENCE_S, ranks.shown)
    for rank in told:
        ranks.commands[rank].process.send_signal(signal.SIGTERM)
    ended = ranks.finish()
    assert "the job was asked to stop (a signal came to a server)" in ended[0].err
    workers = [0, 0] if len(told) > 1 else [1, 1]
    assert [each.code for each in ended] == [1, 1, *workers]
    (last,) = checkpoints(bench)
    epochs = updates_in(last) * 5 // 400 + 1
    (out,) = [each.out for each in go_on(bench, "bounded", 2, 2, epochs) if each.out]
    report = json.loads(out)
    assert report["samples_counted_once"] is True
    # The next one may have begun when the first life was cut: somebody had work of it.
    done = [each["samples"] for each in report["epoch_accounts"] if each["over"]]
    assert done == [400] * epochs
    assert report["worker_steps"] < epochs * 80


def test_a_job_keeps_what_it_has_at_its_end(bench: Bench) -> None:
    bench.write("script.py", SCRIPT.replace("every_updates=30", "every_updates=10**9"))
    first = go_on(bench, "bounded", 2, 2, epochs=2)
    assert [each.code for each in first] == [0] * 4
    assert "no checkpoint in checkpoints yet: training begins anew" in first[0].err
    (last,) = checkpoints(bench)
    assert updates_in(last) == 160
    reports = [json.loads(each.out) for each in go_on(bench, "async", 1, 2, 3) if each.out]
    assert [each["samples"] for each in reports[0]["epoch_accounts"]] == [400] * 3
    assert reports[0]["worker_steps"] == 80, "only the third epoch is new"


def test_a_damaged_checkpoint_is_passed_over(bench: Bench) -> None:
    kill_when_there_are(bench, 2, "async", 1)
    *_, older, newest = checkpoints(bench)
    file = newest / "server-0.distcp"
    os.truncate(file, file.stat().st_size // 2)
    server, *_ = go_on(bench, "async", 1, 1, epochs=1)
    assert server.code == 0
    assert "passed over" in server.err
    assert newest.name in server.err
    assert f"going on from checkpoints/{older.name}" in server.err


def test_without_a_good_checkpoint_nothing_starts_afresh(bench: Bench) -> None:
    kill_when_there_are(bench, 1, "async", 1)
    for folder in checkpoints(bench):
        (folder / "psrpc.json").write_text("{}")
    ended = go_on(bench, "async", 1, 1)
    assert ended[0].code == 1
    assert "none of the checkpoints in checkpoints can be gone on from" in ended[0].err


def test_psrpc_train_resumes_and_exports(bench: Bench) -> None:
    options = "--checkpoint-dir checkpoints --checkpoint-every 20 --batch-size 10"
    first = bench.start(*PSRPC, "train", *options.split(), "--epochs", "1000")
    wait_until(lambda: checkpoints(bench), PATIENCE_S, first.shown)
    os.killpg(first.process.pid, signal.SIGINT)
    ended, newest = first.finish(), checkpoints(bench)[-1]
    assert ended.code == 130
    (line,) = ended.lines
    assert line.startswith(f"psrpc: checkpoints/{newest.name} is the newest checkpoint: go on")
    epochs = updates_in(checkpoints(bench)[-1]) * 10 // 1438 + 2
    again = bench.train(f"{options} --epochs {epochs} --resume auto --servers 2 --json -")
    assert again.code == 0, again.err
    assert json.loads(again.out)["samples"] == epochs * 1438
    exported = bench.run(*PSRPC, "export", "checkpoints", "model.pt")
    assert exported.code == 0, exported.err
    assert (bench.folder / "model.pt").exists()


def test_a_job_that_nobody_comes_back_to_leaves_a_checkpoint(bench: Bench) -> None:
    bench.write("script.py", SCRIPT.replace("every_updates=30", "every_updates=1_000_000"))
    ranks = bench.ranks("script.py", "async", "1", "100", "0.005", "never", count=3)
    wait_until(lambda: (bench.folder / "stepped").exists(), PATIENCE_S, ranks.shown)
    for rank in (1, 2):
        os.kill(ranks.pid(rank), signal.SIGKILL)
    server, *_ = ranks.finish()
    assert server.code == 1
    assert "0 workers are left" in server.err
    assert len(checkpoints(bench)) == 1


RANDOM = """
    import functools, random, sys, numpy, torch, psrpc

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 60

        def __getitem__(self, index):
            noise = random.random() + numpy.random.rand() + torch.rand(())
            return torch.full((4,), float(index) / 60) + noise

    def train(worker):
        for _ in range(int(sys.argv[1])):
            for x in worker.batches(Noisy(), 5):
                (worker.model(x) ** 2).sum().backward()
                worker.step()

    def model():
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5))

    plan = psrpc.Checkpointing(sys.argv[2], every_s=None, every_updates=15, resume="auto")
    result = psrpc.run(
        train,
        model=model,
        optimizer=functools.partial(torch.optim.Adam, lr=0.01),
        checkpointing=plan,
    )
    if result.is_main:
        torch.save(result.model.state_dict(), f"{sys.argv[2]}.pt")
"""


def test_random_numbers_go_on_as_if_nothing_had_happened(bench: Bench) -> None:
    """One worker, dropout and augmentation: the weights are those of an undisturbed job."""
    bench.write("script.py", RANDOM)
    ranks = bench.ranks("script.py", "1000", "checkpoints", count=2)
    wait_until(lambda: len(checkpoints(bench)) >= 2, PATIENCE_S, ranks.shown)
    for command in ranks.commands:
        command.process.send_signal(signal.SIGKILL)
    ranks.finish()
    epochs = str(updates_in(checkpoints(bench)[-1]) // 12 + 2)
    jobs = [bench.ranks("script.py", epochs, name, count=2) for name in ("checkpoints", "afresh")]
    ended = [job.finish() for job in jobs]
    assert [each.code for job in ended for each in job] == [0] * 4
    assert "going on from" in ended[0][0].err
    resumed, undisturbed = (
        torch.load(bench.folder / f"{name}.pt") for name in ("checkpoints", "afresh")
    )
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)
