"""`psrpc launch`: a script of the user's, each of whose processes has a launcher of its own."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

import pytest

from tests.faults.test_isolation import isolated_rank
from tests.processes import PATIENCE_S, PSRPC, SOON_S, Bench, Command, Finished, wait_until

SCRIPT = """
    import dataclasses, functools, json, os, pathlib, sys, time, torch, psrpc
    from torch.utils.data import TensorDataset

    what, servers, replicas = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    optimizer = getattr(torch.optim, sys.argv[4] if len(sys.argv) > 4 else "SGD")
    if what == "exit":
        sys.exit(3)
    hurry = pathlib.Path("hurry")

    def train(worker):
        for epoch in range(4):
            for (x,) in worker.batches(TensorDataset(torch.ones(400, 4)), 5):
                if not hurry.exists():
                    time.sleep(0.5 if what == "slow" else 0.05)
                worker.model(x).sum().backward()
                worker.step()
                if worker.rank == 1 and what == "raise":
                    raise ValueError("of the user's")
                pathlib.Path(f"stepped-{os.getpid()}").touch()

    checkpointing = None
    if what == "back":
        checkpointing = psrpc.Checkpointing("kept", every_s=0.1, revived=True)
    result = psrpc.run(
        train,
        model=lambda: torch.nn.Linear(4, 3),
        optimizer=functools.partial(optimizer, lr=2.0**-12),
        mode=psrpc.BoundedStaleness(2),
        servers=servers,
        replicas=replicas,
        checkpointing=checkpointing,
    )
    if what == "all raise late" or what == "raise late" and result.is_main:
        raise OSError("no room for the model")
    if result.is_main:
        print(json.dumps(dataclasses.asdict(result.report)))
