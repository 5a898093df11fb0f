"""What a server does that follows a primary: it takes in what comes, until that ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

from psrpc.core.replication import Backup, Reign
from psrpc.errors import AddressError, JobFailedError, ProtocolError
from psrpc.planes.freight import Freight
from psrpc.replication import entries
from psrpc.replication.authority import Authority
from psrpc.replication.entries import Beat, Check, Copy, Differs, Entry, Has, Over
from psrpc.replication.lines import reach
from psrpc.replication.primary import disagreement, take_in
from psrpc.replication.state import Replicated, digest, restore, server_of

_LOOK_AGAIN_S = 0.05
HARBOUR = "harbour"  # what a primary posts for those that want to follow it


class Ending(Enum):
    """Why a server follows no more."""

    REIGNS = "the authority made it primary"
    OVER = "the job has ended"
    DROPPED = "the primary goes on without it"


class Follower:
    """Follows the shard's primary with a service that nobody else calls. One thread."""

    def __init__(
        self, service: Replicated, me: int, authority: Authority, dead_after_s: float
    ) -> None:
        self.core = Backup(me)
        self.reign: Reign | None = None  # once it reigns
        self._service = service
        self._authority = authority
        self._dead_after_s = dead_after_s

    def follow(self, patience_s: float, over: Callable[[], bool]) -> Ending:
        """Take in what the primary takes in. Blocks until there is an end to that.

        `over` says whether the job has ended. Raises JobFailedError if for `patience_s` there is
        no primary to be reached and nobody takes its place, or if this server differs from its
        primary, and PeerLostError if the authority is gone.
        """
        freight = self._reach(patience_s, over)
        if freight is None:
            return Ending.OVER
        try:
            if self._listen(freight):
                return Ending.OVER
        finally:
            freight.cut()
            freight.close()
        return self._claim()

    def _reach(self, patience_s: float, over: Callable[[], bool]) -> Freight | None:
        deadline = time.monotonic() + patience_s
        why = "it has not come"
        while not over():
            reign = self._authority.look()
            address = None if reign is None else self._authority.read(reign.primary, HARBOUR)
            if address is not None:
                try:
                    return reach(address, self.core.me, self._dead_after_s)
                except AddressError as error:
                    why = str(error)
            if time.monotonic() > deadline:
                shard = self._authority.shard
                raise JobFailedError(
                    f"the primary of shard {shard} is gone, and there is no backup that has all "
                    f"that it had: {why}"
                )
            time.sleep(_LOOK_AGAIN_S)
        return None

    def _listen(self, freight: Freight) -> bool:
        """Take in what comes; returns whether the job has ended, and not only the connection."""
        server = server_of(self._service)
        try:
            while True:
                message, tensors = entries.receive(freight)
                match message:
                    case Copy(epoch, number, state):
                        restore(self._service, state, tensors)
                        self.core.copied(epoch, number)
                    case Entry(epoch, number, event):
                        if not self.core.take(epoch, number):
                            return False
                        entries.send(freight, Has(number))
                        if isinstance(event, Check):
                            self._compare(freight, event)
                        else:
                            take_in(self._service, event, tensors, lambda payload: None)
                        continue
                    case Over():
                        return True
                    case Beat():
                        pass
                entries.send(freight, Has(self.core.last))
        except (OSError, EOFError, ProtocolError):
            return server.ended.is_set()

    def _compare(self, freight: Freight, check: Check) -> None:
        mine = digest(self._service)
        if mine != check.digest:
            entries.send(freight, Differs(mine, check.digest))
            raise disagreement(server_of(self._service).index, check.digest, mine)

    def _claim(self) -> Ending:
        """The primary is gone, or silent: reign in its place, if the authority lets this one."""
        seen = self._authority.look()
        assert seen is not None, "a reign has no end but the next one"
        wanted = self.core.claim(seen) if self.core.last >= 0 else None
        if wanted is None:
            return Ending.DROPPED
        held = self._authority.change(seen, wanted)
        if not self.core.promoted(held):
            return Ending.DROPPED
        self.reign = held
        return Ending.REIGNS
