"""Workers that die, stand still, come back and join while a job runs: the account is the same."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress

import pytest

from psrpc.interrupts import GRACE_S, TERMINATED
from tests.faults.test_failures import ours
from tests.processes import (
    PATIENCE_S,
    SOON_S,
    Bench,
    Command,
    Finished,
    Ranks,
    descriptors,
    wait_until,
)

# The silence that tells of a death, where only one that stands still is to be that silent: a
# machine that is busy with something else may keep others from the processor for seconds.
SILENT_S = "6"

SCRIPT = """
    import contextlib, dataclasses, functools, itertools, json, os, pathlib, signal, socket
    import sys, time, urllib.parse, torch, psrpc
    import psrpc.pulse
    from torch.utils.data import TensorDataset

    mode, plane, servers, at = sys.argv[1:5]
    seconds = float(sys.argv[6])
    # So many, or until there is a file "enough".
    epochs = itertools.count() if sys.argv[5] == "some" else range(int(sys.argv[5]))
    modes = {
        "sync": psrpc.Synchronous(),
        "backup": psrpc.Synchronous(backup_workers=1),
        "bounded": psrpc.BoundedStaleness(2),
        "async": psrpc.Asynchronous(),
    }
    rank = os.environ.get("RANK", "joiner")

    # A file tells when the coordinator takes a process for dead.
    lose = psrpc.coordinator.Coordinator.lose

    def lose_and_tell(self, *how):
        lose(self, *how)
        pathlib.Path("lost").touch()

    psrpc.coordinator.Coordinator.lose = lose_and_tell

    # Another one, when one that was taken for dead has come back.
    rejoin = psrpc.worker.Worker._rejoin

    def rejoin_and_tell(self):
        rejoin(self)
        pathlib.Path("back").touch()

    psrpc.worker.Worker._rejoin = rejoin_and_tell

    hearts, start = [], psrpc.pulse.Heart.start

    def keep_and_start(self):
        hearts.append(self)
        start(self)

    psrpc.pulse.Heart.start = keep_and_start

    def sever(link):
        # The connections to a server break, and it lives; so does the one to the coordinator's
        # ear.
        ports = {urllib.parse.urlsplit(link.control.peer.url).port, int(link._port)}
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                other = socket.socket(fileno=os.dup(int(fd)))
                if other.family == socket.AF_INET and other.getpeername()[1] in ports:
                    other.shutdown(socket.SHUT_RDWR)

    def strike(number):
        while any(heart._sock is None for heart in hearts):
            time.sleep(0.01)  # whose end would not be heard
        pathlib.Path("struck").touch()
        os.kill(os.getpid(), number)
        pathlib.Path("survived").touch()
        time.sleep(float(os.environ.get("SLOW", "0")))

    def arm(worker, at):
        # Something happens to this process in its fifth push: before it, between two shards
        # (or the only one and the answer), or when all of it is sent.
        point, number = at.split("-")
        link = worker.follower.links[0 if point == "before" else -1]
        original, calls = link.exchange, []

        def begin(send):
            calls.append(send)
            strikes = sum(calls) == 5 and send and not pathlib.Path("struck").exists()
            if strikes and point == "sever":
                sever(link)
            elif strikes and point != "after":
                strike(int(number))
            return strikes and point == "after"

        def exchange(request, *, send, **more):
            strikes = begin(send)
            pending = original(request, send=send, **more)
            if strikes:
                strike(int(number))
            return pending

        def quick(push):
            if begin(True):
                link._sock = Struck(link._sock)
            return usual(push)

        class Struck:
            def __init__(self, sock):
                self.sock = sock

            def __getattr__(self, name):
                return getattr(self.sock, name)

            def send(self, data):
                self.sock.send(data)
                link._sock = self.sock
                strike(int(number))

        link.exchange = exchange
        usual = getattr(link, "quick", None)
        if usual is not None:
            link.quick = quick

    if os.environ.get("DIES") == "when registered":
        register = psrpc.crew.Crew.register

        def register_and_die(self, model):
            register(self, model)
            strike(signal.SIGKILL)

        psrpc.crew.Crew.register = register_and_die

    if os.environ.get("WAITS"):
        # Rank 2 waits for the other worker, which holds back its last word, or does not come.
        waits, call = os.environ["WAITS"], psrpc.planes.rpc.RpcLink.call

        def call_and_tell(self, request, *tensors):
            mine = type(request).__name__ == waits
            while mine and rank == "1" and not pathlib.Path("go on").exists():
                time.sleep(0.01)
            pending = call(self, request, *tensors)
            if mine and rank == "2":
                pathlib.Path("waits").touch()
            return pending

        psrpc.planes.rpc.RpcLink.call = call_and_tell

    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, index):
            while index and not pathlib.Path("go on").exists():
                time.sleep(0.01)
            return torch.ones(4)

    def train(worker):
        if os.environ.get("LOADER") and rank == "2":
            # Its process outlives this one, and reads the next sample all the while.
            loader = iter(torch.utils.data.DataLoader(Slow(), num_workers=1))
            next(loader)
        if "-" in at and rank == "2":
            arm(worker, at)
        pathlib.Path(f"began-{rank}-{os.getpid()}").touch()
        for _ in epochs:
            if worker.leaving or sys.argv[5] == "some" and pathlib.Path("enough").exists():
                return
            for (x,) in worker.batches(TensorDataset(torch.randn(400, 4)), 5):
                worker.model(x).sum().backward()
                time.sleep(seconds)
                worker.step()
                pathlib.Path(f"steps-{rank}.new").write_text(str(worker.steps))
                os.replace(f"steps-{rank}.new", f"steps-{rank}")

    dead_after_s = float(os.environ.get("DEAD_AFTER", "30"))
    elastic = psrpc.Elastic(dead_after_s=dead_after_s, rejoin_timeout_s=float(sys.argv[7]))
    result = psrpc.run(
        train,
        model=functools.partial(torch.nn.Linear, 4, int(os.environ.get("WIDTH", "3"))),
        optimizer=functools.partial(torch.optim.SGD, lr=1e-9),
        mode=modes[mode],
        plane=plane,
        servers=int(servers),
        elastic=elastic,
    )
    if result.is_main:
        print(json.dumps(dataclasses.asdict(result.report)))
