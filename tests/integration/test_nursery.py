"""Forks of a process that has imported torch, seen from the launcher that wants them."""

from __future__ import annotations

import json
import os
import signal

from tests.processes import PATIENCE_S, Bench, wait_until

SCRIPT = """
    import json, os, pathlib, signal, subprocess, sys, time
    from psrpc import environment
    from psrpc.lifeline import die_with_launcher
    from psrpc.nursery import Nursery

    def work():
        die_with_launcher()
        match os.environ["WORD"]:
            case "raise":
                raise ValueError("it is mine")
            case "interrupt":
                raise KeyboardInterrupt
            case "wait":
                pathlib.Path(os.environ["NAME"]).write_text(str(os.getpid()))
                time.sleep(1000)
            case "tell":
                told = [os.environ.get(name) for name in ("EARLIER", "LATER", "MINE")]
                told += [os.environ["PSRPC_LAUNCHER"] == str(os.getppid())]
                told += [signal.getsignal(signal.SIGTERM) == signal.SIG_DFL]
                told += [signal.getsignal(signal.SIGHUP) == signal.SIG_IGN]
                told += ["theirs" in sys.modules]
                print(json.dumps(told))
            case code:
                return int(code)
        return 0

    class Interrupted:
        # Ctrl-C comes when something has been asked, and is not answered yet.
        def send(self, message):
            requests.send(message)
            raise KeyboardInterrupt

    os.environ["EARLIER"] = "seen"
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    nursery = Nursery(work)
"""
MANY = """
    with nursery:
        import theirs
        os.environ["LATER"] = "seen too"
        words = ["0", "7", "raise", "interrupt", "wait", "tell"]
        forks = [nursery.fork({"WORD": word, "MINE": word, "NAME": "waits"}) for word in words]
        waits = forks[4]
        try:
            waits.wait(0.05)
        except subprocess.TimeoutExpired:
            waits.terminate()
        requests, nursery._requests = nursery._requests, Interrupted()
        try:
            forks[1].poll()
        except KeyboardInterrupt:
            nursery._requests = requests
        assert "MINE" not in os.environ
        print(json.dumps([fork.wait() for fork in forks]))
        waits.kill()  # it has ended, so nobody is hit
        for _ in range(20):
            early = nursery.fork({"WORD": "wait", "NAME": "early"})
            early.terminate()  # perhaps before it has begun
            assert early.wait() == -signal.SIGTERM
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        print("no child is left")
"""
LONG = """
    with nursery:
        nursery.fork({"WORD": "wait", "NAME": "one"})
        other = nursery.fork({"WORD": "wait", "NAME": "other"})
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path("nursery").write_text(str(nursery._pid))
        print(other.wait(), flush=True)
        while True:
            nursery.fork({"WORD": "0"}).wait()
"""


def test_they_end_as_interpreters_do_and_know_what_they_are_told(bench: Bench) -> None:
    bench.write("theirs.py", "")
    bench.write("script.py", SCRIPT + MANY)
    ended = bench.run("script.py")
    assert ended.code == 0, ended.err
    *lines, last = ended.out.splitlines()
    assert last == "no child is left"
    told, codes = map(json.loads, lines)
    assert told == ["seen", "seen too", "tell", True, True, True, False]
    assert codes == [0, 7, 1, 130, -signal.SIGTERM, 0]
    assert ended.err.count("Traceback") == 1
    assert "ValueError: it is mine" in ended.err


def test_signals_to_all_end_the_forks_and_leave_the_rest_to_the_launcher(bench: Bench) -> None:
    bench.write("script.py", SCRIPT + LONG)
    command = bench.start("script.py")
    for name in ("nursery", "one", "other"):
        wait_until(lambda: pid(bench, name), PATIENCE_S, command.shown)  # noqa: B023
    os.killpg(command.process.pid, signal.SIGTERM)
    wait_until(lambda: f"{-signal.SIGTERM}\n" in command.shown(), PATIENCE_S, command.shown)
    assert pid(bench, "nursery") in command.pids()
    os.kill(pid(bench, "nursery"), signal.SIGKILL)
    ended = command.finish()
    assert ended.code == 1
    assert "the process that starts the others for this command was killed" in ended.err
    command.leaves_nothing()


def test_none_outlives_a_launcher_that_is_killed(bench: Bench) -> None:
    bench.write("script.py", SCRIPT + LONG)
    command = bench.start("script.py")
    for name in ("one", "other"):
        wait_until(lambda: pid(bench, name) in command.pids(), PATIENCE_S, command.shown)  # noqa: B023
    os.kill(command.process.pid, signal.SIGKILL)
    command.finish()
    command.leaves_nothing()


def pid(bench: Bench, name: str) -> int:
    """The process that has written down its number; 0 as long as none has."""
    path = bench.folder / name
    return int((path.exists() and path.read_text()) or 0)
