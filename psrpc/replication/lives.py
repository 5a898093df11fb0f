"""A job without backups: when a server dies, all servers begin another life, at a checkpoint.

The number of the present life is in the launcher's store, where it is changed by comparing and
setting. A server that comes again after its death ends the life in which it served; the others
see that, and begin the next one too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from psrpc.errors import PeerLostError
from psrpc.replication.authority import Register

LIVES = "lives"  # where in the launcher's store servers find it
# Workers and views of a life have numbers of its own: nobody takes an old one for a new one.
NUMBERS_A_LIFE = 1_000_000_000


class Lives:
    """What servers tell each other about lives. Everything raises PeerLostError without a store."""

    def __init__(self, store: Register) -> None:
        self._store = store

    def now(self) -> int:
        """The number of the present life, from 1 on."""
        return int(self._change("", "1"))

    def end(self, life: int) -> int:
        """Let a life be over, if it is the present one; returns which is now."""
        return int(self._change(str(life), str(life + 1)))

    def choose(self, life: int, folder: str) -> None:
        """Say from which checkpoint a life begins; "": from the job's beginning."""
        self._say(f"folder/{life}", folder)

    def folder(self, life: int) -> str | None:
        """From which checkpoint a life begins; None: not said yet."""
        return self._heard(f"folder/{life}")

    def remember(self, what: str, number: int) -> None:
        """Keep a number beyond this life."""
        self._say(what, str(number))

    def recall(self, what: str) -> int:
        """A number that was kept; 0 if it was not."""
        return int(self._heard(what) or 0)

    def count(self, life: int, server: int, updates: int) -> None:
        """Say how many updates a server has made by now."""
        self._say(f"updates/{life}/{server}", str(updates))

    def counted(self, life: int, servers: int) -> int:
        """The most updates that any server has said of a life."""
        said: Sequence[str | None] = [self._heard(f"updates/{life}/{s}") for s in range(servers)]
        return max((int(text) for text in said if text is not None), default=0)

    def _change(self, expected: str, wanted: str) -> str:
        try:
            return self._store.compare_set("life", expected, wanted).decode()
        except (RuntimeError, dist.DistError) as error:
            raise self._lost() from error

    def _say(self, key: str, value: str) -> None:
        try:
            self._store.set(key, value)
        except (RuntimeError, dist.DistError) as error:
            raise self._lost() from error

    def _heard(self, key: str) -> str | None:
        try:
            return self._store.get(key).decode() if self._store.check([key]) else None
        except (RuntimeError, dist.DistError) as error:
            raise self._lost() from error

    def _lost(self) -> PeerLostError:
        return PeerLostError("the job's store is gone: its launcher has ended")