"""


def begin(
    bench: Bench,
    mode: str,
    plane: str = "auto",
    *,
    servers: int = 1,
    at: str = "never",
    epochs: int | None = None,
    seconds: float = 0.0,
    rejoin_s: float = 60.0,
    workers: int = 3,
    slow: float = 0.0,
    **variables: str,
) -> Ranks:
    """Start a job whose rank 2 meets with something, at a point of its fifth push.

    Without a number of `epochs` it goes on until `enough`.
    """
    bench.write("script.py", SCRIPT)
    number = "some" if epochs is None else str(epochs)
    words = ("script.py", mode, plane, str(servers), at, number, str(seconds), str(rejoin_s))
    return bench.ranks(*words, count=servers + workers, SLOW=str(slow), **variables)


def enough(bench: Bench, ranks: Ranks) -> list[Finished]:
    """Let a job end with the epoch under way, and see how all of it did."""
    (bench.folder / "enough").touch()
    return ranks.finish()


def report_of(ended: Sequence[Finished]) -> dict[str, object]:
    """The one report that all workers' outputs have among them."""
    (out,) = [each.out for each in ended if each.out]
    report: dict[str, object] = json.loads(out)
    return report


def counts_once(ended: Sequence[Finished]) -> dict[str, object]:
    """Check a job's account: every sample of each epoch is in the weights of all shards once."""
    report = report_of(ended)
    accounts = report["epoch_accounts"]
    assert isinstance(accounts, list)
    assert accounts
    assert report["samples_counted_once"] is True, report
    assert accounts == [
        {
            "epoch": e,
            "samples": 400,
            "lost": 0,
            "doubled": 0,
            "skipped": 0,
            "over": True,
            "skipped_at": [],
        }
        for e in range(len(accounts))
    ]
    return report


