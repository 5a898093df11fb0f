"""Which plane a worker uses to which server: shared memory where there is some to share."""

from __future__ import annotations

from collections.abc import Sequence

from psrpc.errors import AddressError
from psrpc.job import PlaneChoice
from psrpc.planes.base import Link
from psrpc.planes.collective import CollectiveLink
from psrpc.planes.rpc import RpcLink
from psrpc.planes.shm import ShmLink


def link_to(control: RpcLink, door: str, choice: PlaneChoice) -> Link:
    """Connect to a server and return the best link that `choice` allows. Blocks.

    `door` is where the server shares memory. Raises PeerLostError if the server does
    not answer, and AddressError if shared memory is demanded and it is on another host.
    """
    control.connect()
    if not door:
        return control
    link = ShmLink(control, door)
    try:
        link.connect()
    except AddressError:
        if choice is PlaneChoice.SHM:
            raise
        return control
    return link


def planes_of(links: Sequence[Link]) -> str:
    """The names of the planes in use: "collective", "shm", "rpc", or "rpc+shm"."""
    return "+".join(sorted({_plane_of(link) for link in links}))


def _plane_of(link: Link) -> str:
    if isinstance(link, CollectiveLink):
        return "collective"
    return "shm" if isinstance(link, ShmLink) else "rpc"
