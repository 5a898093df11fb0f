"""A process can take part in one job: a second one is refused, in all processes."""

from __future__ import annotations

from tests.processes import Bench

SCRIPT = """
    import functools, torch, psrpc
    from torch.utils.data import TensorDataset

    def train(worker):
        for (x,) in worker.batches(TensorDataset(torch.ones(20, 4)), 5):
            worker.model(x).sum().backward()
            worker.step()

    for _ in range(2):
        psrpc.run(
            train,
            model=lambda: torch.nn.Linear(4, 2),
            optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        )
        print("done", flush=True)
"""


def test_a_second_job_in_a_process_is_refused(bench: Bench) -> None:
    bench.write("script.py", SCRIPT)
    for ended in bench.ranks("script.py", count=2).finish():
        assert (ended.code, ended.out) == (1, "done\n"), ended.err
        (line,) = ended.lines
        assert line.startswith("psrpc: psrpc.run was called before in this process")
