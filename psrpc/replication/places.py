"""Where a shard is served: what a primary posts, and how others come to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

from psrpc.errors import PeerLostError
from psrpc.job import PlaneChoice
from psrpc.moves import Seat
from psrpc.planes.agent import Agent
from psrpc.planes.base import Link
from psrpc.planes.collective import CollectiveLink
from psrpc.planes.memory import Region
from psrpc.planes.rpc import Address, RpcLink
from psrpc.planes.select import link_to
from psrpc.planes.shm import ShmLink
from psrpc.planes.stream import StreamLink
from psrpc.pulse import Heart
from psrpc.replication.authority import Authority
from psrpc.secret import Secret
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout

_SERVED = "served"


@dataclass(frozen=True)
class Served:
    """What a primary posts when it serves: see `Address`; `pulse` is empty but at shard 0."""

    name: str
    number: int
    url: str
    pulse: str


def post_doors(authority: Authority, replica: int, servers: int, seat: Seat) -> None:
    """Say where a primary lets workers in to its shard of so many."""
    authority.post(replica, f"doors/{servers}", json.dumps([seat.door, seat.berth]))


def _doors(authority: Authority, replica: int, servers: int) -> tuple[str, str]:
    """The door and the berth of its shard of so many; none: it is reached by RPC alone."""
    text = authority.read(replica, f"doors/{servers}")
    door, berth = ("", "") if text is None else json.loads(text)
    return door, berth


def post(authority: Authority, replica: int, seat: Seat, pulse: str) -> None:
    """Say where a primary serves; its doors have been posted."""
    served = Served(seat.name, seat.number, seat.url, pulse)
    authority.post(replica, _SERVED, json.dumps(asdict(served)))


def find(authority: Authority, replica: int) -> Served | None:
    """Where a primary serves, if it does yet."""
    text = authority.read(replica, _SERVED)
    return None if text is None else Served(**json.loads(text))


def served(authority: Authority) -> Served | None:
    """Where a shard is served now, if it is. Raises PeerLostError if the authority is gone."""
    reign = authority.look()
    return None if reign is None else find(authority, reign.primary)


def seat_of(authority: Authority) -> Seat:
    """What a shard's servers are called in a layout: they are reached as the authority says."""
    return Seat(authority.name.removeprefix(str(authority.shard)), authority.shard, "", "", "")


def since_of(seat: Seat) -> str:
    """See `Authority`: of the servers that `seat_of` names."""
    return seat.name


def pulse_of(authority: Authority) -> str | None:
    """Where the coordinator hears who is alive, if that is known."""
    with suppress(PeerLostError):
        place = served(authority)
        return None if place is None else place.pulse
    return None


class Reached:
    """A `Place` for one link of an agent, to a shard of so many `servers`.

    With none, no gradients are to go over it. `is_over` says whether nobody serves it any more,
    `collective` makes the links of that plane.
    """

    def __init__(
        self,
        agent: Agent,
        authority: Authority,
        choice: PlaneChoice,
        is_over: Callable[[], bool],
        servers: int | None = None,
        collective: Callable[[RpcLink], CollectiveLink] | None = None,
    ) -> None:
        self._agent = agent
        self._authority = authority
        self._choice = choice
        self._servers = servers
        self._collective = collective
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
        if self._servers is None:
            control.connect()
            return control
        if self._collective is not None:
            control.connect()
            shared = self._collective(control)
            if buffers is not None:
                shared.adopt(buffers, layout)
            return shared
        door, berth = _doors(self._authority, reign.primary, self._servers)
        if buffers is None:
            return link_to(control, door, berth, self._choice)
        # Buffers that were never shared cannot be; those that were can be again.
        door = door if self._region is not None else ""
        link = link_to(control, door, berth, PlaneChoice.AUTO)
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


def heart_to(authority: Authority, process: int, dead_after_s: float, secret: Secret) -> Heart:
    """What tells the coordinator, wherever it is, that a process lives."""
    return Heart(
        pulse_of(authority) or "", process, dead_after_s, secret, lambda: pulse_of(authority)
    )
