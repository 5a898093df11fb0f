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
    assert json.loads(ended.out) == [0, 0, 1, 130, 0, 7]
    assert ended.err.count("Traceback") == 1
    assert "ValueError: it is the user's own" in ended.err
    one, other = (bench.folder / "drawn").read_text().split()
    assert one != other, "they would draw the same random numbers"
