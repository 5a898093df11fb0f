"""Who decides who reigns: the launcher's store, which changes a reign by comparing and setting."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Protocol

import torch.distributed as dist

from psrpc.core.replication import Reign
from psrpc.errors import PeerLostError

REPLICAS = "replicas"  # where in the launcher's store servers and workers find who reigns


class Register(Protocol):
    """The part of a torch store that is used here. Used from any thread."""

    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...
    def set(self, key: str, value: str) -> None: ...
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...


class Authority:
    """One shard's reigns, and where those who reign are reached.

    Of servers that came later, which may be after others of the same shard, `since` says whose
    command brought them. Everything raises PeerLostError if the store is gone.
    """

    def __init__(self, store: Register, shard: int, since: str = "") -> None:
        self._store = store
        self.shard = shard
        self.name = f"{shard}{since}"  # of those servers, whoever reigns

    def look(self) -> Reign | None:
        """Who reigns now; None before anybody does."""
        text = self._heard(f"reign/{self.name}")
        return None if text is None else _reign(text)

    def change(self, expected: Reign | None, wanted: Reign) -> Reign:
        """Let `wanted` be the reign if it is `expected` now; returns what it is then."""
        before = "" if expected is None else _text(expected)
        try:
            held = self._store.compare_set(f"reign/{self.name}", before, _text(wanted))
        except (RuntimeError, dist.DistError) as error:
            raise self._lost() from error
        return _reign(held.decode())

    def post(self, replica: int, what: str, value: str) -> None:
        """Say for all to read what must be known of a server."""
        try:
            self._store.set(f"post/{replica}/{what}", value)
        except (RuntimeError, dist.DistError) as error:
            raise self._lost() from error

    def read(self, replica: int, what: str) -> str | None:
        """What a server has posted, if it has."""
        return self._heard(f"post/{replica}/{what}")

    def _heard(self, key: str) -> str | None:
        try:
            return self._store.get(key).decode() if self._store.check([key]) else None
        except (RuntimeError, dist.DistError) as error:
            raise self._lost() from error

    def _lost(self) -> PeerLostError:
        return PeerLostError(
            f"the store that says who serves shard {self.shard} is gone: its launcher has ended"
        )


def _text(reign: Reign) -> str:
    return json.dumps(asdict(reign), sort_keys=True)


def _reign(text: str) -> Reign:
    return Reign(**json.loads(text))
