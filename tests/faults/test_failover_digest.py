"""A backup that differs from its primary, which dies before it can hear of that."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.faults.test_failover import SCRIPT, begin
from tests.processes import SOON_S

__all__ = ["begin"]

FAULT = """
    import signal

    # Each twentieth entry has a digest. At the third one the primary dies, as soon as it is sent;
    # its backup has had other weights since the entry before, if it is to differ.
    psrpc.replication.primary.CHECK_EVERY = 20
    Primary = psrpc.replication.primary.PrimaryService
    Follower = psrpc.replication.follower.Follower
    forward, take_in, checks = Primary._forward, Follower._take_in, []

    def forward_and_die(self, event, tensors):
        read = forward(self, event, tensors)
        checks.append(isinstance(event, psrpc.replication.entries.Check))
        if sum(checks) == 3 and os.environ["RANK"] == "0":
            while any(line._waiting for line in self._lines):  # what was not sent at once
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGKILL)
        return read

    def take_in_and_err(self, event, tensors):
        take_in(self, event, tensors)
        if self.core.last >= 59 and differs:
            self._service.server.store.flats[0][0] += 1.0

    def hear_nobody(self, line, message):
        if not isinstance(message, psrpc.replication.entries.Differs):
            hear(self, line, message)

    hear = Primary._hear
    Primary._forward, Primary._hear = forward_and_die, hear_nobody
    Follower._take_in = take_in_and_err
    rank = os.environ"""
DIGEST = r"[0-9a-f]{8}-[0-9a-f]{8}"


@pytest.mark.parametrize("plane", ["rpc", "collective"])
@pytest.mark.parametrize("differs", [False, True])
def test_a_difference_is_told_with_both_digests(
    begin: Any, monkeypatch: pytest.MonkeyPatch, plane: str, differs: bool
) -> None:
    """By the backup, to all: nobody waits for another server, and none reigns with such weights."""
    script = SCRIPT.replace("\n    rank = os.environ", f"\n    differs = {differs}{FAULT}", 1)
    monkeypatch.setattr("tests.faults.test_failover.SCRIPT", script)
    job = begin("sync", plane, epochs=2, rejoin_s=600.0)
    ended = job.ranks.finish()
    if not differs:
        assert [each.code for each in ended] == [-9, 0, 0, 0], job.ranks.shown()
        return
    assert [each.code for each in ended] == [-9, 1, 1, 1], job.ranks.shown()
    found = set()
    for each in ended[1:]:
        (line,) = [line for line in each.err.splitlines() if line.startswith("psrpc: the primary")]
        told = rf"of shard 0 differ: their digests are ({DIGEST}) and ({DIGEST});"
        found |= {match.groups() for match in re.finditer(told, line)}
    ((theirs, mine),) = found
    assert theirs != mine
    assert max(each.took_s for each in ended) < 2 * SOON_S
