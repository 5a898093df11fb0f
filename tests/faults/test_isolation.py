"""`psrpc train --isolate` and `psrpc join`: one crash touches nobody else."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from torch._C._distributed_c10d import PrefixStore, TCPStore

from benchmarks.contenders.killer import Killer, isolated, isolated_servers, isolated_workers
from psrpc import __version__
from psrpc.lobby import KEY, look_up
from psrpc.replication.authority import REPLICAS, Authority
from psrpc.replication.lives import LIVES, Lives
from psrpc.sealed import SealedStore, job_secret
from psrpc.secret import user_key
from tests.faults import endless
from tests.processes import PATIENCE_S, PSRPC, SOON_S, Bench, Command, free_port, wait_until
from tests.stores import keep_store


def isolated_rank(command: Command, rank: int) -> int:
    """The process id of an isolated role itself, not of its agent."""
    (role,) = [pid for pid, name in names(command).items() if name == f"psrpc rank {rank}"]
    return role


def names(command: Command) -> dict[int, str]:
    """What the processes of a command call themselves."""
    found = {}
    for pid in command.pids():
        with suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found


SLOW = """
    import os, pathlib, socket, time, torch

    class Slow(torch.utils.data.Dataset):
        classes = ("a", "b")
        looked_at = 0

        def __len__(self):
            return 400

        def __getitem__(self, index):
            if self.looked_at:  # the first look is at what a sample is, before training
                pathlib.Path(f"reads-{socket.gethostname()}-{os.getpid()}").touch()
                if not pathlib.Path("hurry").exists():
                    time.sleep(0.1)
            self.looked_at += 1
            return torch.ones(4), index % 2

    def model():
        return torch.nn.Linear(4, 2)
"""


def test_a_crashed_worker_comes_back_and_another_joins(bench: Bench) -> None:
    bench.write("slow.py", SLOW)
    options = (
        "--isolate --workers 2 --dataset slow:Slow --model slow:model --epochs 3 --batch-size 4"
    )
    command = bench.start(*PSRPC, "train", *options.split(), "--json", "results.json")
    wait_until(lambda: "step " in command.shown(), PATIENCE_S, command.shown)
    before = readers(bench)
    os.kill(isolated_rank(command, 2), signal.SIGKILL)
    (address,) = re.findall(r"psrpc join (\S+)", command.shown())
    joined = bench.start(*PSRPC, "join", address)
    # The job takes a minute, until both of them read samples.
    wait_until(
        lambda: len(readers(bench) - before) >= 2,
        PATIENCE_S,
        lambda: command.shown() + joined.shown(),
    )
    (bench.folder / "hurry").touch()
    ended = command.finish()
    there = joined.finish()
    assert (ended.code, there.code) == (0, 0), ended.err + there.err
    (rank,) = re.findall(r"^psrpc: joined as worker (\d)$", there.err, re.MULTILINE)
    assert f"psrpc: worker {rank} has come" in ended.lines
    results = json.loads((bench.folder / "results.json").read_text())
    assert results["workers_lost"] == 1
    assert results["samples_counted_once"] is True
    command.leaves_nothing()
    joined.leaves_nothing()


def readers(bench: Bench) -> set[str]:
    """The processes that have read a sample to train on it."""
    return {path.name for path in bench.folder.glob("reads-*")}


@pytest.mark.parametrize("restarts", ["--max-restarts 0", ""])
def test_a_server_that_dies_ends_the_job(bench: Bench, restarts: str) -> None:
    """Also while the others' agents start them again, which are told to stop then."""
    command = bench.start(*PSRPC, "train", *f"--isolate --epochs 500 {restarts}".split())
    wait_until(lambda: "step " in command.shown(), PATIENCE_S, command.shown)
    os.kill(isolated_rank(command, 0), signal.SIGKILL)
    ended = command.finish()
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert ended.lines[-1].startswith("Error: server 0 died, so the job was ended: it would have")
    assert ended.took_s < 2 * SOON_S
    command.leaves_nothing()


def test_benchmarks_find_whom_to_kill(bench: Bench) -> None:
    """They look for forks from outside, which have no environment of their own in /proc."""
    mark = {"PSRPC_TEST_VICTIMS": "here"}
    options = "--isolate --epochs 500 --replicas 1 --workers 2"
    command = bench.start(*PSRPC, "train", *options.split(), fresh=True, **mark)
    wait_until(lambda: "step " in command.shown(), PATIENCE_S, command.shown)
    mine = "PSRPC_TEST_VICTIMS=here"
    assert sorted(isolated(mine).values()) == [0, 1, 2, 3]
    assert isolated_workers(mine, 3) == [isolated_rank(command, 3)]
    servers = {isolated_rank(command, 0), isolated_rank(command, 1)}
    with Killer(lambda: isolated_servers(mine, 2), 0.1) as killer:
        wait_until(lambda: killer.killed, PATIENCE_S, command.shown)
    assert killer.killed[0][1] in servers
    command.process.send_signal(signal.SIGINT)
    command.finish()
    command.leaves_nothing()


