"""What a server does that follows a primary: it takes in what comes, until that ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum

import torch

from psrpc.core.replication import Backup, Reign
from psrpc.errors import AddressError, JobFailedError, ProtocolError
from psrpc.messages import Pull, Push
from psrpc.planes.base import Payload
from psrpc.planes.freight import Freight, size_of
from psrpc.replication import entries
from psrpc.replication.authority import Authority
from psrpc.replication.entries import Check, Copy, Differs, Entry, Event, Has, Over, Pool, Round
from psrpc.replication.intake import disagreement, take_in
from psrpc.replication.lines import Voice, beat_s_of, reach
from psrpc.replication.state import Replicated, digest, restore, server_of
from psrpc.secret import Secret

_LOOK_AGAIN_S = 0.05
_BEHIND = 32  # steps that lie until they are made together
_MOST_BEHIND = 128
_BEHIND_BYTES = 1 << 22
HARBOUR = "harbour"  # what a primary posts for those that want to follow it


class _EndedError(Exception):
    """Nothing more is to be heard; `over`: as the job has ended."""

    def __init__(self, *, over: bool) -> None:
        super().__init__(over)
        self.over = over


def _nowhere(flats: Sequence[torch.Tensor]) -> None:
    """Weights that nobody waits for here: no copy of them is made."""


def _may_lie(event: Event) -> bool:
    """Whether it is of no matter here when this is done."""
    return isinstance(event, Push | Pull | Round)


class Ending(Enum):
    """Why a server follows no more."""

    REIGNS = "the authority made it primary"
    OVER = "the job has ended"
    DROPPED = "the primary goes on without it"


class Follower:
    """Follows the shard's primary with a service that nobody else calls. One thread does all; that
    this server lives is said by another.
    """

    def __init__(
        self,
        service: Replicated,
        me: int,
        authority: Authority,
        dead_after_s: float,
        secret: Secret,
    ) -> None:
        self.core = Backup(me)
        self.reign: Reign | None = None  # once it reigns
        self.differs: JobFailedError | None = None  # in what it differs from its primary
        self.orphan = False  # its primary was lost when the job had ended
        self._service = service
        self._authority = authority
        self._dead_after_s = dead_after_s
        self._secret = secret
        self._pool = Pool()
        # What it has and has not done yet.
        self._behind: deque[tuple[Event, list[torch.Tensor]]] = deque()
        self._behind_bytes = 0

    def follow(self, coming_s: float, patience_s: float, over: Callable[[], bool]) -> Ending:
        """Take in what the primary takes in. Blocks until there is an end to that.

        `over` says whether the job has ended. Raises JobFailedError if the first primary has not
        come within `coming_s`, if one that came cannot be reached for `patience_s` and nobody takes
        its place, or if this server differs from its primary, and PeerLostError if the authority is
        gone.
        """
        freight = self._reach(coming_s, patience_s, over)
        if freight is None:
            return Ending.OVER
        with Voice(freight, beat_s_of(self._dead_after_s)) as voice:
            if self._listen(freight, voice):
                return Ending.OVER
        return self._claim()

    def _reach(
        self, coming_s: float, patience_s: float, over: Callable[[], bool]
    ) -> Freight | None:
        deadline, seen = time.monotonic() + coming_s, False
        why = "it has not come"
        while not over():
            reign = self._authority.look()
            address = None if reign is None else self._authority.read(reign.primary, HARBOUR)
            if not seen and reign is not None and (reign.epoch > 1 or address is not None):
                deadline, seen = time.monotonic() + patience_s, True
            if address is not None:
                try:
                    return reach(address, self.core.me, self._dead_after_s, self._secret)
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

    def _listen(self, freight: Freight, voice: Voice) -> bool:
        """Take in what comes; returns whether the job has ended, and not only the connection."""
        server = server_of(self._service)
        try:
            while True:
                if self._hear(freight, voice):
                    self._catch_up(voice, lambda: False)
                elif len(self._behind) >= _BEHIND or self._behind_bytes >= _BEHIND_BYTES:
                    self._catch_up(voice, lambda: self._may_wait and freight.has_more())
                if server.failure is not None:
                    # The job's end, or this server's own: after half a step it is nobody's backup.
                    return True
        except _EndedError as end:
            over = end.over
        except (OSError, EOFError, ProtocolError):
            self.orphan = over = server.ended.is_set()
        self._catch_up(voice, lambda: False)
        return over or server.failure is not None

    def _hear(self, freight: Freight, voice: Voice) -> bool:
        """Wait for what comes, and say what this server has; returns whether that is urgent.

        What has come together has one word for all.
        """
        urgent = False
        while True:
            message, tensors = entries.receive(freight, self._pool)
            match message:
                case Copy(epoch, number, state):
                    restore(self._service, state, tensors)
                    self.core.copied(epoch, number)
                case Entry(epoch, number, event):
                    if not self.core.take(epoch, number):
                        raise _EndedError(over=False)
                    self._behind.append((event, tensors))
                    self._behind_bytes += size_of(tensors)
                case Over():
                    raise _EndedError(over=True)
            urgent = urgent or not (isinstance(message, Entry) and _may_lie(message.event))
            if not freight.holds_another():
                voice.say(Has(self.core.last))
                return urgent

    @property
    def _may_wait(self) -> bool:
        few = len(self._behind) < _MOST_BEHIND
        return few and self._behind_bytes < 2 * _BEHIND_BYTES

    def _catch_up(self, voice: Voice, stops: Callable[[], bool]) -> None:
        """Let the server do what has come, until that is done or `stops` says so.

        Of small steps many are made at once: that takes a third of the processor's time, for
        its caches are warm then, and nobody waits for it.
        """
        while self._behind and not stops():
            event, tensors = self._behind.popleft()
            self._behind_bytes -= size_of(tensors)
            if isinstance(event, Check):
                self._compare(voice, event)
            else:
                self._take_in(event, tensors)

    def _take_in(self, event: Event, tensors: list[torch.Tensor]) -> None:
        def answered(payload: Payload) -> None:
            if isinstance(event, Push):  # what comes with other words may be kept
                self._pool.give(tensors)

        take_in(self._service, event, tensors, answered, _nowhere)
        if isinstance(event, Round):
            self._pool.give(tensors)

    def _compare(self, voice: Voice, check: Check) -> None:
        mine = digest(self._service)
        if mine != check.digest:
            self.differs = disagreement(server_of(self._service).index, check.digest, mine)
            with suppress(OSError, EOFError):  # its primary may be gone: it reigns nowhere
                voice.say(Differs(mine, check.digest))
            raise self.differs

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
