"""A tuple space under four clients, each with tuples of its own kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.contender import Figure

WRITES, READS, TAKES = Figure("writes/s"), Figure("reads/s"), Figure("takes/s")
ONE_BY_ONE = Figure("tuples/s, one by one")
FIGURES = (WRITES, READS, TAKES, ONE_BY_ONE)

_CLIENTS = 4
_IN_FLIGHT = 64  # requests of a client without an answer


class Owner:
    """An actor that keeps the tuples."""

    def __init__(self) -> None:
        from psrpc.space import SpaceServer

        self._server = SpaceServer().start()

    def address(self) -> str:
        """Where it is."""
        return self._server.address


class Client:
    """An actor that uses the space."""

    def __init__(self, address: str, name: str) -> None:
        from psrpc.space import Space

        self._space = Space(address)
        self._name = name
        self._space.count((name,))  # connects

    def write(self, count: int) -> None:
        """Write so many tuples, some at a time."""
        self._many(count, lambda number: self._space.write_async((self._name, number, "text")))

    def read(self, count: int) -> None:
        """Read so many tuples, some at a time."""
        self._many(count, lambda number: self._space.read_async((self._name, number, str)))

    def take(self, count: int) -> None:
        """Take so many tuples, some at a time."""
        self._many(count, lambda number: self._space.take_async((self._name, number, str)))

    def one_by_one(self, count: int) -> None:
        """Write, read and take a tuple, and wait each time; so many operations."""
        for number in range(count // 3):
            self._space.write((self._name, number, "text"))
            self._space.read((self._name, number, str))
            self._space.take((self._name, number, str))

    def left(self) -> int:
        """How many tuples of its own there are."""
        return self._space.count((self._name, int, str))

    def _many(self, count: int, ask: Callable[[int], Any]) -> None:
        for begin in range(0, count, _IN_FLIGHT):
            futures = [ask(number) for number in range(begin, min(begin + _IN_FLIGHT, count))]
            for future in futures:
                future.result()


def measure(make: Callable[..., Any], get: Callable[..., Any], count: int) -> dict[str, float]:
    """Operations a second, of all clients together; `make` makes an actor in its own process."""
    owner = make(Owner)
    address = get(owner.address.remote())
    clients = [make(Client, address, f"client {number}") for number in range(_CLIENTS)]
    assert get([client.left.remote() for client in clients]) == [0] * _CLIENTS
    figures = {}
    for figure, name in ((WRITES, "write"), (READS, "read"), (TAKES, "take")):
        figures[figure.name] = _rate(clients, get, name, count)
    figures[ONE_BY_ONE.name] = _rate(clients, get, "one_by_one", count // 9 * 3)
    assert get([client.left.remote() for client in clients]) == [0] * _CLIENTS
    return figures


def _rate(clients: list[Any], get: Callable[..., Any], name: str, count: int) -> float:
    began_s = time.perf_counter()
    get([getattr(client, name).remote(count) for client in clients])
    return _CLIENTS * count / (time.perf_counter() - began_s)
