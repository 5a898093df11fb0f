"""A process that dies or stands still within a round's collectives: the others make it again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.processes import PATIENCE_S, Bench, Finished, Ranks, wait_until
from tests.stores import keep_store

FAULT = """
    import os, pathlib, signal, threading, time
    from psrpc.planes.groups import Group
    from psrpc.worker import Worker

    STRUCK, BACK = pathlib.Path("struck"), pathlib.Path("back")

    def strike(operation, number):
        owner = Worker if operation == "step" else Group
        plain, counted = getattr(owner, operation), []

        def fatal(*arguments):
            counted.append(1)
            if len(counted) == 20:
                # The others are in this round already, or come to it now.
                STRUCK.touch()
                # This thread, so that it does not go on before the signal takes effect.
                signal.pthread_kill(threading.get_ident(), number)
            plain(*arguments)

        setattr(owner, operation, fatal)

    def say_when_back():
        plain = Worker._rejoin

        def rejoin(worker):
            plain(worker)
            BACK.touch()

        Worker._rejoin = rejoin

    def wait_for_the_other():
        # It goes on alone for a few steps, but not to the job's end.
        plain, counted = Worker.step, []

        def step(worker, *arguments):
            if STRUCK.exists() and not BACK.exists():
                counted.append(1)
                while len(counted) == 5 and not BACK.exists():
                    time.sleep(0.01)
            plain(worker, *arguments)

        Worker.step = step

    if os.environ.get("RANK") in os.environ.get("STRUCK_RANKS", "").split():
        strike(os.environ["STRUCK_IN"], int(os.environ["STRUCK_BY"]))
        say_when_back()
    elif os.environ.get("RANK") == os.environ.get("WAITING_RANK"):
        wait_for_the_other()
"""
SCRIPT = """
    import dataclasses, functools, json, sys, torch, psrpc, fault
    from torch.utils.data import TensorDataset

    EPOCHS, SAMPLES = 2, 400

    def train(worker):
        for _ in range(EPOCHS):
            for (x,) in worker.batches(TensorDataset(torch.ones(SAMPLES, 4)), 5):
                worker.model(x).sum().backward()
                worker.step()

    result = psrpc.run(
        train,
        model=lambda: torch.nn.Linear(4, 2),
        optimizer=functools.partial(torch.optim.SGD, lr=1e-9),
        plane="collective",
        servers=int(sys.argv[1]),
        replicas=int(sys.argv[2]),
        collective_timeout_s=float(sys.argv[3]),
        elastic=psrpc.Elastic(dead_after_s=float(sys.argv[4])),
    )
    if result.is_main:
        print(json.dumps(dataclasses.asdict(result.report)))
"""
# The time limit of a round, and of a silence: where they must not matter, and where they tell (but
# not of one whom a busy machine keeps from the processor for seconds).
LONG_S, SHORT_S = 60.0, 6.0
KILLED = -signal.SIGKILL


@pytest.fixture
def launcher() -> Iterator[dict[str, str]]:
    """The variables of a launcher that keeps the store, outside all that die."""
    store = keep_store()
    yield {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    del store


def struck(
    bench: Bench,
    ranks: str,
    operation: str,
    number: int,
    *,
    servers: int,
    launcher: Mapping[str, str] | None = None,
    waiting: int | None = None,
) -> Ranks:
    """Run a job of two workers in which `ranks` get a signal in their 20th `operation`.

    With a launcher of its own each server has a backup. The worker of rank `waiting` does not
    end the job before the other one is back.
    """
    replicas = 0 if launcher is None else 1
    bench.write("script.py", SCRIPT)
    bench.write("fault.py", FAULT)
    stops = number == signal.SIGSTOP
    round_s = SHORT_S if stops and launcher is None else LONG_S
    silence_s = SHORT_S if stops else LONG_S
    words = ("script.py", str(servers), str(replicas), str(round_s), str(silence_s))
    fault = {"STRUCK_RANKS": ranks, "STRUCK_IN": operation, "STRUCK_BY": str(int(number))}
    if waiting is not None:
        fault["WAITING_RANK"] = str(waiting)
    count = servers * (1 + replicas) + 2
    started = bench.ranks(*words, count=count, **fault, **(launcher or {}))
    wait_until((bench.folder / "struck").exists, PATIENCE_S, started.shown)
    return started


def goes_on(ranks: Ranks, struck: Mapping[int, int], *, lost: int) -> dict[str, Any]:
    """All but `struck` come to the job's end, and soon; every sample counts once."""
    others = [rank for rank in range(len(ranks.commands)) if rank not in struck]
    wait_until(lambda: all(map(ranks.over, others)), LONG_S / 2, ranks.shown)
    ended = ranks.finish()
    assert {rank: each.code for rank, each in enumerate(ended)} == {
        **dict.fromkeys(others, 0),
        **struck,
    }, ranks.shown()
    (out,) = [each.out for each in ended if each.out]
    report: dict[str, Any] = json.loads(out)
    assert report["samples_counted_once"] is True, report
    assert report["updates_applied"] == 160, report
    assert report["workers_lost"] == lost
    return report


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("operation", ["reduce", "broadcast", "step"])
def test_kill_9_of_a_worker(bench: Bench, operation: str, servers: int) -> None:
    """In a round, on one of two servers at least, or between two rounds."""
    victim = servers + 1
    ranks = struck(bench, str(victim), operation, signal.SIGKILL, servers=servers)
    goes_on(ranks, {victim: KILLED}, lost=1)


