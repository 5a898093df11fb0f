"""Which view each worker knows of: shards tell it the newest with an answer, once."""

from __future__ import annotations

from psrpc.messages import Pull, Push, View


class Told:
    """A shard's newest view, and whom it was told to."""

    def __init__(self) -> None:
        self.view = View()
        self._told: dict[int, int] = {}

    def heard(self, request: Push | Pull) -> None:
        """A worker shows what it knows: the view that it brings, or else what it was told."""
        if request.view is None:
            self._told.setdefault(request.worker, self.view.epoch)
            return
        told = self._told.get(request.worker, 0)
        self._told[request.worker] = max(told, request.view.epoch)

    def knows(self, worker: int) -> bool:
        """Whether the worker has shown something, and there is no news for it."""
        return self._told.get(worker, -1) >= self.view.epoch

    def news_for(self, worker: int) -> View | None:
        """A view that the worker may not know; it counts as told from now on."""
        if self._told.get(worker, 0) >= self.view.epoch:
            return None
        self._told[worker] = self.view.epoch
        return self.view
