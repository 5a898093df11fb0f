"""One step's traffic: gradients to every shard, weights back, and who waits for what."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from psrpc.core.progress import Progress
from psrpc.errors import FencedError
from psrpc.messages import Override, Peek, Pull, Push, Reply, UpdateKey
from psrpc.planes.base import Link, Pending
from psrpc.store.binding import Binding, raise_nonfinite


class Ticket:
    """A push or a pull under way. `result` finishes it; used from the training thread."""

    def __init__(self, pending: Sequence[Pending], finish: Callable[[list[Reply]], None]) -> None:
        self._pending = list(pending)
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
        fenced: FencedError | None = None
        try:
            for pending in self._pending:
                left_s = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                try:
                    pending.arrive(left_s)
                except FencedError as error:
                    fenced = error  # the others will say so too; nothing shall be under way then
            if fenced is not None:
                raise fenced
        except TimeoutError:
            raise
        except Exception as error:
            self._error = error
            raise


class Exchange:
    """Sends a worker's steps to all shards. One push is under way at a time."""

    def __init__(
        self, links: Sequence[Link], binding: Binding, progress: Progress, ahead: int = 0
    ) -> None:
        self._links = links
        self._binding = binding
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
        pending = []
        for server, link in enumerate(self._links):
            request = Push(
                self._progress.worker,
                self._progress.clock,
                key,
                samples,
                pull=pull,
                absent=absent[server],
                void=bad is not None,
                also=self._progress.folded,
                overrides=overrides,
                loss=loss if server == 0 else None,
                view=self._progress.news_for(server),
                ahead=self._ahead,
                read=read,
            )
            pending.append(link.exchange(request, send=bad is None, land=pull, at_once=at_once))
        if not at_once:
            self._binding.turn()

        def finish(replies: list[Reply]) -> None:
            late = self._progress.answered(key, replies)
            self._late += late
            self._late_samples += samples if late else 0
            if pull:
                self._landed()

        return self._keep(pending, finish)

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

        return self._keep(self._ask_for_weights(at_once), finish)

    def _ask_for_weights(self, at_once: bool) -> list[Pending]:
        progress = self._progress
        return [
            link.exchange(
                Pull(progress.worker, progress.clock, progress.news_for(server), self._ahead),
                send=False,
                land=True,
                at_once=at_once,
            )
            for server, link in enumerate(self._links)
        ]

    def peek(self, request: Peek) -> None:
        """Take the weights as they are now, out of any order."""
        self.settle()
        for pending in [link.exchange(request, send=False, land=True) for link in self._links]:
            pending.wait()
        self._binding.scatter()

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
            pending = self._ask_for_weights(at_once=True)
            for each in pending:
                each.arrive()
            self._progress.pulled([each.wait()[0] for each in pending])
        self._binding.scatter()
        self.read_clock = self._progress.clock

    def _keep(self, pending: Sequence[Pending], finish: Callable[[list[Reply]], None]) -> Ticket:
        self._open = Ticket(pending, finish)
        return self._open