def steps(bench: Bench, rank: int | str) -> int:
    """How many steps a rank has made."""
    path = bench.folder / f"steps-{rank}"
    return int(path.read_text()) if path.exists() else 0


def until_steps(bench: Bench, ranks: Ranks, rank: int | str, wanted: int) -> None:
    """Wait until a rank has made so many steps."""
    wait_until(lambda: steps(bench, rank) >= wanted, PATIENCE_S, ranks.shown)


def until_more_steps(bench: Bench, ranks: Ranks, rank: int | str, more: int) -> None:
    """Wait until a rank has made so many steps from now on."""
    until_steps(bench, ranks, rank, steps(bench, rank) + more)


def until(bench: Bench, ranks: Ranks, name: str) -> None:
    """Wait until a process has made a file."""
    wait_until((bench.folder / name).exists, PATIENCE_S, ranks.shown)


def until_over(ranks: Ranks, rank: int) -> None:
    """Wait until a process has ended."""
    wait_until(lambda: ranks.over(rank), PATIENCE_S, ranks.shown)


def until_lost(ranks: Ranks, count: int) -> None:
    """Wait until the first server has told that so many workers are lost."""
    told = ranks.commands[0].shown
    wait_until(lambda: told().count("is lost (") == count, PATIENCE_S, ranks.shown)


@pytest.mark.parametrize(
    ("mode", "plane", "point", "servers"),
    [("sync", "shm", "between", 2), ("sync", "rpc", "after", 1), ("backup", "rpc", "between", 2),
     ("sync", "collective", "between", 2), ("sync", "collective", "after", 1),
     ("backup", "shm", "after", 1), ("bounded", "rpc", "between", 2),
     ("bounded", "shm", "before", 1), ("async", "shm", "between", 2), ("async", "rpc", "after", 1)],
)  # fmt: skip
def test_kill_9_within_a_push(
    bench: Bench, mode: str, plane: str, point: str, servers: int
) -> None:
    ranks = begin(bench, mode, plane, servers=servers, at=f"{point}-{signal.SIGKILL.value}")
    until_lost(ranks, 1)
    ended = enough(bench, ranks)
    assert [each.code for each in ended] == [0, 0, -9, 0, 0][: 1 + servers + 2]
    assert counts_once(ended)["workers_lost"] == 1
    assert ended[0].err.count("is lost (its connection was closed): nobody waits for it") == 1


@pytest.mark.parametrize(("mode", "plane"), [("sync", "shm"), ("bounded", "rpc"), ("async", "shm")])
def test_one_that_stood_still_comes_back(bench: Bench, mode: str, plane: str) -> None:
    at = f"after-{signal.SIGSTOP.value}"
    ranks = begin(bench, mode, plane, at=at, seconds=0.02, DEAD_AFTER=SILENT_S)
    until(bench, ranks, "struck")
    until(bench, ranks, "lost")
    until_more_steps(bench, ranks, 1, 5)  # nobody waits for it
    os.kill(ranks.pid(2), signal.SIGCONT)
    until(bench, ranks, "back")
    ended = enough(bench, ranks)
    assert [each.code for each in ended] == [0, 0, 0, 0]
    assert counts_once(ended)["workers_lost"] == 1


