"""Jobs that fail while they run: the reason is told once, and everybody ends."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.processes import PATIENCE_S, PSRPC, SOON_S, TORCHRUN, Bench, Finished, wait_until

DATA = """
    import torch
    from torch.utils.data import Dataset, TensorDataset

    def with_a_nan():
        inputs = torch.randn(200, 4)
        inputs[70, 2] = float("nan")
        return TensorDataset(inputs, torch.arange(200) % 2)

    class Broken(Dataset):
        classes = ("a", "b")

        def __len__(self):
            return 200

        def __getitem__(self, index):
            if index == 70:
                raise LookupError("sample 70 is unreadable")
            return torch.ones(4), index % 2

    def model():
        return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
"""
TRAIN = "--model data:model --batch-size 10"


def test_a_nan_ends_the_job(bench: Bench) -> None:
    bench.write("data.py", DATA)
    options = f"{TRAIN} --dataset data:with_a_nan".split()
    for ended in bench.ranks(*PSRPC, "train", *options, count=3).finish():
        assert ended.code == 1
        (line,) = ours(ended)
        assert line.startswith("Error: ")
        assert "'0.weight'" in line
        assert "NaN" in line


def test_a_nan_is_skipped_and_counted(bench: Bench) -> None:
    bench.write("data.py", DATA)
    options = f"{TRAIN} --dataset data:with_a_nan --nonfinite skip --epochs 3 --json -".split()
    _, main, _ = ranks = bench.ranks(*PSRPC, "train", *options, count=3).finish()
    assert [(ended.code, ended.lines) for ended in ranks] == [(0, [])] * 3
    results = json.loads(main.out)
    assert results["nonfinite_skipped"] == 3
    assert results["worker_steps"] == results["updates_applied"]
    assert results["optimizer_steps"] == results["worker_steps"] - 3
    assert 0 < results["final_loss"] < 2


def test_the_users_data_fails_under_psrpc_train(bench: Bench) -> None:
    bench.write("data.py", DATA)
    ended = bench.train(f"{TRAIN} --dataset data:Broken")
    assert ended.code == 1
    assert ended.err.count("Traceback (most recent call last)") == 1, ended.err
    assert ended.lines[0] == "Traceback (most recent call last):"
    assert "data.py" in ended.err
    assert ended.lines[-2] == "LookupError: sample 70 is unreadable"
    assert ended.lines[-1].startswith("Error: ")
    assert "LookupError: sample 70 is unreadable" in ended.lines[-1]


SCRIPT = """
    import functools, os, pathlib, sys, time, torch, psrpc

    what, mine = sys.argv[1], os.environ["RANK"] == "2"
    hidden = 7 if what == "model" and mine else 5
    mode = psrpc.Asynchronous() if what == "mode" and mine else psrpc.Synchronous()
    if what == "absent" and mine:
        sys.exit()
    # Importing takes longer or shorter: who comes is here before the time to start runs, and has
    # enough of it to do the rest.
    start_timeout_s = 5 if what == "absent" else 300
    pathlib.Path("here-" + os.environ["RANK"]).touch()
    while not (pathlib.Path("here-0").exists() and pathlib.Path("here-1").exists()):
        time.sleep(0.01)

    def model():
        return torch.nn.Sequential(torch.nn.Linear(4, hidden), torch.nn.Linear(hidden, 2))

    def train(worker):
        for step in range(1_000_000):
            worker.model(torch.ones(3, 4)).sum().backward()
            worker.step()
            if step == 20:
                pathlib.Path("stepped").touch()
            if what == "raise" and mine and step == 20:
                pathlib.Path("raised").touch()
                raise ZeroDivisionError("mine")

    sgd = functools.partial(torch.optim.SGD, lr=1e-9)
    psrpc.run(train, model=model, optimizer=sgd, mode=mode, start_timeout_s=start_timeout_s)
"""


def ours(ended: Finished) -> list[str]:
    """What psrpc said. How much torch's C++ side logs can only be set before it is loaded."""
    return [line for line in ended.lines if "tensorpipe_agent.cpp" not in line]


def test_the_users_function_raises_under_torchrun(bench: Bench) -> None:
    bench.write("script.py", SCRIPT)
    command = bench.start(*TORCHRUN, "--standalone", "--nproc-per-node=3", "script.py", "raise")
    ended = command.finish()
    took_s = time.time() - (bench.folder / "raised").stat().st_mtime
    assert ended.code != 0
    assert took_s < SOON_S
    assert ended.err.count("\n    raise ZeroDivisionError(") == 1, ended.err
    assert ended.err.count("\nZeroDivisionError: mine\n") == 1
    # Torchrun's own error report follows.
    assert ended.err.count("Traceback (most recent call last)\n") <= 1
    command.leaves_nothing()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("raise", "worker 1 failed: ZeroDivisionError: mine"),
        ("model", "worker 1 has another model than the server: its parameter '0.weight' [7, 4] "
                  "float32 stands where the server has '0.weight' [5, 4] float32"),
        ("mode", "mode is Asynchronous() on worker 1 and Synchronous(backup_workers=0) on the "
                 "server"),
        ("absent", "these have not come within 5 s: worker 1"),
    ],
)  # fmt: skip
def test_one_of_three_processes_is_at_fault(bench: Bench, what: str, reason: str) -> None:
    bench.write("script.py", SCRIPT)
    server, innocent, _ = bench.ranks("script.py", what, count=3).finish()
    assert (server.code, innocent.code) == (1, 1)
    for ended in (server, innocent):
        assert [reason in line for line in ours(ended)] == [True], ended.err


def test_kill_9_of_the_server_that_keeps_the_store(bench: Bench) -> None:
    bench.write("script.py", SCRIPT)
    ranks = bench.ranks("script.py", "endless", count=3)
    wait_until((bench.folder / "stepped").exists, PATIENCE_S, ranks.shown)
    os.kill(ranks.pid(0), signal.SIGKILL)
    server, *workers = ranks.finish()
    assert server.code == -signal.SIGKILL
    for ended in workers:
        assert ended.took_s < SOON_S
        (line,) = ours(ended)
        assert ended.code == 1
        assert line.startswith("psrpc: server0 ")