PLANES = ["", "--mode sync --plane collective "]


@pytest.mark.parametrize("plane", PLANES)
def test_a_server_that_dies_comes_back_as_backup(bench: Bench, plane: str) -> None:
    bench.write("slow.py", SLOW)
    options = f"{plane}--isolate --replicas 1 --dataset slow:Slow --model slow:model --epochs 6"
    more = ["--batch-size", "4", "--json", "results.json"]
    command = bench.start(*PSRPC, "train", *options.split(), *more)
    wait_until(lambda: "step " in command.shown(), PATIENCE_S, command.shown)
    for rank in (0, 1):
        shard = authority(command)
        wait_until(lambda: shard.look().backup is not None, PATIENCE_S, command.shown)  # type: ignore[union-attr] # noqa: B023
        before = shard.look()
        assert before is not None
        os.kill(isolated_rank(command, rank), signal.SIGKILL)
        wait_until(lambda: shard.look().primary == before.backup, PATIENCE_S, command.shown)  # type: ignore[union-attr] # noqa: B023
    # The first that had one again may have been killed before it said so.
    again = "psrpc: shard 0 has a backup again"
    wait_until(lambda: again in command.shown(), PATIENCE_S, command.shown)
    (bench.folder / "hurry").touch()
    ended = command.finish()
    assert ended.code == 0, ended.err
    assert again in ended.lines
    results = json.loads((bench.folder / "results.json").read_text())
    assert (results["replicas"], results["workers_lost"]) == (1, 0)
    assert results["samples_counted_once"] is True
    command.leaves_nothing()


@pytest.mark.parametrize("plane", PLANES)
def test_without_backups_servers_go_back_to_a_checkpoint(bench: Bench, plane: str) -> None:
    """The workers stay; what the checkpoint lacks is done again, after either server's death."""
    bench.write("slow.py", SLOW)
    options = "--isolate --servers 2 --workers 2 --dataset slow:Slow --model slow:model --epochs 2 "
    options += plane
    more = "--batch-size 1 --checkpoint-dir kept --checkpoint-every 20 --json results.json"
    command = bench.start(*PSRPC, "train", *options.split(), *more.split())
    wait_until(lambda: "step " in command.shown(), PATIENCE_S, command.shown)
    lives = Lives(store_of(command, LIVES))
    newest = lambda: max((bench.folder / "kept").glob("checkpoint-????????"), default=Path())  # noqa: E731
    for death, rank in enumerate((1, 0), 1):
        seen = newest()
        wait_until(lambda: newest() > seen, PATIENCE_S, command.shown)  # noqa: B023
        kept = updates_in(newest())
        wait_until(lambda: lives.counted(death, 2) > kept, PATIENCE_S, command.shown)  # noqa: B023
        workers = [isolated_rank(command, worker) for worker in (2, 3)]
        os.kill(isolated_rank(command, rank), signal.SIGKILL)
        back = lambda: command.shown().count("going back to")  # noqa: E731
        wait_until(lambda: back() == death, PATIENCE_S, command.shown)  # noqa: B023
    seen = newest()
    wait_until(lambda: newest() > seen, PATIENCE_S, command.shown)
    assert workers == [isolated_rank(command, worker) for worker in (2, 3)]
    (bench.folder / "hurry").touch()
    ended = command.finish()
    assert ended.code == 0, ended.err
    results = json.loads((bench.folder / "results.json").read_text())
    assert results["samples_counted_once"] is True
    assert results["samples"] == results["updates_applied"] == 800
    assert results["workers_lost"] == 0
    assert results["updates_redone"] > 0
    command.leaves_nothing()


def updates_in(checkpoint: Path) -> int:
    """How many updates are in a checkpoint's weights."""
    manifest = json.loads((checkpoint / "psrpc.json").read_text())
    return int(manifest["content"]["parts"][0]["facts"]["updates"])


def authority(command: Command) -> Authority:
    """Who reigns in a job's first shard."""
    return Authority(store_of(command, REPLICAS), 0)


def store_of(command: Command, what: str) -> SealedStore:
    """A part of the store of a job's launcher, when the job has begun."""
    (address,) = re.findall(r"psrpc join (\S+)", command.shown())
    host, port = address.split(":")
    store = TCPStore(host, int(port), is_master=False, wait_for_workers=False)
    job = look_up(address).job
    secret = job_secret(PrefixStore(f"psrpc/{job}", store), user_key(), job)
    return SealedStore(PrefixStore(f"psrpc/{job}/{what}", store), secret, what)


