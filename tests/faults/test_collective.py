"""A process that dies or stands still within a round's collectives: nobody waits for ever."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.processes import PATIENCE_S, Bench, wait_until

FAULT = """
    import os, pathlib, signal, threading
    from psrpc.planes.groups import Group
    from psrpc.worker import Worker

    def strike(operation, number):
        owner = Worker if operation == "step" else Group
        plain, counted = getattr(owner, operation), []

        def fatal(*arguments):
            counted.append(1)
            if len(counted) == 20:
                # The others are in this round already, or come to it now.
                pathlib.Path("struck").touch()
                # This thread, so that it does not go on before the signal takes effect.
                signal.pthread_kill(threading.get_ident(), number)
            plain(*arguments)

        setattr(owner, operation, fatal)

    if os.environ.get("RANK") == os.environ.get("STRUCK_RANK", ""):
        strike(os.environ["STRUCK_IN"], int(os.environ["STRUCK_BY"]))
"""
SCRIPT = """
    import functools, sys, torch, psrpc, fault

    def train(worker):
        for _ in range(1_000_000):
            worker.model(torch.ones(3, 4)).sum().backward()
            worker.step()

    psrpc.run(
        train,
        model=lambda: torch.nn.Linear(4, 2),
        optimizer=functools.partial(torch.optim.SGD, lr=1e-9),
        plane="collective",
        servers=int(sys.argv[1]),
        collective_timeout_s=float(sys.argv[2]),
    )
"""
# The time limit of a round where it must not matter, and where it ends the job.
LONG_S, SHORT_S = 60.0, 2.0
ROUND = r"collective plane: server\d+ and workers 0, 1 did not finish a round \(.+\): one of them "

LOST = "collective plane: worker 1 is lost: "


def struck(bench: Bench, rank: int, operation: str, number: int, servers: int) -> list[str]:
    """Run a job in which `rank` gets a signal in its 20th `operation`; what all others say."""
    bench.write("script.py", SCRIPT)
    bench.write("fault.py", FAULT)
    stops = number == signal.SIGSTOP
    count = servers + 2
    words = ("script.py", str(servers), str(SHORT_S if stops else LONG_S))
    ranks = bench.ranks(*words, count=count, **chosen(rank, operation, number))
    wait_until((bench.folder / "struck").exists, PATIENCE_S, ranks.shown)
    others = [each for each in range(count) if each != rank]
    within_s = PATIENCE_S if stops else LONG_S / 2
    wait_until(lambda: all(map(ranks.over, others)), within_s, ranks.shown)
    if stops:
        os.kill(ranks.pid(rank), signal.SIGKILL)
    ended = ranks.finish()
    assert ended.pop(rank).code == -signal.SIGKILL
    assert [each.code for each in ended] == [1] * len(ended)
    lines = []
    for each in ended:
        # How much torch's C++ side logs can only be set before it is loaded.
        ours = [line for line in each.lines if "tensorpipe_agent.cpp" not in line]
        assert len(ours) == 1, each.err
        lines += ours
    return lines


def chosen(rank: int, operation: str, number: int) -> dict[str, str]:
    """The variables that say whom the fault strikes, and where."""
    return {"STRUCK_RANK": str(rank), "STRUCK_IN": operation, "STRUCK_BY": str(int(number))}


@pytest.mark.parametrize(
    ("operation", "number", "servers"),
    [
        ("reduce", signal.SIGKILL, 1),
        ("reduce", signal.SIGKILL, 2),
        ("broadcast", signal.SIGKILL, 2),
        # What is broadcast here is small enough for the kernel to take it for a stopped process.
        ("reduce", signal.SIGSTOP, 2),
    ],
)
def test_a_worker_within_a_round(
    bench: Bench, operation: str, number: signal.Signals, servers: int
) -> None:
    lines = struck(bench, servers + 1, operation, number, servers)
    for line in lines:
        told = f"(worker 0 failed: PeerLostError: )?({ROUND}|{LOST}).*"
        assert re.fullmatch(f"psrpc: {told}", line), line


def test_a_worker_between_two_rounds(bench: Bench) -> None:
    """The next round is not begun, so no group tells of the death."""
    for line in struck(bench, 2, "step", signal.SIGKILL, 1):
        assert re.fullmatch(f"psrpc: {LOST}its connection was closed", line), line


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("operation", ["reduce", "broadcast"])
def test_kill_9_of_a_server_within_a_round(bench: Bench, servers: int, operation: str) -> None:
    for line in struck(bench, 0, operation, signal.SIGKILL, servers):
        assert line.startswith("psrpc: ")
        assert "server0" in line
