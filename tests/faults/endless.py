"""A job that trains until something ends it, and says when it has begun."""

from __future__ import annotations

from collections.abc import Sequence

from tests.processes import PSRPC, Bench, Command, Ranks, wait_until

_ENDLESS = """
    import json, os, pathlib, torch

    class Endless(torch.utils.data.Dataset):
        classes = ("a", "b")

        def __init__(self):
            self.read = 0

        def __len__(self):
            return 1_000_000

        def __getitem__(self, index):
            self.read += 1
            if self.read % 100 == 0:
                isolated = json.loads(os.environ.get("PSRPC_PLACE", "{}"))
                name = f"read-{isolated.get('rank', os.environ['RANK'])}"
                pathlib.Path(name + ".new").write_text(str(self.read))
                os.replace(name + ".new", name)
            return torch.ones(4), index % 2

    def model():
        return torch.nn.Linear(4, 2)
"""
_OPTIONS = "train --dataset endless:Endless --model endless:model --epochs 1000 --batch-size 10"


def start(bench: Bench, *options: str, workers: int = 1, **variables: str) -> Command:
    """Start an endless job (of one server, rank 0, and `workers`); return when all train."""
    bench.write("endless.py", _ENDLESS)
    options = ("--workers", str(workers), *options)
    command = bench.start(*PSRPC, *_OPTIONS.split(), *options, **variables)
    _begun(bench, [command], workers)
    return command


def ranks(bench: Bench, *options: str, workers: int = 2) -> Ranks:
    """The same without a launcher."""
    bench.write("endless.py", _ENDLESS)
    ranks = bench.ranks(*PSRPC, *_OPTIONS.split(), *options, count=1 + workers)
    _begun(bench, ranks.commands, workers)
    return ranks


def _begun(bench: Bench, commands: Sequence[Command], workers: int) -> None:
    """Wait until all train."""

    def shown() -> str:
        return "\n".join(command.shown() for command in commands)

    def begun() -> bool:
        assert all(command.process.poll() is None for command in commands), shown()
        return all(read(bench, rank) >= 200 for rank in range(1, workers + 1))

    wait_until(begun, 100, shown)


def read(bench: Bench, rank: int) -> int:
    """How many samples a rank has read, by hundreds."""
    path = bench.folder / f"read-{rank}"
    return int(path.read_text()) if path.exists() else 0
