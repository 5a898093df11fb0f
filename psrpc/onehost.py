"""Torchrun's rendezvous for processes of one host: nobody else can reach its store.

The launch's usual rendezvous makes two stores, each of which listens on all addresses.
"""

from __future__ import annotations

from torch._C._distributed_c10d import TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from psrpc.addresses import listen

BACKEND = "psrpc"


def register() -> None:
    """Let launches in this process name `BACKEND`, with HOST:PORT as their endpoint."""
    rendezvous_handler_registry.register(BACKEND, OneHost)


class OneHost(RendezvousHandler):
    """One agent, rank 0 of 1, which keeps the store for its processes."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        host, _, port = parameters.endpoint.rpartition(":")
        listener = listen(host, int(port))
        self._where = RendezvousStoreInfo(host, listener.getsockname()[1])
        self._store = TCPStore(
            host,
            self._where.master_port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        self._closed = False

    @property
    def use_agent_store(self) -> bool:
        """The processes use the agent's store."""
        return True

    def get_backend(self) -> str:
        """Its name."""
        return BACKEND

    def get_run_id(self) -> str:
        """The launch's name."""
        return str(self._run_id)

    def next_rendezvous(self) -> RendezvousInfo:
        """Everybody is here."""
        return RendezvousInfo(self._store, 0, 1, self._where)

    def is_closed(self) -> bool:
        """Whether `set_closed` was called."""
        return self._closed

    def set_closed(self) -> None:
        """No more rounds."""
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """No other can come."""
        return 0

    def shutdown(self) -> bool:
        """Nothing is left but the store, which goes with the agent."""
        self._closed = True
        return True
