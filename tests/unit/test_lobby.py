"""Where a job is found, and who can join it from where."""

from __future__ import annotations

import json

import pytest
from torch._C._distributed_c10d import TCPStore

from psrpc import __version__
from psrpc.errors import AddressError, ConfigError, UsageError
from psrpc.lobby import KEY, Lobby, look_up, split

ELSEWHERE = "192.0.2.7"  # an address for documentation: no host has it


def lobby(*, one_host: bool, loopback: bool) -> Lobby:
    return Lobby("job", 3, 1, __version__, None, "mine.py", one_host, loopback)


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("127.0.0.1:29500", ("127.0.0.1", 29500)),
        ("[::1]:29500", ("::1", 29500)),
        ("node1:1", ("node1", 1)),
    ],
)
def test_addresses(address: str, where: tuple[str, int]) -> None:
    assert split(address) == where


@pytest.mark.parametrize("address", ["", "node1", "node1:", ":1", "[]:1", "node1:0", "node1:70000"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="a job's address is HOST:PORT"):
        split(address)


def test_a_job_at_an_address_of_ipv6() -> None:
    store = TCPStore("::1", 0, None, True, wait_for_workers=False)
    store.set(KEY, json.dumps(vars(lobby(one_host=True, loopback=True))))
    assert look_up(f"[::1]:{store.port}").script == "mine.py"
    port = store.port
    del store
    with pytest.raises(AddressError, match=rf"nobody answers for a job at \[::1\]:{port}: is it"):
        look_up(f"[::1]:{port}")


def test_who_can_join_from_where() -> None:
    assert lobby(one_host=True, loopback=True).admit("localhost") is True
    assert lobby(one_host=False, loopback=False).admit("127.0.0.1") is False
    assert lobby(one_host=True, loopback=False).admit(ELSEWHERE) is False
    with pytest.raises(ConfigError, match=r"on its own host only.* --interface"):
        lobby(one_host=True, loopback=True).admit(ELSEWHERE)
