"""Which plane a worker uses to which server: shared memory where there is some to share.

Otherwise RPC, with a stream beside it where the server offers one.
"""

from __future__ import annotations

from collections.abc import Sequence

from psrpc.errors import AddressError
from psrpc.job import PlaneChoice
from psrpc.planes.base import Link
from psrpc.planes.collective import CollectiveLink
from psrpc.planes.rpc import RpcLink
from psrpc.planes.shm import ShmLink
from psrpc.planes.stream import StreamLink


def link_to(control: RpcLink, door: str, berth: str, choice: PlaneChoice) -> Link:
    """Connect to a server and return the best link that `choice` allows. Blocks.

    `door` is where the server shares memory, `berth` where it takes streams. Raises
    PeerLostError if the server does not answer, and AddressError if shared memory is
    demanded and it is on another host.
    """
    control.connect()
    ways: list[ShmLink | StreamLink] = []
    if door:
        ways.append(ShmLink(control, door))
    if berth:
        ways.append(StreamLink(control, berth))
    for way in ways:
        try:
            way.connect()
        except AddressError:
            if choice is PlaneChoice.SHM:
                raise
        else:
            return way
    return control


def planes_of(links: Sequence[Link]) -> str:
    """The names of the planes in use: "collective", "shm", "rpc", or "rpc+shm"."""
    return "+".join(sorted({_plane_of(link) for link in links}))


def _plane_of(link: Link) -> str:
    link = getattr(link, "current", link)  # of one that may go on to another server
    if isinstance(link, CollectiveLink):
        return "collective"
    return "shm" if isinstance(link, ShmLink) else "rpc"
