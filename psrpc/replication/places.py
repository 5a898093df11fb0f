"""Where a shard is served: what a primary posts, and how others come to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

from psrpc.errors import PeerLostError
from psrpc.job import PlaneChoice
from psrpc.planes.agent import Agent
from psrpc.planes.base import Link
from psrpc.planes.memory import Region
from psrpc.planes.rpc import Address, RpcLink
from psrpc.planes.select import link_to
from psrpc.planes.shm import ShmLink
from psrpc.planes.stream import StreamLink
from psrpc.replication.authority import Authority
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout

_SERVED = "served"


@dataclass(frozen=True)
class Served:
    """What a primary posts when it serves: see `link_to`; `pulse` is empty but at shard 0."""

    name: str
    number: int
    url: str
    door: str
    berth: str
    pulse: str


def post(authority: Authority, replica: int, served: Served) -> None:
    """Say where a primary serves."""
    authority.post(replica, _SERVED, json.dumps(asdict(served)))


def find(authority: Authority, replica: int) -> Served | None:
    """Where a primary serves, if it does yet."""
    text = authority.read(replica, _SERVED)
    return None if text is None else Served(**json.loads(text))


def served(authority: Authority) -> Served | None:
    """Where a shard is served now, if it is. Raises PeerLostError if the authority is gone."""
    reign = authority.look()
    return None if reign is None else find(authority, reign.primary)


def pulse_of(authority: Authority) -> str | None:
    """Where the coordinator hears who is alive, if that is known."""
    with suppress(PeerLostError):
        place = served(authority)
        return None if place is None else place.pulse
    return None


class Reached:
    """A `Place` for one link of an agent. With `words_only` no gradients are to go over it.

    `is_over` says whether the job has ended.
    """

    def __init__(
        self,
        agent: Agent,
        authority: Authority,
        choice: PlaneChoice,
        is_over: Callable[[], bool],
        *,
        words_only: bool = False,
    ) -> None:
        self._agent = agent
        self._authority = authority
        self._choice = choice
        self._words_only = words_only
        self._is_over = is_over
        self._primary = -1
        self._region: Region | None = None  # of the buffers, if a server gave them

    def reach(self, buffers: Buffers | None, layout: ShardLayout) -> Link:
        """See `Place`."""
        reign = self._authority.look()
        place = None if reign is None else find(self._authority, reign.primary)
        if reign is None or place is None:
            raise PeerLostError(f"shard {self._authority.shard} is not served yet")
        self._primary = reign.primary
        control = RpcLink(self._agent, Address(place.name, place.number, place.url))
        if self._words_only:
            control.connect()
            return control
        if buffers is None:
            return link_to(control, place.door, place.berth, self._choice)
        # Buffers that were never shared cannot be; those that were can be again.
        door = place.door if self._region is not None else ""
        link = link_to(control, door, place.berth, PlaneChoice.AUTO)
        if isinstance(link, ShmLink):
            assert self._region is not None
            link.adopt(buffers, self._region)
        elif isinstance(link, StreamLink):
            link.adopt(buffers, layout)
        elif isinstance(link, RpcLink):
            link.adopt(buffers)
        return link

    def moved(self) -> bool:
        """See `Place`."""
        reign = self._authority.look()
        return reign is not None and reign.primary != self._primary

    def over(self) -> bool:
        """See `Place`."""
        return self._is_over()

    def leave(self, link: Link) -> None:
        """See `Place`."""
        if isinstance(link, ShmLink):
            link.hang_up()
            self._region = link.region
        else:
            link.close()
