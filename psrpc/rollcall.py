"""Who of a job has come, and who is waited for: said every few seconds while it starts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from psrpc.environment import Place
from psrpc.rendezvous import Rendezvous, here
from psrpc.saying import say as aloud
from psrpc.seating import role

_EVERY_S = 5.0


@dataclass(frozen=True)
class Register:
    """Who belongs to a job: the roles of its ranks, and the hosts that they are on.

    `node_of` is the host of every rank by number and `nodes` the hosts' names, as in `Place`; both
    may be empty.
    """

    servers: int
    replicas: int
    world_size: int
    node_of: Sequence[int] = ()
    nodes: Sequence[str] = ()

    def missing(self, come: Collection[int]) -> list[int]:
        """The ranks that have not come."""
        return [rank for rank in range(self.world_size) if rank not in come]

    def name(self, rank: int, hosts: Mapping[int, str]) -> str:
        """A rank by role and host; `hosts` are those that came ranks have named."""
        where = self._host(rank, hosts)
        return role(rank, self.servers, self.replicas) + (f" on {where}" if where else "")

    def _host(self, rank: int, hosts: Mapping[int, str]) -> str:
        if rank in hosts:
            return hosts[rank]
        if len(set(self.node_of)) < 2:
            return ""
        node = self.node_of[rank]
        if node < len(self.nodes):
            return self.nodes[node]
        beside = (each for each in hosts if self.node_of[each] == node)
        return next((hosts[each] for each in beside), f"host {node + 1} of {max(self.node_of) + 1}")

    def sentence(self, hosts: Mapping[int, str], waited_s: float) -> str:
        """What is said while somebody is missing; empty if nobody is."""
        missing = self.missing(hosts)
        if not missing:
            return ""
        names = ", ".join(self.name(rank, hosts) for rank in missing)
        come = self.world_size - len(missing)
        return f"{come} of {self.world_size} have come in {waited_s:.0f} s; missing: {names}"


class RollCall:
    """Says, on a thread, who is missing, until all have come or the job has begun.

    A context manager. One process speaks for all: the lowest rank that has come. `begun` may be
    set to something that says whether the job goes on without the rest.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        place: Place,
        servers: int,
        replicas: int,
        say: Callable[[str], None] | None = None,
        every_s: float = _EVERY_S,
    ) -> None:
        self.begun: Callable[[], bool] = lambda: False
        self._rendezvous, self._rank = rendezvous, place.rank
        self._register = Register(servers, replicas, place.world_size, place.node_of, place.nodes)
        self._say = say or aloud
        self._every_s = every_s
        self._known: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="psrpc-roll", daemon=True)

    def __enter__(self) -> RollCall:
        if self._rank >= 0:
            self._rendezvous.say(here(self._rank), socket.gethostname())
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def hosts(self) -> dict[int, str]:
        """The hosts of all ranks that have come."""
        found: dict[int, str] = {}
        for rank in range(self._register.world_size):
            host = self._rendezvous.heard(here(rank), hush=False)
            if host is not None:
                found[rank] = host
        self._known = found
        return found

    def name(self, rank: int) -> str:
        """A rank by role and host, as far as that was known a few seconds ago."""
        return self._register.name(rank, self._known or self.hosts())

    def _run(self) -> None:
        waited_s = 0.0
        while not self._stop.wait(self._every_s) and not self.begun():
            waited_s += self._every_s
            if self._rank and self._rendezvous.heard(here(0)) is not None:
                return  # it speaks for all
            if not self._rendezvous.answers():
                return  # torch would log each question to a store that is gone
            hosts = self.hosts()
            if not hosts or len(hosts) == self._register.world_size:
                return  # the store has just gone, or everybody has come
            if min(hosts) == self._rank:
                self._say(self._register.sentence(hosts, waited_s))
