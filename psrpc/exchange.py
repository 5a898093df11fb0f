"""One step's traffic: gradients to every shard, weights back, and who waits for what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, cast

import torch

from psrpc.core.progress import Progress
from psrpc.errors import FencedError, PeerLostError, PsrpcError
from psrpc.follow import Follower
from psrpc.messages import Override, Peek, Pull, Push, Reply, Request, UpdateKey
from psrpc.planes.base import Link, Pending, QuickLink
from psrpc.store.binding import raise_nonfinite
from psrpc.ticket import OVER, Ticket, Unsent, each_of
from psrpc.usual import LATEST, NO_LOSS, Usual


class _Step(NamedTuple):
    """What a push says to every shard; see `Push`."""

    key: UpdateKey
    read: int | None
    samples: int
    pull: bool
    overrides: tuple[Override, ...]
    loss: float | None


@dataclass
class _Sent:
    """What is under way: a request for each shard, and how it is sent.

    `gradients` are the flat ones that go along, if there are some, and `absent` the pieces of each
    shard that have none.
    """

    request: Callable[[int], Request]
    land: bool
    at_once: bool
    gradients: list[list[torch.Tensor]] | None = None
    absent: list[tuple[int, ...]] = field(default_factory=list)


class Exchange:
    """Sends a worker's steps to all shards. One push is under way at a time."""

    def __init__(self, follower: Follower, progress: Progress, ahead: int = 0) -> None:
        self._follower = follower
        self._links = follower.links
        self._binding = follower.binding
        self._progress = progress
        self._ahead = ahead
        self._open: Ticket | None = None
        self._read_view = -1
        self.read_clock: int | None = None
        self._skipped = 0
        self._late = self._late_samples = 0

    @property
    def stale(self) -> bool:
        """Whether the worker has begun to step again since it last read weights in order."""
        return self._read_view < self._progress.started_in

    def counts(self) -> tuple[int, int, int]:
        """The steps that were skipped as not finite, those dropped as late, and their samples."""
        return self._skipped, self._late, self._late_samples

    @property
    def empty(self) -> bool:
        """Whether no parameter has a gradient now."""
        return self._binding.empty()

    def step(self, *, leased: bool, samples: int, loss: float | None) -> Ticket | None:
        """As `push` with weights at once, where nothing is rare, by the one server's short way.

        What is pushed is the lease's batch, or else (not `leased`) made from other data.

        Returns None, and has sent nothing, where there is no such way, or something is rare. All
        that is said with a push is here, so that a step of a small model touches little code: what
        it touches, gradients have pushed out of the caches.
        """
        links, progress, read = self._links, self._progress, self.read_clock
        link = links[0]
        quick = getattr(link, "quick", None)
        if quick is None or len(links) > 1 or progress.folded:
            return None
        if self._open is not None:
            self.settle()
        if progress.has_news_for(0) or not self._binding.ready():
            return None
        push = Usual(
            progress.worker,
            progress.clock,
            self._ahead,
            *progress.usual_key(leased=leased),
            samples,
            LATEST if read is None else read,
            NO_LOSS if loss is None else loss,
            True,
            False,
            self._follower.layout,
        )
        try:
            answer: Pending | None = quick(push)
        except PeerLostError as error:
            answer = Unsent(error)
        except BaseException:
            # An interrupt: if the push was sent, its answer is still to be taken.
            owed = cast(QuickLink, link).owed()
            if owed is not None:
                self._await_answer(owed, push)
            raise
        if answer is None:
            progress.went_on(leased=leased)
            self._binding.scatter()
            self.read_clock = progress.clock
            return OVER
        return self._await_answer(answer, push)

    def _await_answer(self, answer: Pending, push: Usual) -> Ticket:
        """Go on with a push that was sent by the short way as with any other."""
        told = push.push()
        step = _Step(told.key, told.read, told.samples, pull=True, overrides=(), loss=told.loss)
        return self._await([answer], self._sent(step, True, None, [()]), step)

    def push(
        self,
        key: UpdateKey,
        *,
        read: int | None,
        samples: int,
        pull: bool,
        overrides: tuple[Override, ...],
        loss: float | None,
        skip_nonfinite: bool,
        at_once: bool,
    ) -> Ticket:
        """Gather the gradients and send them to every shard; see `Link` for `at_once`.

        `read` is what `read_clock`, the clock of the model's weights, was when the gradients
        were made. If the answer is not taken at once, the gradients are handed over: the model's
        begin from zero.
        """
        self.settle()
        step = _Step(key, read, samples, pull, overrides, loss)
        absent = self._binding.gather()
        bad = self._binding.nonfinite()
        if bad is not None and not skip_nonfinite:
            raise_nonfinite(bad, self._progress.clock)
        self._skipped += bad is not None
        sent = self._sent(step, at_once, bad, absent)
        pending = self._send(sent)
        if not at_once:
            self._binding.turn()
        return self._await(pending, sent, step)

    def _sent(
        self, step: _Step, at_once: bool, bad: str | None, absent: list[tuple[int, ...]]
    ) -> _Sent:
        """What goes to all shards for a step; without gradients if some of them are `bad`."""

        def request(server: int) -> Push:
            return self._push_of(step, server, sent.absent[server], void=bad is not None)

        gradients = None if bad is not None else self._binding.in_use()
        sent = _Sent(request, step.pull, at_once, gradients, absent)
        return sent

    def _await(self, pending: Sequence[Pending], sent: _Sent, step: _Step) -> Ticket:
        return self._keep(pending, partial(self._pushed, step), sent)

    def _push_of(self, step: _Step, server: int, absent: tuple[int, ...], *, void: bool) -> Push:
        return Push(
            self._progress.worker,
            self._progress.clock,
            step.key,
            step.samples,
            pull=step.pull,
            absent=absent,
            void=void,
            also=self._progress.folded,
            overrides=step.overrides,
            loss=step.loss if server == 0 else None,
            view=self._progress.news_for(server),
            ahead=self._ahead,
            read=step.read,
            layout=self._follower.layout,
        )

    def _pushed(self, step: _Step, replies: list[Reply]) -> None:
        """All shards have answered a push."""
        late = self._progress.answered(step.key, replies)
        self._late += late
        self._late_samples += step.samples if late else 0
        if step.pull:
            self._landed()
        while self._progress.apart:  # no push may come before all shards are at its round
            self._progress.pulled(self._follower.through(self._ask_for_clocks))

    def pull(self, *, at_once: bool) -> Ticket:
        """Ask every shard for the weights of the next step; see `Link` for `at_once`.

        Nothing else is under way then; with overlap this says `ahead` all the same, for the step
        after the next begins without asking again, from these weights.
        """
        self.settle()
        self._read_view = self._progress.started_in

        def finish(replies: list[Reply]) -> None:
            self._progress.pulled(replies)
            self._landed()

        sent = _Sent(self._pull_of, land=True, at_once=at_once)
        return self._keep(self._send(sent), finish, sent)

    def _pull_of(self, server: int) -> Pull:
        progress = self._progress
        news, layout = progress.news_for(server), self._follower.layout
        return Pull(progress.worker, progress.clock, news, self._ahead, layout)

    def _ask_for_clocks(self) -> list[Reply]:
        asked = [link.call(self._pull_of(server)) for server, link in enumerate(self._links)]
        return [each.wait()[0] for each in asked]

    def _ask_for_weights(self) -> list[Reply]:
        pending = self._send(_Sent(self._pull_of, land=True, at_once=True))
        each_of(pending, lambda each: each.arrive())
        return [each.wait()[0] for each in pending]

    def _send(self, sent: _Sent) -> list[Pending]:
        return [self._send_to(link, server, sent) for server, link in enumerate(self._links)]

    def _send_to(self, link: Link, server: int, sent: _Sent) -> Pending:
        send, request = sent.gradients is not None, sent.request(server)
        try:
            return link.exchange(request, send=send, land=sent.land, at_once=sent.at_once)
        except PeerLostError as error:
            return Unsent(error)  # perhaps nobody needs that server any more

    def _send_again(self, sent: _Sent, error: PsrpcError) -> list[Pending]:
        """Follow the servers, and ask them what was under way; raises `error` if they are gone."""
        if isinstance(error, PeerLostError) and not self._follower.outdated():
            raise error
        absent = self._binding.parameters_of(sent.absent) if sent.absent else frozenset()
        self._follower.follow(sent.gradients)
        sent.absent = self._binding.pieces_of(absent)
        with self._binding.sending(0):
            if sent.gradients is not None:
                sent.gradients = self._binding.in_use()
            return self._send(sent)

    def peek(self, request: Callable[[int], Peek]) -> None:
        """Take the weights as they are now, out of any order; `request` is of a layout."""
        self.settle()
        self._follower.through(lambda: self._peek(request(self._follower.layout)))
        self._binding.scatter()

    def _peek(self, request: Peek) -> None:
        pending = [link.exchange(request, send=False, land=True) for link in self._links]
        each_of(pending, lambda each: each.wait())

    def drop(self) -> None:
        """Forget the gradients that were made, and what was read: this worker begins anew.

        Waits for the answers to what is under way, so that later ones are not taken for them.
        """
        if self._open is not None:
            with suppress(FencedError):
                self._open.arrive()
        self._open = None
        self._read_view = -1
        self.read_clock = None
        self._binding.gather()
        self._binding.clear()

    def clear(self, *, pushed: bool = False) -> None:
        """Let the model's gradients begin from zero; see `Gradients.clear`."""
        self._binding.gradients.clear(pushed=pushed)

    def release(self) -> None:
        """Let go of the model, which keeps its weights."""
        self.settle()
        self._binding.release()

    def settle(self) -> None:
        """Finish what is under way: the buffers belong to one exchange at a time."""
        if self._open is not None:
            self._open.settle()
            self._open = None

    def _landed(self) -> None:
        """Weights are here. They must be of one round: one shard may have begun the next."""
        while self._progress.apart:
            self._progress.pulled(self._follower.through(self._ask_for_weights))
        self._binding.scatter()
        self.read_clock = self._progress.clock

    def _keep(
        self, pending: Sequence[Pending], finish: Callable[[list[Reply]], None], sent: _Sent
    ) -> Ticket:
        self._open = Ticket(pending, finish, lambda error: self._send_again(sent, error))
        return self._open
