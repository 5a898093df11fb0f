"""The service of a shard's primary: what it takes in goes to the backup, answers wait for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from psrpc.coordinator import Coordinator
from psrpc.core.replication import Primary, Reign
from psrpc.errors import JobFailedError, PeerLostError, ProtocolError, PsrpcError, decode, encode
from psrpc.messages import (
    Failure,
    GetBuffers,
    GetFrozen,
    GetState,
    GetStats,
    Peek,
    Ping,
    Request,
    View,
)
from psrpc.orders import Closed
from psrpc.planes import base
from psrpc.planes.base import Landing, Payload
from psrpc.replication.authority import Authority
from psrpc.replication.entries import (
    Beat,
    Check,
    Copy,
    Death,
    Differs,
    Entry,
    Event,
    Has,
    Message,
    News,
    Verdict,
)
from psrpc.replication.lines import Line
from psrpc.replication.state import Replicated, capture, digest, server_of

BEATS_A_LIFE = 5
LONGEST_BEAT_S = 1.0
CHECK_EVERY = 1000  # entries

# What changes nothing; a backup need not do it again. That it comes by there all the same proves
# that no other server reigns.
READS = (Peek, GetState, GetStats, GetFrozen, GetBuffers)


@dataclass(frozen=True)
class Kept:
    """An answer that is decided, and where its weights are to land."""

    answer: base.Answer
    land: Landing | None
    payload: Payload

    def send(self) -> None:
        """Let it go. Only now do weights land: a server that is deposed writes nowhere."""
        reply, weights = self.payload
        if self.land is not None and weights:
            self.land(weights)
            weights = []
        self.answer((reply, weights))


def take_in(
    service: Replicated,
    event: Event,
    tensors: Sequence[torch.Tensor],
    answer: base.Answer,
) -> None:
    """Let a server do what an entry says; the same on a primary and on its backup."""
    match event:
        case Request():
            service.handle(event, tensors, answer)
        case Death(process, why):
            assert isinstance(service, Coordinator)
            service.lose(process, why)
        case News(Closed() as closed):
            server_of(service).tell(closed)
        case News(View() as view):
            server_of(service).adopt(view)
        case Verdict(error):
            service.fail(decode(*error))


def disagreement(shard: int, of_primary: str, of_backup: str) -> JobFailedError:
    """The error that says that two servers differ which must be equal."""
    return JobFailedError(
        f"the primary and the backup of shard {shard} differ: their digests are {of_primary} and "
        f"{of_backup}; do both hosts run the same torch, on the same kind of processor?"
    )


class PrimaryService:
    """Serves a shard as its primary; a `Service`. All methods are for any thread.

    When another server reigns, or the authority is gone, `ended` is set, and `deposed` or
    `lost_authority` says so.
    """

    def __init__(
        self,
        service: Replicated,
        me: int,
        reign: Reign,
        last: int,
        authority: Authority,
        dead_after_s: float,
    ) -> None:
        self.service = service
        self.server = server_of(service)
        self.lost_authority: PeerLostError | None = None
        self._core: Primary[Kept] = Primary(me, reign, last)
        self._authority = authority
        self._dead_after_s = dead_after_s
        self._order = threading.Lock()  # entries are taken in one after another
        self._lines: list[Line] = []
        self._changed = threading.Condition(self._order)
        self._closed = False
        self._finished = False
        self._sending = threading.Lock()
        self._keeper = threading.Thread(target=self._keep_watch, name="psrpc-reign", daemon=True)

    @property
    def ended(self) -> threading.Event:
        """Set when the job has ended, or this server's part in it."""
        return self.server.ended

    @property
    def deposed(self) -> bool:
        """Whether another server reigns."""
        return self._core.deposed

    @property
    def epoch(self) -> int:
        """The number of its reign."""
        return self._core.reign.epoch

    @property
    def paired(self) -> bool:
        """Whether the shard has a backup."""
        return self._core.reign.backup is not None

    def start(self) -> None:
        """Begin to watch over those that follow."""
        self._keeper.start()

    def close(self, timeout_s: float) -> None:
        """Tell those that follow that there is nothing to take over. Blocks.

        Waits as long for the last answers to be sent.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._core.keeps and not self.deposed and time.monotonic() < deadline:
                self._changed.wait(0.1)
            lines = [] if self.deposed else list(self._lines)
        for line in lines:
            line.finish(max(deadline - time.monotonic(), 0.1))
        self.stop()
        if not self.lost_authority:
            # Nothing can be lost any more: whoever still asks is told how the job ended.
            self._finished = True
        self._go_on()

    def stop(self) -> None:
        """Hear of those that follow no more; if they were not told why, they take over."""
        with self._changed:
            lines, self._lines = self._lines, []
            self._closed = True
            self._changed.notify_all()
        for line in lines:
            line.close()
        if self._keeper.ident is not None:
            self._keeper.join()

    def wait_for_backup(self, timeout_s: float) -> bool:
        """Wait until the shard has a backup; returns whether it has."""
        with self._changed:
            over = lambda: self.paired or self.ended.is_set()  # noqa: E731
            return self._changed.wait_for(over, timeout_s) and self.paired

    # What comes in.

    def handle(
        self,
        request: Request,
        tensors: Sequence[torch.Tensor],
        answer: base.Answer,
        land: Landing | None = None,
    ) -> None:
        """See `Service`. Answers are given when no failure of this server can undo them."""
        if isinstance(request, Ping):
            self.service.handle(request, tensors, answer, land)
            return
        self._enter(request, tensors, answer, land)

    def lose(self, process: int, why: str) -> None:
        """See `Coordinator`."""
        self._enter(Death(process, why))

    def adopt(self, view: View) -> None:
        """See `ParameterServer`."""
        self._enter(News(view))

    def tell(self, closed: Closed) -> None:
        """See `ParameterServer`."""
        self._enter(News(closed))

    def fail(self, error: PsrpcError) -> None:
        """See `Coordinator`."""
        self._enter(Verdict(encode(error)))

    def _enter(
        self,
        event: Event,
        tensors: Sequence[torch.Tensor] = (),
        answer: base.Answer = lambda payload: None,
        land: Landing | None = None,
    ) -> None:
        with self._order:
            if self.deposed:
                self._keep(answer, None, self._refusal())
            else:
                self._forward(event, tensors)
                take_in(self.service, event, tensors, partial(self._keep, answer, land))
                if self._lines and self._core.last % CHECK_EVERY == 0:
                    self._forward(Check(digest(self.service)), ())
        self._go_on()

    def _keep(self, answer: base.Answer, land: Landing | None, payload: Payload) -> None:
        self._core.keep(Kept(answer, land, payload))

    def _forward(self, event: Event, tensors: Sequence[torch.Tensor]) -> None:
        number, epoch = self._core.append(), self._core.reign.epoch
        beside = () if isinstance(event, READS) else tensors
        for line in self._lines:
            # Whoever is waited for has read them before the answer; others take their time.
            waited_for = self._core.waits_for(line.replica)
            own = beside if waited_for else [tensor.clone() for tensor in beside]
            line.put(Entry(epoch, number, event), own)

    def _go_on(self) -> None:
        """Send the answers that may be sent, in their order, and see to the reign."""
        with self._sending:
            with self._order:
                end = self.deposed or self._finished
                kept = self._core.give_up() if end else self._core.release()
                refused = self._refusal() if self.deposed else None
                if self._core.claim() is not None or self.deposed:
                    self._changed.notify_all()
            for each in kept:
                (each if refused is None else Kept(each.answer, None, refused)).send()

    def _refusal(self) -> Payload:
        error = PeerLostError(f"another server has shard {self.server.index} now")
        return Failure(encode(error)), []

    # Those who follow.

    def admit(self, line: Line) -> None:
        """One wants to follow: it gets a copy of the state, and every entry after it."""
        with self._order:
            try:
                if self._closed or self.deposed or self.ended.is_set():
                    raise ProtocolError("this server does not reign any more")
                self._core.follow(line.replica, self._core.last)
            except ProtocolError:
                line.close()
                return
            state, tensors, release = capture(self.service)
            copy = Copy(self._core.reign.epoch, self._core.last, state)
            line.put(copy, tensors, release)
            self._lines.append(line)
        line.start(self._hear, self._lose)

    def _hear(self, line: Line, message: Message) -> None:
        if isinstance(message, Differs):
            self._disagree(line, message)
            return
        if isinstance(message, Has):
            with self._order:
                self._core.has(line.replica, message.number)
            self._go_on()

    def _disagree(self, line: Line, message: Differs) -> None:
        self.fail(disagreement(self.server.index, message.theirs, message.mine))
        self._lose(line)

    def _lose(self, line: Line) -> None:
        """One that followed is gone, or silent."""
        line.close()
        with self._order:
            if line in self._lines:
                self._lines.remove(line)
                self._core.lose(line.replica)
        self._go_on()

    # The reign.

    def _keep_watch(self) -> None:
        """Say that this server lives, see who is silent, and ask for the reign that is wanted."""
        beat_s = min(self._dead_after_s / BEATS_A_LIFE, LONGEST_BEAT_S)
        while True:
            with self._changed:
                if not (self._core.claim() or self._closed or self.deposed):
                    self._changed.wait(beat_s)
                wanted, reign = self._core.claim(), self._core.reign
                lines = list(self._lines)
                if self._closed or self.deposed:
                    return
            now_s = time.monotonic()
            for line in lines:
                if now_s - line.heard_s > max(self._dead_after_s, line.patience_s):
                    self._lose(line)
                else:
                    line.put(Beat())
            if wanted is not None:
                self._claim(reign, wanted)

    def _claim(self, reign: Reign, wanted: Reign) -> None:
        try:
            held = self._authority.change(reign, wanted)
        except PeerLostError as error:
            with self._order:
                self.lost_authority, self._closed = error, True
                self.service.fail(error)
            return
        with self._changed:
            self._core.ruled(held)
            self._changed.notify_all()
        self._go_on()
        if self.deposed:
            self.server.ended.set()
