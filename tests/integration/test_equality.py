"""Synchronous training in processes of its own equals plain torch.optim, over every plane."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.processes import Bench

STEPS = 50
SCRIPT = """
    import functools, sys, torch, psrpc
    from torch import nn

    def model():
        return nn.Sequential(nn.Linear(20, 33), nn.Tanh(), nn.Linear(33, 5))

    def batches():
        random = torch.Generator().manual_seed(11)
        for _ in range(50):
            yield torch.randn(12, 20, generator=random), torch.randn(12, 5, generator=random)

    def train(worker):
        # A third and two thirds of each batch.
        mine = slice(0, 4) if worker.rank == 0 else slice(4, 12)
        for inputs, targets in batches():
            loss = nn.functional.mse_loss(worker.model(inputs[mine]), targets[mine])
            loss.backward()
            worker.step(samples=mine.stop - mine.start)

    sgd = functools.partial(torch.optim.SGD, lr=0.2, momentum=0.9)
    if __name__ == "__main__":
        result = psrpc.run(train, model=model, optimizer=sgd, servers=2, plane=sys.argv[1], seed=3)
        if result.is_main:
            assert result.plane == sys.argv[1]
            torch.save(result.model.state_dict(), "trained.pt")
"""


def in_one_process(script: dict[str, object]) -> dict[str, torch.Tensor]:
    """What the script's model comes to with whole batches and torch's own optimizer."""
    torch.manual_seed(3)
    model: nn.Module = script["model"]()  # type: ignore[operator]
    optimizer = script["sgd"](model.parameters())  # type: ignore[operator]
    for inputs, targets in script["batches"]():  # type: ignore[operator]
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("plane", ["rpc", "shm", "collective"])
def test_two_workers_and_two_servers_equal_one_process(bench: Bench, plane: str) -> None:
    source = bench.write("script.py", SCRIPT).read_text()
    for ended in bench.ranks("script.py", plane, count=4).finish():
        assert (ended.code, ended.lines) == (0, [])
    trained = torch.load(bench.folder / "trained.pt", weights_only=True)
    script: dict[str, object] = {"__name__": "script"}
    exec(source, script)
    for name, expected in in_one_process(script).items():
        error = (trained[name] - expected).norm() / expected.norm()
        assert error < 1e-5, f"{name}: {error}"
