"""Which address others are told, and who is called while a job starts."""

from __future__ import annotations

import pytest
from torch._C._distributed_c10d import TCPStore

from psrpc import addresses
from psrpc.addresses import Interface, alone, chosen, is_loopback, with_address
from psrpc.environment import Place
from psrpc.errors import ConfigError, StartTimeoutError
from psrpc.rendezvous import Rendezvous, here
from psrpc.rollcall import Register, RollCall
from psrpc.testing.clock import ManualClock
from tests.processes import free_port
from tests.stores import keep_store

LO = Interface("lo", "127.0.0.1")
ETH = Interface("eth0", "10.0.0.1")
SECOND = Interface("eth0", "10.0.0.2")
IB = Interface("ib0", "10.1.0.1")


def test_this_host_has_a_loopback_interface() -> None:
    assert LO in addresses.interfaces()
    assert chosen("lo") == chosen("127.0.0.1") == LO


def test_an_interface_is_chosen_by_name_or_address() -> None:
    found = [LO, ETH, SECOND, IB]
    assert chosen("eth0", found) == chosen("10.0.0.1", found) == ETH
    assert chosen("10.1.0.1", found) == IB
    with pytest.raises(ConfigError, match=r"neither .*there are: lo \(127\.0\.0\.1\), eth0"):
        chosen("eth1", found)
    for address in ("::1", "fe80::1%eth0", "[2001:db8::1]"):
        with pytest.raises(ConfigError, match=r"is an IPv6 address, and psrpc uses IPv4 only"):
            chosen(address, found)
    with pytest.raises(ConfigError, match=r"second address of eth0.*10\.0\.0\.1"):
        chosen("10.0.0.2", found)


def test_what_others_can_reach() -> None:
    assert alone([LO, ETH]) == ETH
    assert alone([LO, ETH, IB]) is None
    assert alone([LO]) is None
    assert with_address("10.1.0.1", [LO, IB]) == IB
    assert [is_loopback(each) for each in ("127.0.1.1", "::1", "10.0.0.1", "node1")] == [
        True,
        True,
        False,
        False,
    ]


def test_the_missing_are_called_by_role_and_host() -> None:
    register = Register(1, 0, 5, (0, 0, 1, 1, 2))
    said = register.sentence({0: "node1", 2: "node2"}, 10.0)
    assert said == (
        "2 of 5 have come in 10 s; missing: worker 0 on node1, worker 2 on node2, worker 3 on "
        "host 3 of 3"
    )
    assert register.sentence(dict.fromkeys(range(5), "x"), 1.0) == ""
    named = Register(1, 0, 3, (0, 1, 2), ("node1", "node2", "node7"))
    assert named.name(2, {}) == "worker 1 on node7"
    assert Register(1, 0, 3).name(2, {}) == "worker 1"


@pytest.fixture
def store() -> TCPStore:
    return keep_store()


def place(rank: int, store: TCPStore) -> Place:
    return Place(rank, 3, rank, 3, "127.0.0.1", store.port, agent_keeps_store=True, job="job/0")


def test_the_lowest_rank_that_has_come_speaks_until_all_are_there(store: TCPStore) -> None:
    said: dict[int, list[str]] = {1: [], 2: []}
    with (
        Rendezvous(place(1, store), 5.0) as one,
        Rendezvous(place(2, store), 5.0) as two,
        RollCall(one, place(1, store), 1, 0, said[1].append, every_s=0.01) as first,
        RollCall(two, place(2, store), 1, 0, said[2].append, every_s=0.01) as second,
    ):
        while not said[1]:
            assert first._thread.is_alive()
        one.say(here(0), "node1")
        first._thread.join(10.0)
        second._thread.join(10.0)
        assert not first._thread.is_alive()
        assert not second._thread.is_alive()
    assert "2 of 3 have come in" in said[1][0]
    assert said[1][0].endswith("missing: server 0")
    # The second may have looked before the first had come.
    assert all("worker 0" in each for each in said[2])


def test_a_store_that_is_gone_is_asked_no_more_and_nothing_is_logged(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Torch logs each question to a store that has gone, with a traceback."""
    store = keep_store()
    said: list[str] = []
    own = place(1, store)
    with Rendezvous(own, 5.0) as rendezvous:
        del store
        with RollCall(rendezvous, own, 1, 0, said.append, every_s=0.01) as roll:
            roll._thread.join(10.0)
            assert not roll._thread.is_alive()
    assert said == []
    assert capfd.readouterr().err == ""


def test_nobody_is_called_when_the_job_has_begun(store: TCPStore) -> None:
    said: list[str] = []
    with (
        Rendezvous(place(0, store), 5.0) as rendezvous,
        RollCall(rendezvous, place(0, store), 1, 0, said.append, every_s=0.01) as roll,
    ):
        roll.begun = lambda: True
        roll._thread.join(10.0)
        assert not roll._thread.is_alive()
        count = len(said)
        assert rendezvous.heard(here(0)) is not None
        assert len(said) == count


def test_a_store_that_nobody_keeps_is_asked_for_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = ManualClock()
    lost = Place(1, 2, 0, 1, "127.0.0.1", free_port(), agent_keeps_store=True, job="job/0")
    rendezvous = Rendezvous(lost, 12.0, clock, who="worker 0")
    with pytest.raises(StartTimeoutError, match=r"worker 0 found no store at 127\.0\.0\.1"):
        rendezvous._knock(lambda s: clock.advance(s * 50))
    said = capsys.readouterr().err.splitlines()
    assert 2 <= len(said) <= 3
    assert "worker 0 on " in said[0]
    assert "for server 0, which keeps the store" in said[0]
