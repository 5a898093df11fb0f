"""What the doctor makes of facts, and how it measures what is between two hosts."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from psrpc.doctor import between, host
from psrpc.doctor.findings import Finding, Level, bad, examined, exit_code, ok, shown, warning
from psrpc.planes.doors import Door
from psrpc.secret import Secret

SECRET = Secret(b"a secret of these tests")


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        (host.address("127.0.0.1", "node1", one_host=True), Level.OK, "at 127.0.0.1"),
        (host.address("127.0.1.1", "node1", one_host=False), Level.BAD, "node1 resolves to"),
        (host.address("::1", "node1", one_host=False), Level.BAD, "told ::1"),
        (host.address("10.0.0.1", "node1", one_host=False), Level.OK, "told 10.0.0.1"),
        (host.address("fe80::1%eth0", "node1", one_host=False), Level.OK, "fe80::1%eth0"),
        (host.guard(), Level.OK, "keeps strangers from"),
        (host.ports(32768, 60999), Level.OK, "from 32768 to 60999"),
        (host.ports(50000, 50100), Level.WARNING, "101 ports only"),
        (host.names(0.01), Level.OK, "looked up at once"),
        (host.names(10.2), Level.WARNING, "took 10 s"),
        (host.descriptors(256, 4096), Level.WARNING, "may have 256 open"),
        (host.descriptors(1024, -1), Level.OK, "enough for 128 workers"),
        (host.shm(64 << 20), Level.WARNING, "64 MB of /dev/shm"),
        (host.shm(1 << 30), Level.OK, "1024 MB of /dev/shm"),
        (between.clock(-0.5, 0.001, "b"), Level.OK, "b's is 0.500 s behind"),
        (between.clock(1.2, 0.001, "b"), Level.WARNING, "b's is 1.200 s ahead"),
        (between.clock(1.2, 0.5, "b"), Level.OK, "to within 0.250 s"),
        (between.link(1000.0, 0.0002, "b"), Level.OK, "1000 MB/s to b, 0.20 ms"),
        (between.link(11.0, 0.0002, "b"), Level.WARNING, "11 MB/s"),
        (between.link(1000.0, 0.05, "b"), Level.WARNING, "50.00 ms"),
        (between.unreached("b", "10.0.0.2:1", "timed out"), Level.BAD, "at 10.0.0.2:1 (timed out)"),
    ],
)
def test_facts_are_judged(finding: Finding, level: Level, said: str) -> None:
    assert finding.level is level
    assert said in finding.text
    assert bool(finding.remedy) == (level is not Level.OK)


def test_remedies_are_shown_and_the_worst_counts() -> None:
    good, so_so, worst = ok("a", "x"), warning("bcd", "y", "do"), bad("e", "z", "do that")
    assert shown([good, Finding(Level.BAD, "bcd", "y", "do", "node1")]).splitlines() == [
        "ok       a    x",
        "bad      bcd  node1: y",
        "              -> do",
        "1 bad, 0 warnings, 1 ok",
    ]
    assert exit_code([good, so_so]) == 0
    assert exit_code([good, worst, so_so]) == 1


def test_a_look_that_fails_is_a_finding() -> None:
    def breaks() -> Iterator[Finding]:
        yield ok("a", "first")
        raise ValueError("no such thing")

    found = examined([breaks, lambda: [ok("b", "last")]])
    assert [each.level for each in found] == [Level.OK, Level.BAD, Level.OK]
    assert found[1].text == "ValueError: no such thing"


def test_one_process_of_each_host_measures() -> None:
    assert between.hosts_of(["a 1", "a 1", "b 2", "a 1", "c 3", "b 2"]) == [0, 2, 4]


def test_a_host_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(between, "SLOW_MB_S", 0.0)  # this machine may be
    monkeypatch.setattr(between, "FAR_S", 60.0)
    door = Door("127.0.0.1", SECRET, between.PURPOSE, between.attend)
    door.start()
    try:
        clock, link = between.measured("b", door.address, SECRET)
        assert (clock.subject, clock.level) == ("clock", Level.OK)
        assert (link.subject, link.level) == ("link", Level.OK)
        (unreached,) = between.measured("b", door.address, Secret(b"another"))
        assert unreached.level is Level.BAD
    finally:
        door.close()
    (unreached,) = between.measured("b", door.address, SECRET)
    assert "cannot be reached at 127.0.0.1" in unreached.text


def test_another_clock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    with here, there:
        answers = iter([1005.0 + i for i in range(100)])
        monkeypatch.setattr(between, "_asked", lambda *_: next(answers))
        monkeypatch.setattr("time.time", lambda: 1000.0)
        ahead_s, took_s = between.clock_of(here)
    assert ahead_s >= 5.0 - took_s
    assert json.dumps(took_s)
