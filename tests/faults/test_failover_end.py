"""A server that dies while its job ends: the job has ended, for all."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults import test_failover
from tests.faults.test_failover import begin as begin
from tests.faults.test_failover import check

# Before or after the first or second worker's farewell a shard's server is killed.
STRIKE = """
    import itertools, signal
    import psrpc.crew

    def strike(moment):
        for number in itertools.count(1):
            try:
                pathlib.Path(f"{moment}-{number}").touch(exist_ok=False)
                break
            except FileExistsError:
                pass
        if os.environ["STRIKES"] == f"{moment} {number}":
            os.kill(int(pathlib.Path("shard-" + os.environ["SHARD"]).read_text()), signal.SIGKILL)

    bye = psrpc.crew.Crew.bye

    def bye_and_strike(crew):
        strike("before")
        bye(crew)
        strike("after")

    psrpc.crew.Crew.bye = bye_and_strike

    def model():
"""


@pytest.mark.parametrize(("plane", "shard"), [("rpc", 0), ("rpc", 1), ("collective", 1)])
@pytest.mark.parametrize("moment", ["before 1", "after 1", "before 2", "after 2"])
def test_kill_9_of_a_server_while_workers_say_farewell(
    begin: Any, monkeypatch: pytest.MonkeyPatch, moment: str, plane: str, shard: int
) -> None:
    script = test_failover.SCRIPT.replace("\n    def model():\n", STRIKE, 1)
    assert script != test_failover.SCRIPT
    monkeypatch.setattr(test_failover, "SCRIPT", script)
    mode = "sync" if plane == "collective" else "async"
    # Nobody waits until those who have left are taken for dead.
    given = {"STRIKES": moment, "SHARD": str(shard), "DEAD_AFTER_S": "600"}
    job = begin(mode, plane, servers=2, epochs=1, **given)
    ended = job.ranks.finish()
    codes = [each.code for each in ended]
    assert sorted(codes) == [-9, 0, 0, 0, 0, 0], job.ranks.shown()
    check(job, ended, epochs=1)


LAST_BREATH = """
    import signal
    from psrpc.replication.primary import PrimaryService

    dies = rank == os.environ["DIES"]
    go_on, close = PrimaryService._go_on, PrimaryService.close

    def go_on_if_it_must(self):  # what it says at its end is still in its memory
        if not (dies and self.ended.is_set()):
            go_on(self)

    def close_and_die(self, timeout_s):
        close(self, timeout_s)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    PrimaryService._go_on, PrimaryService.close = go_on_if_it_must, close_and_die

    def model():
"""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_kill_9_of_a_server_that_has_told_its_backup_of_the_end(
    begin: Any, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    """And nobody else yet: its backup does."""
    script = test_failover.SCRIPT.replace("\n    def model():\n", LAST_BREATH, 1)
    assert script != test_failover.SCRIPT
    monkeypatch.setattr(test_failover, "SCRIPT", script)
    job = begin("async", "rpc", servers=2, epochs=1, DIES=rank, DEAD_AFTER_S="600")
    ended = job.ranks.finish()
    assert sorted(each.code for each in ended) == [-9, 0, 0, 0, 0, 0], job.ranks.shown()
    check(job, ended, epochs=1)
