"""A job of a script whose servers are added and removed by tests."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore

from psrpc.core.decisions import some_servers
from psrpc.secret import MAC_BYTES
from tests.processes import PATIENCE_S, Bench, Command, Ranks, wait_until
from tests.stores import keep_store

SCRIPT = """
    import dataclasses, functools, itertools, json, os, pathlib, sys, time, torch, psrpc
    import psrpc.replication.primary
    import psrpc.watcher
    from psrpc.orders import Cut
    from psrpc.planes.select import planes_of
    from torch.utils.data import TensorDataset

    mode, plane, epochs, optimizer = sys.argv[1:5]
    checkpoints = sys.argv[5] if len(sys.argv) > 5 else ""
    modes = {
        "sync": psrpc.Synchronous(),
        "backup": psrpc.Synchronous(1),
        "bounded": psrpc.BoundedStaleness(2),
        "overlap": psrpc.BoundedStaleness(2),
        "async": psrpc.Asynchronous(),
    }
    replicas = int(os.environ.get("REPLICAS", "0"))
    psrpc.replication.primary.CHECK_EVERY = 7  # entries, at which a pair's servers are compared
    # Deaths are heard of at once, pauses are none. A heart beats five times as often.
    dead_after_s = 30.0 if replicas else 9.0
    name = os.environ["RANK"] if "RANK" in os.environ else "joined"

    if "HOLD" in os.environ:  # a new server that takes its rows when it is told to
        take_rows = psrpc.spares.gather

        def hold_and_take(*arguments):
            pathlib.Path("held").touch()
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
            return take_rows(*arguments)

        psrpc.spares.gather = hold_and_take

    if "HOLD_CUT" in os.environ:  # one that halts for a layout, and never hears where it is cut
        obey = psrpc.watcher.Watcher._obey

        def hold_cut(watcher, word):
            while isinstance(word, Cut) and word.layout:
                pathlib.Path("cut-held").touch()
                time.sleep(0.01)
            obey(watcher, word)

        psrpc.watcher.Watcher._obey = hold_cut

    def model():
        torch.manual_seed(3)
        made = torch.nn.Sequential(torch.nn.Linear(6, 30), torch.nn.Linear(30, 5))
        if optimizer == "exact":  # every gradient is a whole number, whatever the weights are
            made = torch.nn.Linear(6, 30)
            torch.nn.init.zeros_(made.weight)
        return made

    def loss_of(outputs):
        return outputs.sum() if optimizer == "exact" else (outputs**2).mean()

    def train(worker):
        data = torch.ones(100, 6)
        if optimizer != "exact":
            data = torch.randn(100, 6, generator=torch.Generator().manual_seed(5))
        for _ in itertools.count() if epochs == "some" else range(int(epochs)):
            if epochs == "some" and pathlib.Path("enough").exists():
                return
            for (x,) in worker.batches(TensorDataset(data), 5, shuffle=optimizer == "exact"):
                while pathlib.Path(f"pause-{name}").exists():
                    pathlib.Path(f"paused-{name}").touch()
                    time.sleep(0.01)
                loss_of(worker.model(x)).backward()
                time.sleep(0.02)
                worker.step()
                pathlib.Path(f"steps-{name}.new").write_text(str(worker.steps))
                os.replace(f"steps-{name}.new", f"steps-{name}")
                pathlib.Path(f"new-{name}").write_text(planes_of(worker.follower.links))
                os.replace(f"new-{name}", f"planes-{name}")

    optimizers = {
        "exact": functools.partial(torch.optim.SGD, lr=2.0**-12),
        "adam": functools.partial(torch.optim.Adam, lr=0.01),
    }
    plan = None
    if checkpoints:
        plan = psrpc.Checkpointing(checkpoints, every_s=None, every_updates=40, resume="auto")
    result = psrpc.run(
        train,
        model=model,
        optimizer=optimizers[optimizer],
        mode=modes[mode],
        plane=plane,
        overlap=mode == "overlap",
        replicas=replicas,
        reduction="sum",
        checkpointing=plan,
        elastic=psrpc.Elastic(dead_after_s=dead_after_s, rejoin_timeout_s=30.0),
    )
    if result.is_main:
        report = dataclasses.asdict(result.report)
        report["plane"] = result.plane
        torch.save(result.model.state_dict(), "model.pt")
        print(json.dumps(report))