@pytest.mark.parametrize("operation", ["reduce", "step"])
def test_a_worker_that_stands_still_comes_back(bench: Bench, operation: str) -> None:
    """What is broadcast here is small enough for the kernel to take it for a stopped process."""
    ranks = struck(bench, "3", operation, signal.SIGSTOP, servers=2, waiting=2)
    wait_until(lambda: "is lost" in ranks.commands[0].shown(), PATIENCE_S, ranks.shown)
    os.kill(ranks.pid(3), signal.SIGCONT)
    goes_on(ranks, {}, lost=1)


@pytest.mark.parametrize(("servers", "victim"), [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("operation", ["reduce", "broadcast"])
def test_kill_9_of_a_server_without_a_backup_ends_the_job(
    bench: Bench, servers: int, victim: int, operation: str
) -> None:
    ranks = struck(bench, str(victim), operation, signal.SIGKILL, servers=servers)
    others = [rank for rank in range(servers + 2) if rank != victim]
    wait_until(lambda: all(map(ranks.over, others)), LONG_S / 2, ranks.shown)
    ended = ranks.finish()
    assert ended.pop(victim).code == KILLED
    assert [each.code for each in ended] == [1] * len(ended)
    for each in ended:
        assert f"server{victim}" in our_line(each)


def our_line(ended: Finished) -> str:
    """What a process that failed says: one line, but for workers that it saw end before it did."""
    # How much torch's C++ side logs can only be set before it is loaded.
    others = ("tensorpipe_agent.cpp", "nobody waits for it")
    ours = [line for line in ended.lines if not any(each in line for each in others)]
    assert len(ours) == 1, ended.err
    assert ours[0].startswith("psrpc: ")
    return ours[0]


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("operation", ["reduce", "broadcast"])
def test_kill_9_of_a_primary_within_a_round(
    bench: Bench, launcher: dict[str, str], operation: str, victim: int
) -> None:
    """The first coordinates as well. Before the sum is made, or when the backup has it."""
    ranks = struck(bench, str(victim), operation, signal.SIGKILL, servers=2, launcher=launcher)
    report = goes_on(ranks, {victim: KILLED}, lost=0)
    assert report["optimizer_steps"] == 80, "no round was lost, and none made twice"


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("operation", ["reduce", "broadcast"])
def test_kill_9_of_a_primary_and_a_worker_in_the_same_round(
    bench: Bench, launcher: dict[str, str], operation: str, victim: int
) -> None:
    victims = f"{victim} 5"
    ranks = struck(bench, victims, operation, signal.SIGKILL, servers=2, launcher=launcher)
    goes_on(ranks, {victim: KILLED, 5: KILLED}, lost=1)


@pytest.mark.parametrize("operation", ["reduce", "broadcast"])
def test_a_primary_that_stands_still_within_a_round(
    bench: Bench, launcher: dict[str, str], operation: str
) -> None:
    """The round is made without it. Who waits for it in C++ ends all the same."""
    ranks = struck(bench, "0", operation, signal.SIGSTOP, servers=1, launcher=launcher)
    wait_until(lambda: all(map(ranks.over, (1, 2, 3))), LONG_S / 2, ranks.shown)
    os.kill(ranks.pid(0), signal.SIGKILL)
    report = goes_on(ranks, {0: KILLED}, lost=0)
    assert report["optimizer_steps"] == 80
