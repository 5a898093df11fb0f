"""A fork that is to be a new interpreter behaves as one."""

from __future__ import annotations

import json

from tests.processes import Bench

FORKS = """
    import json, multiprocessing, numpy, signal, sys
    from psrpc import interpreter

    signal.signal(signal.SIGTERM, lambda *_: None)
    numpy.random.seed(0)
    interpreter.prepare()
    context = multiprocessing.get_context("fork")
    ended = []
    for word in sys.argv[1:]:
        child = context.Process(target=interpreter.become, args=("-m", "theirs", word))
        child.start()
        child.join()
        ended.append(child.exitcode)
    print(json.dumps(ended))
"""
THEIRS = """
    import numpy, pathlib, signal, sys

    assert __name__ == "__main__"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    match sys.argv[1]:
        case "draw":
            with open("drawn", "a") as file:
                print(numpy.random.random(), file=file)
        case "raise":
            raise ValueError("it is the user's own")
        case "interrupt":
            raise KeyboardInterrupt
        case code:
            sys.exit(int(code))
"""


def test_a_fork_ends_as_an_interpreter_does(bench: Bench) -> None:
    bench.write("forks.py", FORKS)
    bench.write("theirs.py", THEIRS)
    ended = bench.run("forks.py", "draw", "draw", "raise", "interrupt", "0", "7")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == [99, 99, 1, 130, 99, 7]
    assert ended.err.count("Traceback") == 1
    assert "ValueError: it is the user's own" in ended.err
    one, other = (bench.folder / "drawn").read_text().split()
    assert one != other, "they would draw the same random numbers"


TOLD = """
    import os, runpy, signal, sys
    from psrpc.launch import run_agent

    def work(*_, **__):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        os.kill(os.getppid(), signal.SIGTERM)
        signal.sigwait({signal.SIGTERM})  # which the agent has passed on

    runpy.run_module = work
    sys.exit(run_agent(["-m", "psrpc"], restarts=0, patience_s=1000.0))
"""


def test_a_fork_that_leaves_in_order_does_not_wait_for_an_agent_that_is_told_to_end(
    bench: Bench,
) -> None:
    bench.write("told.py", TOLD)
    ended = bench.run("told.py")
    assert (ended.code, ended.err) == (143, "")
