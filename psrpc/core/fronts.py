"""How far workers have come in their leases, so that a death costs no more than one push."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from psrpc.messages import Lease, LeaseId, Push, StreamKind, UpdateKey

_MANY = 1024

_Front = tuple[int, int, int]  # epoch, lease, worker


class Fronts:
    """What every worker has pushed of each lease, and last."""

    def __init__(self) -> None:
        self._fronts: dict[_Front, int] = {}
        self._latest: dict[int, tuple[UpdateKey, ...]] = {}

    def note(self, push: Push, closed: Callable[[int, int], bool]) -> None:
        """A push has come; `closed` tells of which leases all is applied."""
        self._latest[push.worker] = keys = (push.key, *push.also)
        for key in keys:
            if key.stream.kind is StreamKind.LEASE:
                front = (key.stream.major, key.stream.minor, push.worker)
                self._fronts[front] = max(self._fronts.get(front, 0), key.sequence + 1)
        if len(self._fronts) > _MANY:
            # Only the coordinator's shard is told what nobody will ask for again.
            self._fronts = {f: steps for f, steps in self._fronts.items() if not closed(*f[:2])}

    def steps_done(self, lease: Lease, worker: int, *, settled: bool) -> int:
        """How many of a lease's updates are on all shards, as far as this one knows.

        They are those before the lease was given to `worker`, and those that it has pushed
        since: a worker pushes again when all shards have answered. Only its latest push may be
        missing on some, unless it is `settled`. Of a batch that came too late it is not known
        whether it was pushed again.
        """
        steps = self._fronts.get((lease.epoch, lease.index, worker))
        if steps is None or lease.until:
            return lease.first_step
        stream = lease.key(0).stream
        latest = [k.sequence for k in self._latest.get(worker, ()) if k.stream == stream]
        return steps if settled else min(steps, *latest, lease.steps)

    def forget(self, worker: int, leases: Sequence[LeaseId]) -> None:
        """Nobody will ask again how far `worker` came in these leases."""
        for epoch, index, until in leases:
            if not until:
                self._fronts.pop((epoch, index, worker), None)