def test_replicas_need_a_launcher_for_each_process(bench: Bench) -> None:
    ended = bench.train("--replicas 1")
    assert ended.code == 2
    assert "--replicas needs --isolate" in ended.err


def test_ctrl_c_ends_all(bench: Bench) -> None:
    command = endless.start(bench, "--isolate", workers=2)
    os.killpg(command.process.pid, signal.SIGINT)
    ended = command.finish()
    assert ended.code == 130
    assert ended.took_s < SOON_S
    command.leaves_nothing()


def test_a_worker_that_is_asked_to_leave_stays_away(bench: Bench) -> None:
    command = endless.start(bench, "--isolate", workers=2)
    os.kill(isolated_rank(command, 2), signal.SIGINT)

    gone = {"psrpc agent 2", "psrpc rank 2"}
    wait_until(lambda: not gone & set(names(command).values()), PATIENCE_S, command.shown)
    before = endless.read(bench, 1)
    wait_until(lambda: endless.read(bench, 1) > before, PATIENCE_S, command.shown)
    command.process.send_signal(signal.SIGINT)
    assert command.finish().code == 130
    command.leaves_nothing()


AGENT = """
    import sys
    from psrpc.launch import run_agent

    sys.exit(run_agent(["role.py", sys.argv[1]], restarts=2))
"""
ROLE = """
    import os, pathlib, sys

    pathlib.Path(f"began-{os.getpid()}").touch()
    os.kill(os.getpid(), int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("number", "starts"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGKILL, 3)]
)
def test_one_that_a_signal_ended_before_it_could_leave_stays_away(
    bench: Bench, number: signal.Signals, starts: int
) -> None:
    bench.write("agent.py", AGENT)
    bench.write("role.py", ROLE)
    assert bench.run("agent.py", str(number.value)).code == 128 + number
    assert len(list(bench.folder.glob("began-*"))) == starts


TOLD = """
    import os, signal, sys, time

    def told_again():
        os.kill(os.getpid(), signal.SIGTERM)

    if sys.argv[1] == "fork":  # registered first, so it runs before ours is done
        os.register_at_fork(after_in_parent=told_again)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from psrpc.launch import _Terminations

    def raises(number, frame):
        raise SignalException("told", signal.Signals(number))

    try:
        with _Terminations() as terminations:
            if sys.argv[1] == "between":
                told_again()
                print("noted", flush=True)
                terminations.matter()
            else:
                signal.signal(signal.SIGTERM, raises)  # as torch's launch has it
                if os.fork() == 0:
                    os._exit(0)
                print("forked", flush=True)
                time.sleep(60)
    except SignalException:
        print("raised", flush=True)
"""


@pytest.mark.parametrize(("when", "first"), [("between", "noted"), ("fork", "forked")])
def test_an_agent_is_told_to_stop_where_it_cannot(bench: Bench, when: str, first: str) -> None:
    """Between two processes, or within `os.fork`, in which what a handler raises is printed."""
    bench.write("told.py", TOLD)
    ended = bench.run("told.py", when, fresh=True)
    assert (ended.code, ended.out, ended.lines) == (0, f"{first}\nraised\n", [])


@pytest.mark.parametrize(
    ("address", "code", "reason"),
    [
        ("nonsense", 2, "a job's address is HOST:PORT"),
        ("127.0.0.1:0", 2, "a job's address is HOST:PORT"),
        ("127.0.0.1:free", 1, "nobody answers for a job at 127.0.0.1:"),
    ],
)
def test_a_join_to_nowhere(bench: Bench, address: str, code: int, reason: str) -> None:
    ended = bench.run(*PSRPC, "join", address.replace("free", str(free_port())))
    assert ended.code == code
    (line,) = ended.lines
    assert line.startswith("Error: ")
    assert reason in line


def sealed(lobby: Mapping[str, object]) -> str:
    return user_key().derive("lobby").seal(KEY, json.dumps(lobby))


def test_a_join_to_another_version_or_a_script(bench: Bench) -> None:

    store = keep_store()
    address = f"127.0.0.1:{store.port}"
    assert "no psrpc job has begun there" in bench.run(*PSRPC, "join", address).err
    lobby = {"job": "x", "world_size": 2, "servers": 1, "arguments": None, "script": "mine.py"}
    lobby |= {"one_host": True, "loopback": True}
    store.set(KEY, sealed({**lobby, "version": "0.0.0"}))
    ended = bench.run(*PSRPC, "join", address)
    assert ended.code == 2
    assert "runs psrpc 0.0.0" in ended.err
    store.set(KEY, sealed({**lobby, "version": __version__}))
    ended = bench.run(*PSRPC, "join", address)
    assert ended.code == 2
    assert "runs a script: give it (mine.py)" in ended.err
