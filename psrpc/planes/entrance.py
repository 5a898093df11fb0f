"""Where workers come in to a server's shard: shared memory, and streams beside RPC."""

from __future__ import annotations

from psrpc.job import PlaneChoice
from psrpc.moves import Seat
from psrpc.planes.agent import Agent
from psrpc.planes.base import QuickService, Service
from psrpc.planes.doorman import Doorman
from psrpc.planes.porter import Porter
from psrpc.secret import Secret
from psrpc.store.layout import ShardLayout


class Entrance:
    """The doors of one layout's shard, those that a plane uses."""

    def __init__(
        self,
        agent: Agent,
        secret: Secret,
        service: Service,
        layout: ShardLayout,
        choice: PlaneChoice,
        quick: QuickService | None = None,
    ) -> None:
        self._agent = agent
        self._doorman: Doorman | None = None
        self._porter: Porter | None = None
        if choice not in (PlaneChoice.RPC, PlaneChoice.COLLECTIVE):
            self._doorman = Doorman(service, layout, quick)
        if choice not in (PlaneChoice.SHM, PlaneChoice.COLLECTIVE):
            self._porter = Porter(service, layout, agent.host, secret, quick)

    def open(self) -> None:
        """Listen."""
        for door in (self._doorman, self._porter):
            if door is not None:
                door.start()

    @property
    def seat(self) -> Seat:
        """Where this server is reached, once it is open."""
        agent = self._agent
        door = "" if self._doorman is None else self._doorman.address
        berth = "" if self._porter is None else self._porter.address
        return Seat(agent.name, agent.number, agent.url, door, berth)

    def close(self) -> None:
        """Take no more; workers that wait for an answer get PeerLostError."""
        for door in (self._doorman, self._porter):
            if door is not None:
                door.close()
