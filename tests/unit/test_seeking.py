"""How a worker that joins finds the servers, while they change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from psrpc import seeking
from psrpc.errors import AddressError, PeerLostError, PsrpcError
from psrpc.job import Job
from psrpc.moves import FindServers, Seat, Servers
from psrpc.planes.rpc import Address
from psrpc.seeking import SingleServers

BOTH = Servers(0, ())
ONE = Servers(1, (Seat("server0", 0, "", "", ""),))
NOBODY: Any = None


class Store:
    """What a `Rendezvous` is to a worker: all that it asks for is there."""

    def read(self, keys: Sequence[str]) -> list[str]:
        return [""] * len(keys)


class Way:
    """A link to one server; the coordinator gives these answers, one after another."""

    def __init__(self, name: str, answers: list[Servers]) -> None:
        self.name = name
        self._answers = answers

    def connect(self) -> None:
        """It is reached at once."""

    def call(self, word: FindServers) -> Way:
        return self

    def wait(self) -> tuple[Servers, list[Any]]:
        return self._answers.pop(0), []


def links(
    monkeypatch: pytest.MonkeyPatch, *answers: Servers, error: type[PsrpcError] = PeerLostError
) -> tuple[SingleServers, list[Any]]:
    """Come to a job of two servers, of which the second one has ended."""
    told = list(answers)

    def control(agent: Any, peer: Address, patience: Any) -> Way:
        return Way(peer.name, told)

    def link(control: Way, door: str, berth: str, choice: Any) -> str:
        if control.name == "server1":
            raise error("server1 has ended")
        return control.name

    monkeypatch.setattr(seeking, "RpcLink", control)
    monkeypatch.setattr(seeking, "link_to", link)
    store: Any = Store()
    servers = SingleServers(Job(1, 2), store, NOBODY)
    return servers, list[Any](servers.links(NOBODY))


@pytest.mark.parametrize("error", [PeerLostError, AddressError])
def test_a_server_of_the_start_is_removed_just_when_a_worker_comes(
    monkeypatch: pytest.MonkeyPatch, error: type[PsrpcError]
) -> None:
    servers, found = links(monkeypatch, BOTH, ONE, ONE, error=error)
    assert found == ["server0"]
    assert servers.names == ["server0"]
    assert servers.found(NOBODY).layout == 1


def test_one_that_is_dead_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PeerLostError, match="server1 has ended"):
        links(monkeypatch, BOTH, BOTH)


def test_so_is_one_of_a_later_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    later = Servers(2, tuple(Seat(f"server{index}", index, "", "", "") for index in (0, 1)))
    with pytest.raises(PeerLostError, match="server1 has ended"):
        links(monkeypatch, later, later)