"""

# `psrpc scale` whose new servers are started by the test: where each is to stand it writes down.
SCALE = """
    import json, os, sys
    from dataclasses import asdict
    from pathlib import Path
    from psrpc import isolation, pulse

    start_heart = pulse.Heart.start

    def tell_and_start(self):
        Path("beat").write_text(str(self._beat_s))
        start_heart(self)

    pulse.Heart.start = tell_and_start

    def start(self, place, restarts):
        name = "-".join(map(str, ("place", place.becomes[0], *place.becomes[3:])))
        Path(f"{name}.new").write_text(json.dumps(asdict(place)))
        os.replace(f"{name}.new", name)

    isolation.Roles.start = start

    from psrpc.cli import main

    main(["scale", *sys.argv[1:]])
"""


# A data set for `psrpc train`, each of whose samples takes a while.
SLOW = """
    import pathlib, time, torch

    class Slow(torch.utils.data.Dataset):
        classes = ("a", "b")

        def __len__(self):
            return 1_000_000

        def __getitem__(self, index):
            time.sleep(0.01)
            if index:  # the first one is read before the job begins
                pathlib.Path("read").touch()
            return torch.ones(4), index % 2

    def model():
        return torch.nn.Linear(4, 2)
"""


@dataclass
class Job:
    """A running job of one server at first, and its launcher's store, which the test keeps."""

    bench: Bench
    ranks: Ranks
    workers: int
    replicas: int
    store: TCPStore
    spares: list[Command] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)

    @property
    def address(self) -> str:
        shared = self.ranks.shared
        return f"{shared['MASTER_ADDR']}:{shared['MASTER_PORT']}"

    def until_steps(self, more: int, name: str = "") -> None:
        """Wait until a worker (the first one) has made so many steps more."""
        name = name or str(1 + self.replicas)
        wanted = self.steps(name) + more
        wait_until(lambda: self.steps(name) >= wanted, PATIENCE_S, self.ranks.shown)

    def steps(self, name: str) -> int:
        path = self.bench.folder / f"steps-{name}"
        return int(path.read_text()) if path.exists() else 0

    def ask(self, servers: int) -> Command:
        """Ask for so many servers."""
        for old in self.bench.folder.glob("place-*"):
            old.unlink()
        words = (self.address, "--servers", str(servers), *self.ranks.words)
        return self.bench.start("scale.py", *words)

    def spare(self, index: int, half: str = "", **variables: str) -> Command:
        """Start the new server of this index, as `psrpc scale` would have.

        `half` is "-1" for the first of a pair, "-0" for the other one.
        """
        path = self.bench.folder / f"place-{index}{half}"
        wait_until(path.exists, PATIENCE_S, self.ranks.shown)
        variables |= {"PSRPC_PLACE": path.read_text(), "REPLICAS": str(self.replicas)}
        spare = self.bench.start(*self.ranks.words, **variables)
        self.spares.append(spare)
        return spare

    def until_paired(self, shard: int = 0) -> None:
        """Wait until a shard of the job's start has a backup that has all."""
        store = PrefixStore("psrpc/job/0/replicas", self.store)

        def paired() -> bool:
            reign = json.loads(store.get(f"reign/{shard}")[2 * MAC_BYTES :])
            return reign["backup"] is not None

        wait_until(paired, PATIENCE_S, self.ranks.shown)

    def hold(self, servers: int = 2) -> tuple[Command, Command]:
        """Ask for one more server, and have all stand still for it; the command, and the server."""
        for name in ("held", "go"):
            (self.bench.folder / name).unlink(missing_ok=True)
        asked = self.ask(servers)
        spare = self.spare(servers - 1, HOLD="1")
        wait_until((self.bench.folder / "held").exists, PATIENCE_S, self.ranks.shown)
        return asked, spare

    def go_on(self) -> None:
        """Let the second server take its rows."""
        (self.bench.folder / "go").touch()

    def scale(self, before: int, servers: int) -> None:
        """Go from `before` servers to so many."""
        asked = self.ask(servers)
        for index in range(before, servers):
            for half in ("-1", "-0") if self.replicas else ("",):
                self.spare(index, half)
        ended = asked.finish()
        assert ended.code == 0, ended.err + self.ranks.shown()
        assert f"the job has {some_servers(servers)} now, after {before}" in ended.err

    def until_all_step(self, more: int) -> None:
        """Wait until each of the first workers has made so many steps more."""
        for worker in range(self.workers):
            self.until_steps(more, str(1 + self.replicas + worker))

    def parts(self) -> dict[int, int]:
        """How many servers' files are in each finished checkpoint, by its number."""
        found = {}
        for path in self.bench.folder.glob("kept/checkpoint-*[0-9]/psrpc.json"):
            with suppress(OSError):  # it has been replaced meanwhile
                content = json.loads(path.read_text())["content"]
                found[int(path.parent.name.removeprefix("checkpoint-"))] = len(content["parts"])
        return found

    def planes(self) -> set[str]:
        """Over which planes the workers step now."""
        return {path.read_text() for path in self.bench.folder.glob("planes-*")}

    def finish(self) -> dict[str, Any]:
        """The job's report, at the end of this epoch; all its processes have ended well."""
        (self.bench.folder / "enough").touch()
        ended = self.ranks.finish()
        codes = [each.code for each in ended]
        assert [code for rank, code in enumerate(codes) if rank not in self.killed] == [0] * (
            len(codes) - len(self.killed)
        ), self.ranks.shown()
        for spare in self.spares:
            assert spare.finish().code == 0, spare.shown()
        (out,) = [each.out for each in ended if each.out]
        report: dict[str, Any] = json.loads(out)
        return report

    def end(self, spare: Command) -> None:
        """End a server that came later, at once."""
        spare.process.send_signal(signal.SIGKILL)
        spare.process.wait()

    def kill(self, rank: int) -> None:
        """End a process of the job at once."""
        self.killed.add(rank)
        os.kill(self.ranks.pid(rank), signal.SIGKILL)

    def fails(self) -> str:
        """Wait for a job that a server's death ends: every process says so, and none is left."""
        ended = self.ranks.finish()
        others = [
            code for rank, code in enumerate(e.code for e in ended) if rank not in self.killed
        ]
        assert others == [1] * len(others), self.ranks.shown()
        return "\n".join(each.err for each in ended)

    def pause(self, rank: int) -> None:
        """Let a worker stand still between two steps, until `go_on_again`."""
        (self.bench.folder / f"pause-{rank}").touch()
        wait_until((self.bench.folder / f"paused-{rank}").exists, PATIENCE_S, self.ranks.shown)

    def go_on_again(self, rank: int) -> None:
        """Let a worker train again that stands still."""
        (self.bench.folder / f"pause-{rank}").unlink()

    def check(self, report: dict[str, Any]) -> None:
        """Each sample is in the weights once, bit for bit."""
        epochs = len(report["epoch_accounts"])
        assert report["samples_counted_once"] is True
        assert report["samples"] == epochs * 100
        weight = torch.load(self.bench.folder / "model.pt")["weight"]
        assert torch.equal(weight, torch.full_like(weight, -epochs * 100 * 2.0**-12))


def begin(
    bench: Bench,
    mode: str,
    plane: str,
    *,
    epochs: str = "some",
    workers: int = 2,
    optimizer: str = "exact",
    checkpoints: str = "",
    replicas: int = 0,
) -> Job:
    bench.write("script.py", SCRIPT)
    bench.write("scale.py", SCALE)
    words = ["script.py", mode, plane, epochs, optimizer]
    words += [checkpoints] if checkpoints else []
    first = 1 + replicas  # of the workers' ranks
    store = keep_store()
    ranks = bench.ranks(
        *words,
        count=first + workers,
        MASTER_PORT=str(store.port),
        TORCHELASTIC_USE_AGENT_STORE="True",
        REPLICAS=str(replicas),
    )
    job = Job(bench, ranks, workers, replicas, store)
    job.until_steps(5)
    return job