"""


def launch(bench: Bench, options: str, what: str, servers: int = 1, replicas: int = 0) -> Command:
    bench.write("train.py", SCRIPT)
    given = (*options.split(), "train.py", what, str(servers), str(replicas))
    return bench.start(*PSRPC, "launch", *given)


def until_stepped(command: Command, bench: Bench, more: int = 1) -> None:
    """Wait until so many more processes have made a step."""
    before = len(stepped(bench))
    wait_until(lambda: len(stepped(bench)) >= before + more, PATIENCE_S, command.shown)


def stepped(bench: Bench) -> list[Any]:
    """What processes leave that have made a step."""
    return list(bench.folder.glob("stepped-*"))


def checkpoints(bench: Bench) -> set[Any]:
    """The checkpoints that are made."""
    return set(bench.folder.glob("kept/checkpoint-????????"))


def in_a_hurry(command: Command, bench: Bench) -> dict[str, Any]:
    """Let the job end, and see that each sample is in the weights once."""
    (bench.folder / "hurry").touch()
    ended = command.finish()
    assert ended.code == 0, ended.err
    report: dict[str, Any] = json.loads(ended.out)
    assert report["samples_counted_once"] is True
    assert len(report["epoch_accounts"]) == 4
    command.leaves_nothing()
    return report


def test_a_server_that_dies_comes_back_as_backup(bench: Bench) -> None:
    command = launch(bench, "--replicas 1", "train", replicas=1)
    until_stepped(command, bench, 2)
    os.kill(isolated_rank(command, 0), signal.SIGKILL)
    again = "psrpc: shard 0 has a backup again"
    wait_until(lambda: again in command.shown(), PATIENCE_S, command.shown)
    assert in_a_hurry(command, bench)["workers_lost"] == 0


def test_a_worker_that_dies_comes_back_and_others_join(bench: Bench) -> None:
    command = launch(bench, "--workers 2", "train")
    until_stepped(command, bench, 2)
    os.kill(isolated_rank(command, 2), signal.SIGKILL)
    until_stepped(command, bench)
    (words,) = re.findall(r"psrpc (join .*)", command.shown())
    assert words.endswith(" train.py train 1 0")
    joined = bench.start(*PSRPC, *words.split())
    until_stepped(command, bench)
    assert in_a_hurry(command, bench)["workers_lost"] == 1
    there = joined.finish()
    assert there.code == 0, there.err
    joined.leaves_nothing()


def test_a_server_goes_back_to_a_checkpoint(bench: Bench) -> None:
    command = launch(bench, "--revived", "back")
    wait_until(lambda: checkpoints(bench), PATIENCE_S, command.shown)
    before = isolated_rank(command, 0)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: before not in command.pids(), PATIENCE_S, command.shown)
    made = checkpoints(bench)
    # Only a server that came back can make another one.
    wait_until(lambda: checkpoints(bench) - made, PATIENCE_S, command.shown)
    in_a_hurry(command, bench)


def test_a_server_without_a_way_back_ends_the_job(bench: Bench) -> None:
    command = launch(bench, "", "train")
    until_stepped(command, bench)
    os.kill(isolated_rank(command, 0), signal.SIGKILL)
    ended = command.finish()
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert ended.lines[-1].startswith("Error: server 0 died, so the job was ended: it would have")
    command.leaves_nothing()


def test_an_error_of_the_users_ends_the_job(bench: Bench) -> None:
    """It is shown once, from the script on, and does not happen again."""
    command = launch(bench, "", "raise")
    ended = command.finish()
    assert ended.code == 1
    assert ended.err.count("Traceback (most recent call last)") == 1, ended.err
    assert "hosted.py" not in ended.err
    assert "runpy" not in ended.err
    assert re.fullmatch(r"Error: .*ValueError: of the user's.*", ended.lines[-1]), ended.err
    command.leaves_nothing()


@pytest.mark.parametrize("what", ["raise late", "all raise late"])
def test_what_fails_after_the_job_is_a_failure_too(bench: Bench, what: str) -> None:
    """A script writes its model there, perhaps; where all fail alike, one says it."""
    (bench.folder / "hurry").touch()
    ended = launch(bench, "", what).finish()
    assert ended.code == 1, ended.err
    assert ended.err.count("Traceback (most recent call last)") == 1, ended.err
    assert ended.lines[-1] == "Error: a process failed: OSError: no room for the model (see above)"


def test_a_script_that_ends_itself(bench: Bench) -> None:
    ended = launch(bench, "", "exit").finish()
    assert ended.code == 1
    assert ended.lines[1:] == ["Error: the script ended itself: sys.exit(3)"]


def test_a_script_without_psrpc(bench: Bench) -> None:
    bench.write("train.py", "print('hello')")
    ended = bench.run(*PSRPC, "launch", "train.py")
    assert ended.code == 2
    assert ended.lines[1:] == ["Error: the script came to its end without calling psrpc.run"]


def test_a_script_that_python_cannot_read(bench: Bench) -> None:
    bench.write("train.py", "def (:")
    ended = bench.run(*PSRPC, "launch", "train.py")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert ended.err.count("SyntaxError: invalid syntax\n") == 1, ended.err


def test_who_comes_with_another_script_is_told_and_the_job_goes_on(bench: Bench) -> None:
    command = launch(bench, "", "slow")
    until_stepped(command, bench)
    (address,) = re.findall(r"psrpc join (\S+)", command.shown())
    other = "optimizer is Adam on {} and SGD on the server; give every process the same"
    shape = (
        "psrpc.run has servers=1, replicas=1 and no Checkpointing(revived=True) here, and the job "
        "has servers=1, replicas=0 and no Checkpointing(revived=True): give both the same"
    )
    cases = {
        ("join", address, "nowhere.py"): "there is no script nowhere.py",
        ("join", address, "train.py", "slow", "1", "1"): shape,
        ("join", address, "train.py", "slow", "1", "0", "Adam"): other.format("worker 2"),
        ("scale", address, "--servers", "2", "train.py", "slow", "1", "1"): shape,
        ("scale", address, "--servers", "2", "train.py", "slow", "1", "0", "Adam"): other.format(
            "the new server 1"
        ),
    }
    for words, said in cases.items():
        ended = bench.run(*PSRPC, *words)
        assert ended.code == 2, ended.err
        assert ended.lines[-1] == f"Error: {said}"
        assert "Traceback" not in ended.err
    in_a_hurry(command, bench)


def test_a_module_which_others_join(bench: Bench) -> None:
    bench.write("train.py", SCRIPT)
    command = bench.start(*PSRPC, "launch", "--workers", "1", "-m", "train", "train", "1", "0")
    until_stepped(command, bench)
    (words,) = re.findall(r"psrpc (join .*)", command.shown())
    joined = bench.start(*PSRPC, *words.split())
    until_stepped(command, bench)
    in_a_hurry(command, bench)
    assert joined.finish().code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_it_is_interrupted(bench: Bench, number: int, code: int) -> None:
    command = launch(bench, "--replicas 1", "train", replicas=1)
    until_stepped(command, bench)
    command.process.send_signal(number)
    ended = command.finish(3 * SOON_S)
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    command.leaves_nothing()


def test_kill_9_of_it_leaves_nothing(bench: Bench) -> None:
    """Of the job, and of who has joined it."""
    command = launch(bench, "", "train")
    until_stepped(command, bench)
    (address,) = re.findall(r"psrpc join (\S+)", command.shown())
    joined = bench.start(*PSRPC, "join", address, "train.py", "train", "1", "0")
    until_stepped(command, bench)
    joined.process.send_signal(signal.SIGKILL)
    joined.leaves_nothing()
    command.process.send_signal(signal.SIGKILL)
    command.leaves_nothing()


def refused(bench: Bench, words: str, **variables: str) -> Finished:
    ended = bench.run(*PSRPC, "launch", *words.split(), **variables)
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    return ended


def test_what_cannot_be_started(bench: Bench) -> None:
    bench.write("train.py", SCRIPT)
    assert refused(bench, "tain.py").lines == ["Error: there is no script tain.py"]
    said = refused(bench, "-m tain.py").lines
    assert said == ["Error: there is no module tain, here or installed"]
    assert "leave it or --replicas out" in refused(bench, "--revived --replicas 1 train.py").err
    place = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    assert "start only the script" in refused(bench, "train.py", **place).err
    assert "SCRIPT" in refused(bench, "").err


def test_a_script_of_another_shape(bench: Bench) -> None:
    bench.write("train.py", SCRIPT)
    ended = refused(bench, "--servers 1 --replicas 1 train.py train 2 0")
    assert ended.lines[1:] == [
        "Error: psrpc.run has servers=2, replicas=0 and no Checkpointing(revived=True) here, and "
        "psrpc launch has servers=1, replicas=1 and no --revived: give both the same"
    ]
