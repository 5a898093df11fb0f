"""`psrpc.run` in a user's own script, under a launcher that sets variables only, and without."""

from __future__ import annotations

from tests.processes import Bench

NET = """
    import torch

    def net():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""
SCRIPT = """
    import functools, os, torch, psrpc
    from psrpc import datasets
    from net import net

    splits = datasets.load("digits", data_root=None, seed=0)

    def train(worker):
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
        for _ in range(4):
            for images, labels in worker.batches(splits.train, 32):
                loss = torch.nn.functional.cross_entropy(worker.model(images), labels)
                loss.backward()
                worker.step(loss)

    result = psrpc.run(train, model=net, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    if result.is_main:
        right = (result.model(splits.test[:][0]).argmax(1) == splits.test[:][1]).float().mean()
        print(f"main: {right:.2f} {result.report.samples} {result.report.worker_steps}")
    print(f"{result.role.value} {result.rank}")
"""


def test_ten_lines_with_nothing_but_variables(bench: Bench) -> None:
    bench.write("net.py", NET)
    bench.write("script.py", SCRIPT)
    ended = bench.ranks("script.py", count=3).finish()
    assert [(each.code, each.lines) for each in ended] == [(0, [])] * 3
    (server,), (main, first), (second,) = (each.out.splitlines() for each in ended)
    assert (server, first, second) == ("server 0", "worker 0", "worker 1")
    accuracy, samples, steps = main.removeprefix("main: ").split()
    assert float(accuracy) > 0.9
    assert int(samples) == 4 * 1438
    assert int(steps) >= 4 * 1438 / 32


def test_without_a_launcher(bench: Bench) -> None:
    bench.write("net.py", NET)
    bench.write("script.py", SCRIPT)
    ended = bench.run("script.py")
    assert ended.code == 1
    assert len(ended.lines) == 1
    assert ended.err.startswith("psrpc: psrpc.run must be started by torchrun: torchrun --nproc")