@pytest.mark.parametrize(
    ("mode", "plane"),
    [("sync", "auto"), ("sync", "collective"), ("bounded", "auto"), ("async", "auto")],
)
def test_a_killed_worker_is_replaced_and_another_joins(bench: Bench, mode: str, plane: str) -> None:
    ranks = begin(bench, mode, plane, seconds=0.02)
    until_steps(bench, ranks, 2, 5)
    os.kill(ranks.pid(2), signal.SIGKILL)
    again, joiner = bench.again(ranks, 2), bench.joiner(ranks)
    bench.joiner(ranks, WIDTH="5")  # with another model: it is turned away, and nobody minds
    wait_until(lambda: began(bench, "2", again), PATIENCE_S, ranks.shown)
    until_steps(bench, ranks, "joiner", 1)
    until_over(ranks, 6)
    ended = enough(bench, ranks)
    assert [each.code for each in ended] == [0, 0, -9, 0, 0, 0, 1]
    (line,) = ours(ended[-1])
    assert "has another model than the server: its parameter 'weight' [5, 4]" in line
    assert counts_once(ended)["workers_lost"] == 1
    assert began(bench, "joiner", joiner)


def began(bench: Bench, rank: str, command: Command) -> bool:
    """Whether a process came to train."""
    return (bench.folder / f"began-{rank}-{command.process.pid}").exists()


@pytest.mark.parametrize("plane", ["shm", "rpc", "collective"])
def test_the_children_of_a_dead_worker_keep_nothing_alive(bench: Bench, plane: str) -> None:
    """Its data loader lives on; nobody waits for as long as silence may last."""
    slowly = {"LOADER": "1", "DEAD_AFTER": str(2 * PATIENCE_S)}
    at = f"before-{signal.SIGKILL.value}"
    ranks = begin(bench, "sync", plane, at=at, seconds=0.02, **slowly)
    until(bench, ranks, "struck")
    wait_until((bench.folder / "lost").exists, SOON_S, ranks.shown)
    if plane == "shm":
        wait_until(lambda: len(slots(ranks.pid(0))) == 2, SOON_S, ranks.shown)
    (bench.folder / "go on").touch()
    (bench.folder / "enough").touch()
    ended = [command.finish() for command in ranks.commands]
    assert [each.code for each in ended] == [0, 0, -9, 0]
    assert counts_once(ended)["workers_lost"] == 1


def slots(pid: int) -> set[int]:
    """The workers' slots of shared memory that a server has open."""
    found = set()
    for path, what in descriptors(pid).items():
        if "memfd:psrpc" in what:
            with suppress(FileNotFoundError):  # it has been closed meanwhile
                found.add(os.stat(path).st_ino)
    return found


@pytest.mark.parametrize("servers", [1, 2])
def test_a_worker_that_loses_a_living_server_is_lost_alone(bench: Bench, servers: int) -> None:
    """With two of them it is the second one, of whose life the coordinator hears nothing else."""
    ranks = begin(bench, "bounded", "rpc", servers=servers, at="sever-0")
    until_over(ranks, 2)
    ended = enough(bench, ranks)
    victim = ended.pop(2)
    assert [each.code for each in ended] == [0] * len(ended)
    assert victim.code == 1
    assert f"server{servers - 1} at " in victim.err
    assert counts_once(ended)["workers_lost"] == 1


def test_many_kills_in_one_run(bench: Bench) -> None:
    ranks = begin(bench, "bounded", seconds=0.03, servers=2)
    victim, kills = ranks.commands[3], 20
    for _ in range(kills):
        # Three that die at the same samples would end the job: each comes further.
        until_steps(bench, ranks, 3, 3)
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait(PATIENCE_S)
        (bench.folder / "steps-3").unlink()
        victim = bench.again(ranks, 3)
    ended = enough(bench, ranks)
    assert counts_once(ended)["workers_lost"] == kills


