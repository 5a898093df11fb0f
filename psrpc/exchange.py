"""One step's traffic: gradients to every shard, weights back, and who waits for what."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field

import torch

from psrpc.core.progress import Progress
from psrpc.errors import FencedError, MovedError, PeerLostError, PsrpcError
from psrpc.follow import Follower
from psrpc.messages import Override, Peek, Pull, Push, Reply, Request, UpdateKey
from psrpc.planes.base import Link, Payload, Pending
from psrpc.store.binding import raise_nonfinite

_LOOK_S = 1.0  # how often a worker that waits for one shard looks at the others


class Ticket:
    """A push or a pull under way. `result` finishes it; used from the training thread."""

    def __init__(
        self,
        pending: Sequence[Pending],
        finish: Callable[[list[Reply]], None],
        again: Callable[[PsrpcError], list[Pending]] | None = None,
    ) -> None:
        """`again` asks once more when servers have moved, or raises what it is given."""
        self._pending = list(pending)
        self._again = again
        self._finish: Callable[[list[Reply]], None] | None = finish
        self._error: Exception | None = None
        self.waiting: Callable[[], AbstractContextManager[None]] = nullcontext
        self.fenced: Callable[[], object] | None = None  # called by `result` in place of raising

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._error is not None or all(pending.done() for pending in self._pending)

    def result(self, timeout_s: float | None = None) -> None:
        """Block until all shards have answered; weights are then in the model.

        Raises TimeoutError if that takes longer than `timeout_s` seconds: the model is as it
        was, and `result` may be called again. Raises what a server answered with, and
        PeerLostError if one is gone: then the model is as it was, and every later call raises
        the same. If this worker was taken for dead it has come back when this returns: a push did
        not count, weights are fresh.
        """
        try:
            self.settle(timeout_s)
        except FencedError:
            if self.fenced is None:
                raise
            self._finish = self._error = None
            self.fenced()

    def settle(self, timeout_s: float | None = None) -> None:
        """The same, but FencedError is raised like all others."""
        if self._error is not None:
            raise self._error
        if self._finish is None:
            return
        with self.waiting():
            self._arrive(timeout_s)
            self._finish([pending.wait()[0] for pending in self._pending])
        self._finish = None

    def arrive(self) -> None:
        """Block until all shards have answered; nothing lands. Raises what they answered with."""
        if self._finish is not None and self._error is None:
            self._arrive(None)

    def _arrive(self, timeout_s: float | None) -> None:
        """Wait for all answers before the weights of any of them land."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while True:
                try:
                    self._arrive_all(deadline)
                    return
                except (MovedError, PeerLostError) as error:
                    if self._again is None:
                        raise
                    self._pending = self._again(error)
        except TimeoutError:
            raise
        except Exception as error:
            self._error = error
            raise

    def _arrive_all(self, deadline: float | None) -> None:
        _each(self._pending, lambda pending: self._arrive_one(pending, deadline))

    def _arrive_one(self, pending: Pending, deadline: float | None) -> None:
        """Wait for one shard's answer, which may wait for another one: that may be lost."""
        others = [each for each in self._pending if each is not pending]
        while True:
            left_s = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            slice_s = _LOOK_S if left_s is None else min(left_s, _LOOK_S)
            try:
                pending.arrive(slice_s if others else left_s)
                return
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
            for each in others:
                if each.done():
                    with suppress(FencedError):
                        each.arrive()


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


class Unsent:
    """What could not even be sent: a `Pending` whose server is lost."""

    def __init__(self, error: PeerLostError) -> None:
        self._error = error

    def done(self) -> bool:
        """See `Pending`."""
        return True

    def arrive(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        raise self._error

    wait = arrive


def _each(pending: Sequence[Pending], arrive: Callable[[Pending], object]) -> None:
    """Let all answers arrive. Raises FencedError if one shard says so, when all have answered.

    The others say so too, and where answers come in turn, one that nobody took would be taken for
    the next one. After other errors there are other links, or none.
    """
    fenced: FencedError | None = None
    for each in pending:
        try:
            arrive(each)
        except FencedError as error:
            fenced = error
    if fenced is not None:
        raise fenced


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
        absent = self._binding.gather()
        bad = self._binding.nonfinite()
        if bad is not None and not skip_nonfinite:
            raise_nonfinite(bad, self._progress.clock)
        self._skipped += bad is not None

        def request(server: int) -> Push:
            return Push(
                self._progress.worker,
                self._progress.clock,
                key,
                samples,
                pull=pull,
                absent=sent.absent[server],
                void=bad is not None,
                also=self._progress.folded,
                overrides=overrides,
                loss=loss if server == 0 else None,
                view=self._progress.news_for(server),
                ahead=self._ahead,
                read=read,
                layout=self._follower.layout,
            )

        gradients = self._binding.in_use() if bad is None else None
        sent = _Sent(request, pull, at_once, gradients, absent)
        pending = self._send(sent)
        if not at_once:
            self._binding.turn()

        def finish(replies: list[Reply]) -> None:
            late = self._progress.answered(key, replies)
            self._late += late
            self._late_samples += samples if late else 0
            if pull:
                self._landed()
            while self._progress.apart:  # no push may come before all shards are at its round
                self._progress.pulled(self._follower.through(self._ask_for_clocks))

        return self._keep(pending, finish, sent)

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
        _each(pending, lambda each: each.arrive())
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
        _each(pending, lambda each: each.wait())

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

    def clear(self) -> None:
        """Let the model's gradients begin from zero."""
        self._binding.clear()

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
