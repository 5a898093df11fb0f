"""The tuple space: tuples that any process writes, reads, and takes by what they look like."""

from psrpc.core.patterns import ANY, FIELD
from psrpc.core.tuples import Change
from psrpc.space.client import Space
from psrpc.space.server import SpaceServer
from psrpc.space.taken import Taken
from psrpc.space.watching import Event, Watch

__all__ = ["ANY", "FIELD", "Change", "Event", "Space", "SpaceServer", "Taken", "Watch"]