@pytest.mark.parametrize("plane", ["auto", "collective"])
def test_two_at_once_and_one_that_comes(bench: Bench, plane: str) -> None:
    ranks = begin(bench, "sync", plane, seconds=0.02, workers=4)
    until_steps(bench, ranks, 3, 5)
    joiner = bench.joiner(ranks, DIES="when registered")
    for rank in (2, 3):
        os.kill(ranks.pid(rank), signal.SIGKILL)
    until_lost(ranks, 3)
    ended = enough(bench, ranks)
    assert [each.code for each in ended] == [0, 0, -9, -9, 0, -9]
    assert joiner.process.poll() == -9
    assert counts_once(ended)["workers_lost"] == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_without_workers_a_job_ends(bench: Bench, number: signal.Signals) -> None:
    """Whether they died or all were asked to leave."""
    ranks = begin(bench, "async", seconds=0.02, rejoin_s=0.5)
    until_steps(bench, ranks, 1, 5)
    for rank in (1, 2, 3):
        os.kill(ranks.pid(rank), number)
    server, *workers = ranks.finish()
    assert server.code == 1
    if number == signal.SIGTERM:
        assert [(each.code, ours(each)) for each in workers] == [(0, [])] * 3
    assert "0 workers are left of the 1 that the job needs" in server.err
    assert server.took_s < SOON_S


def test_without_workers_a_job_waits_for_one(bench: Bench) -> None:
    ranks = begin(bench, "bounded", seconds=0.02)
    until_steps(bench, ranks, 1, 5)
    for rank in (1, 2, 3):
        os.kill(ranks.pid(rank), signal.SIGKILL)
    told = "psrpc: 0 workers are left of the 1 that the job needs: others may come within "
    wait_until(lambda: told in ranks.shown(), PATIENCE_S, ranks.shown)
    again = bench.again(ranks, 1)
    wait_until(lambda: began(bench, "1", again), PATIENCE_S, ranks.shown)
    ended = enough(bench, ranks)
    assert ended[0].code == ended[4].code == 0
    assert counts_once(ended)["workers_lost"] == 3


@pytest.mark.parametrize(
    ("mode", "plane", "number"),
    [("bounded", "auto", signal.SIGTERM), ("bounded", "auto", signal.SIGINT),
     ("sync", "collective", signal.SIGTERM)],
)  # fmt: skip
def test_a_signal_lets_a_worker_leave(
    bench: Bench, mode: str, plane: str, number: signal.Signals
) -> None:
    """However long its step takes: longer here than what is hung gets after Ctrl-C.

    Nor is that a silence.
    """
    at, silent_s, slow = f"before-{number.value}", 2 * GRACE_S, 2 * GRACE_S + 1.0
    ranks = begin(bench, mode, plane, at=at, seconds=0.02, slow=slow, DEAD_AFTER=str(silent_s))
    until_over(ranks, 2)
    ended = enough(bench, ranks)
    assert [(each.code, ours(each)) for each in ended] == [(0, [])] * 4
    report = counts_once(ended)
    assert report["workers_lost"] == 0
    assert report["duplicates_dropped"] == 0, "it gave back exactly what it had not done"


@pytest.mark.parametrize(
    ("mode", "name"),
    [("async", "Register"), ("sync", "Acquire"), ("async", "Leave")],
)
def test_a_signal_is_heard_by_one_that_waits_for_others(bench: Bench, mode: str, name: str) -> None:
    """It waits in C++, as far as torch is concerned: until all come, step, or leave."""
    ranks = begin(bench, mode, epochs=1, workers=2, WAITS=name)
    until(bench, ranks, "waits")
    os.kill(ranks.pid(2), signal.SIGTERM)
    ranks.commands[2].finish(SOON_S)
    assert not ranks.over(0)
    (bench.folder / "go on").touch()
    if name == "Register":
        bench.again(ranks, 2)
    ended = ranks.finish()
    assert [(each.code, ours(each)) for each in ended] == [(0, [])] * len(ended)
    counts_once(ended)


def test_a_second_signal_ends_at_once(bench: Bench) -> None:
    ranks = begin(bench, "async", seconds=0.02, slow=PATIENCE_S, at=f"before-{signal.SIGINT.value}")
    until(bench, ranks, "survived")
    os.kill(ranks.pid(2), signal.SIGTERM)
    until_over(ranks, 2)
    ended = enough(bench, ranks)
    assert [each.code for each in ended] == [0, 0, TERMINATED, 0]
    assert counts_once(ended)["workers_lost"] == 1
