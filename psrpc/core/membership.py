"""Who belongs to the job and who is stepping: the one view, kept by the coordinator."""

from __future__ import annotations

from collections.abc import Set

from psrpc.messages import View


class Membership:
    """Workers that are expected, live (registered, not left) and active (stepping)."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self._live: set[int] = set()
        self._left: set[int] = set()
        self._active: dict[int, int] = {}
        self._view = View()

    @property
    def view(self) -> View:
        """Who is stepping now, with the clocks that they start from."""
        return self._view

    @property
    def live(self) -> Set[int]:
        """The workers that came and have not left."""
        return self._live

    @property
    def to_come(self) -> int:
        """How many of the expected workers never came."""
        return self.expected - len(self._live) - len(self._left)

    @property
    def missing(self) -> list[int]:
        """The expected workers that never came."""
        return [w for w in range(self.expected) if w not in self._live and w not in self._left]

    @property
    def finished(self) -> bool:
        """Whether every expected worker has come and left."""
        return not self._live and not self.to_come

    def join(self, worker: int) -> None:
        """`worker` has come."""
        if worker not in self._left:
            self._live.add(worker)

    def is_active(self, worker: int) -> bool:
        """Whether `worker` is stepping."""
        return worker in self._active

    def activate(self, starts: dict[int, int]) -> None:
        """Let workers step, each from its clock; one new view for all of them."""
        self._active.update(starts)
        self._renew()

    def deactivate(self, worker: int) -> None:
        """`worker` stops stepping; a new view if it was."""
        if self._active.pop(worker, None) is not None:
            self._renew()

    def leave(self, worker: int) -> None:
        """`worker` has left for good."""
        self.deactivate(worker)
        self._live.discard(worker)
        self._left.add(worker)

    def _renew(self) -> None:
        self._view = View(self._view.epoch + 1, tuple(sorted(self._active.items())))
