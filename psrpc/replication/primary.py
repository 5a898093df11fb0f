"""The service of a shard's primary: what it takes in goes to the backup, answers wait for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import torch

from psrpc.core.replication import Primary, Reign
from psrpc.errors import PeerLostError, ProtocolError, encode
from psrpc.messages import Done, Failure, Ping, Push, Request
from psrpc.planes import base
from psrpc.planes.base import Landing, Payload, is_hidden
from psrpc.replication.authority import Authority
from psrpc.replication.decrees import Decrees
from psrpc.replication.entries import (
    Beat,
    Check,
    Copy,
    Differs,
    Entry,
    Event,
    Has,
    Message,
    Round,
)
from psrpc.replication.intake import READS, Kept, disagreement, take_in
from psrpc.replication.lines import Line, beat_s_of
from psrpc.replication.state import Replicated, capture, digest, server_of
from psrpc.saying import say

CHECK_EVERY = 1000  # entries
_FIRST_PAIRED = 2  # the reign in which a shard first has a backup
_LOOK_AGAIN_S = 0.1


class PrimaryService(Decrees):
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
        self.service, self.me = service, me
        self.server = server_of(service)
        self.lost_authority: PeerLostError | None = None
        self._core: Primary[Kept] = Primary(me, reign, last)
        self._authority = authority
        self._dead_after_s = dead_after_s
        self._order = threading.Lock()  # entries are taken in one after another
        # Of what decides and of the lines; never held while an entry is taken in or sent.
        self._changed = threading.Condition()
        self._lines: list[Line] = []
        self._closed = False
        self._finished = False
        self._sends = False  # some thread sends answers, and will look for more
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

        Waits as long for the last answers to be sent. Not so if another server reigns, which one
        that stood still learns here at the latest.
        """
        deadline = time.monotonic() + timeout_s
        self._look_who_reigns()
        with self._changed:
            while self._owes and not self.deposed and time.monotonic() < deadline:
                self._changed.wait(_LOOK_AGAIN_S)
            lines = [] if self.deposed else list(self._lines)
        for line in lines:
            line.finish(max(deadline - time.monotonic(), 0.1))
        self.stop()
        if not self.lost_authority:
            # Nothing can be lost any more: whoever still asks is told how the job ended.
            self._finished = True
        self._go_on()
        with self._changed:
            while self._sends and time.monotonic() < deadline:
                self._changed.wait(_LOOK_AGAIN_S)

    def _look_who_reigns(self) -> None:
        # Its successor's questions end its own, as the job's end does.
        with suppress(PeerLostError):
            reign = self._authority.look()
            with self._changed:
                if reign is not None:
                    self._core.ruled(reign)
                    self._changed.notify_all()

    @property
    def _owes(self) -> bool:
        return self._core.keeps or self._sends

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

    # Rounds whose gradients are added up elsewhere; see `Ensemble`.

    def gather(self, pushes: Sequence[Push]) -> list[tuple[Push, bool]] | None:
        """See `ParameterServer`."""
        return self.server.gather(pushes)

    def wants(self, push: Push) -> bool:
        """See `ParameterServer`."""
        return not self.deposed and self.server.wants(push)

    def join(
        self, pushes: Sequence[Push], total: Sequence[torch.Tensor], answers: Sequence[base.Answer]
    ) -> bool:
        """See `ParameterServer`. The sum goes to the backup, as one entry with all pushes."""
        with self._order:
            if self.deposed:
                for answer in answers:
                    self._keep(answer, None, self._refusal())
            elif not self.server.makes_round(pushes):
                return False
            else:
                self._forward(Round(tuple(pushes)), total)
                later = [partial(self._keep, answer, None) for answer in answers]
                self.server.join(pushes, total, later)
                self._check_if_due()
        self._go_on()
        return True

    def repeat(self, push: Push, answer: base.Answer) -> bool:
        """See `ParameterServer`."""
        with self._order:
            if self.wants(push):
                return False
            self._take(push, (), answer)
        self._go_on()
        return True

    def _enter(
        self,
        event: Event,
        tensors: Sequence[torch.Tensor] = (),
        answer: base.Answer = lambda payload: None,
        land: Landing | None = None,
    ) -> None:
        with self._order:
            self._take(event, tensors, answer, land)
        self._go_on()

    def _take(
        self,
        event: Event,
        tensors: Sequence[torch.Tensor],
        answer: base.Answer,
        land: Landing | None = None,
    ) -> None:
        if self.deposed:
            self._keep(answer, None, self._refusal())
            return
        read = self._forward(event, tensors)
        # Weights that nobody sees before the answer may land in the gradients' place now.
        now, later = (land, None) if read and is_hidden(land) else (None, land)
        take_in(self.service, event, tensors, partial(self._keep, answer, later), now)
        self._check_if_due()

    def _check_if_due(self) -> None:
        due = self._lines and self._core.last % CHECK_EVERY == 0
        # One whose optimizer has raised may have done half a step, and says why itself.
        if due and self.server.failure is None:
            self._forward(Check(digest(self.service)), ())

    def when_safe(self, act: Callable[[], object]) -> None:
        """Act when no failure of this server can undo what it has decided; never if it is deposed.

        To be called while it decides; what it answers then is sent before.
        """

        def answer(payload: Payload) -> None:
            if not isinstance(payload[0], Failure):
                act()

        self._keep(answer, None, (Done(), []))

    def _keep(self, answer: base.Answer, land: Landing | None, payload: Payload) -> None:
        with self._changed:
            self._core.keep(Kept(answer, land, payload))

    def _forward(self, event: Event, tensors: Sequence[torch.Tensor]) -> bool:
        """Send an entry to those that follow; returns whether its tensors have been read."""
        with self._changed:
            number, epoch = self._core.append(), self._core.reign.epoch
            # Whoever is waited for has read them before the answer; others take their time.
            lines = [(line, self._core.waits_for(line.replica)) for line in self._lines]
        beside = () if isinstance(event, READS) else tensors
        read = True
        for line, waited_for in lines:
            own = beside if waited_for else [tensor.clone() for tensor in beside]
            read = line.put(Entry(epoch, number, event), own) and read
        return read

    def _go_on(self) -> None:
        """Send the answers that may be sent, in their order, and see to the reign.

        One thread does that at a time; others leave it to that one.
        """
        while (kept := self._sendable()) is not None:
            try:
                for each in kept:
                    each.send()
            finally:
                with self._changed:
                    self._sends = False

    def _sendable(self) -> list[Kept] | None:
        """The answers that this thread is to send now; None: nothing."""
        with self._changed:
            if self._core.claim() is not None or self.deposed:
                self._changed.notify_all()
            if self._sends:
                return None
            end = self.deposed or self._finished
            kept = self._core.give_up() if end else self._core.release()
            if not kept:
                return None
            self._sends = True
        if not self.deposed:
            return kept
        return [Kept(each.answer, None, self._refusal()) for each in kept]

    def _refusal(self) -> Payload:
        error = PeerLostError(f"another server has shard {self.server.index} now")
        return Failure(encode(error)), []

    # Those who follow.

    def admit(self, line: Line) -> None:
        """One wants to follow: it gets a copy of the state, and every entry after it."""
        with self._order:
            try:
                with self._changed:
                    if self._over:
                        raise ProtocolError("this server does not reign any more")
                    self._core.follow(line.replica, self._core.last)
                    epoch, number = self._core.reign.epoch, self._core.last
            except ProtocolError:
                line.close()
                return
            state, tensors, release = capture(self.service)
            line.put(Copy(epoch, number, state), tensors, release)
            with self._changed:
                self._lines.append(line)
                too_late = self._closed
        line.start(self._hear, self._lose)
        if too_late:
            self._lose(line)

    @property
    def _over(self) -> bool:
        return self._closed or self.deposed or self.ended.is_set()

    def _hear(self, line: Line, message: Message) -> None:
        if isinstance(message, Differs):
            self._disagree(line, message)
            return
        if isinstance(message, Has):
            with self._changed:
                self._core.has(line.replica, message.number)
            self._go_on()

    def _disagree(self, line: Line, message: Differs) -> None:
        self.fail(disagreement(self.server.index, message.theirs, message.mine))
        self._lose(line)

    def _lose(self, line: Line) -> None:
        """One that followed is gone, or silent."""
        line.close()
        with self._changed:
            if line in self._lines:
                self._lines.remove(line)
                self._core.lose(line.replica)
        self._go_on()

    # The reign.

    def _keep_watch(self) -> None:
        """Say that this server lives, see who is silent, and ask for the reign that is wanted."""
        beat_s = beat_s_of(self._dead_after_s)
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
                with self._changed:
                    self.lost_authority, self._closed = error, True
                self.service.fail(error)
            return
        with self._changed:
            self._core.ruled(held)
            self._changed.notify_all()
        if held == wanted and held.backup is not None and held.epoch > _FIRST_PAIRED:
            say(f"shard {self.server.index} has a backup again")
        if held == wanted and held.backup is None and not self._over:
            say(f"shard {self.server.index} has no backup now")
        self._go_on()
        if self.deposed:
            self.server.ended.set()
