"""How the processes of a job find each other, once: through the launcher's store."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from psrpc.clock import Clock, SystemClock
from psrpc.environment import Place
from psrpc.errors import AddressError, StartTimeoutError

_ASK_AGAIN_S = 1.0


class Rendezvous:
    """A small key-value store that all processes of the job share."""

    def __init__(self, place: Place, timeout_s: float, clock: Clock | None = None) -> None:
        self._place = place
        self._timeout_s = timeout_s
        self._clock = clock or SystemClock()
        self._store: Store | None = None

    def open(self) -> None:
        """Connect to the store; rank 0 keeps it where the launcher does not.

        Raises AddressError if its port is taken and StartTimeoutError if nobody
        answers there in time.
        """
        place = self._place
        keeps = place.rank == 0 and not place.agent_keeps_store
        listener = _listen(place.address, place.port) if keeps else None
        try:
            store = TCPStore(
                place.address,
                place.port,
                is_master=keeps,
                wait_for_workers=False,
                timeout=timedelta(seconds=self._timeout_s),
                master_listen_fd=listener.detach() if listener is not None else None,
            )
        except (RuntimeError, dist.DistNetworkError) as error:
            raise StartTimeoutError(
                f"rank {place.rank} found no store at {place.address}:{place.port} within "
                f"{self._timeout_s:g} s: is rank 0 running, and does MASTER_ADDR name its host?"
            ) from error
        self._store = PrefixStore(f"psrpc/{place.job}", store)

    def publish(self, key: str, value: str) -> None:
        """Let the others read `value` under `key`."""
        assert self._store is not None
        self._store.set(key, value)

    def read(self, keys: Sequence[str]) -> list[str]:
        """Wait for all keys and return their values.

        Raises StartTimeoutError that names the keys that nobody published in time.
        """
        assert self._store is not None
        deadline = self._clock.now() + self._timeout_s
        missing = list(keys)
        while missing:
            try:
                self._store.wait(missing, timedelta(seconds=_ASK_AGAIN_S))
                missing = []
            except (RuntimeError, dist.DistError):
                missing = [key for key in missing if not self._store.check([key])]
            if missing and self._clock.now() > deadline:
                raise StartTimeoutError(
                    f"rank {self._place.rank} waited {self._timeout_s:g} s and these have not "
                    f"come: {', '.join(missing)}"
                )
        return [self._store.get(key).decode() for key in keys]

    def await_or_give_up(self, keys: Sequence[str], timeout_s: float) -> None:
        """Wait for keys, but not long, and not if the store itself is gone."""
        assert self._store is not None
        with contextlib.suppress(RuntimeError, dist.DistError):
            self._store.wait(list(keys), timedelta(seconds=timeout_s))


def _listen(address: str, port: int) -> socket.socket:
    """Listen on the wanted address only; a TCPStore by itself takes all of them."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[
            0
        ]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(128)
    except OSError as error:
        raise AddressError(
            f"rank 0 cannot listen on {address}:{port} ({error.strerror or error}): choose another "
            "port (--master-port of torchrun, --port of psrpc train)"
        ) from error
    return listener
