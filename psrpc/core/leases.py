"""Which samples go to whom: an epoch's samples are handed out in leases.

A worker that is fast asks more often; that is all the load balancing there is.
Leases get smaller towards an epoch's end (guided self-scheduling, Polychronopoulos
and Kuck, IEEE Trans. Computers 1987), so that workers finish it together.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from psrpc.core.ranges import Ranges
from psrpc.errors import UsageError
from psrpc.messages import Lease

MAX_BATCHES = 32


@dataclass
class _Epoch:
    samples: int
    batch_size: int
    position: int = 0
    leases: int = 0
    held: dict[int, tuple[int, Lease]] = field(default_factory=dict)
    returned: list[Lease] = field(default_factory=list)
    done: Ranges = field(default_factory=Ranges)
    samples_done: int = 0


class LeaseBook:
    """The leases of all epochs: free, held by a worker, or done."""

    def __init__(self) -> None:
        self._epochs: dict[int, _Epoch] = {}

    def acquire(
        self, worker: int, epoch: int, samples: int, batch_size: int, workers: int
    ) -> Lease | None:
        """Hand `worker` its next lease, or None when all samples are given out.

        Raises UsageError if the workers disagree on how many samples there are.
        """
        state = self._epochs.setdefault(epoch, _Epoch(samples, batch_size))
        if state.samples != samples:
            raise UsageError(
                f"worker {worker} counts {samples} samples in epoch {epoch}, others counted "
                f"{state.samples}: every worker must be given the same dataset"
            )
        lease = state.returned.pop() if state.returned else _cut(state, epoch, workers)
        if lease is not None:
            state.held[lease.index] = (worker, lease)
        return lease

    def finish(self, worker: int, epoch: int, indices: tuple[int, ...]) -> None:
        """Note leases as done. One that `worker` does not hold is passed over."""
        state = self._epochs.get(epoch)
        for index in indices:
            if state is None or state.held.get(index, (None,))[0] != worker:
                continue
            _, lease = state.held.pop(index)
            state.done.add(index)
            state.samples_done += lease.stop - lease.start

    def give_back(self, worker: int, steps_done: int) -> None:
        """Free what `worker` holds; of the lease it got first `steps_done` steps are done.

        A later one was only fetched ahead: nothing of it is done.
        """
        for state in self._epochs.values():
            mine = [lease for holder, lease in state.held.values() if holder == worker]
            for lease in mine:
                del state.held[lease.index]
                state.returned.append(replace(lease, first_step=max(lease.first_step, steps_done)))
                steps_done = 0

    def closed(self, epoch: int) -> bool:
        """Whether every sample of `epoch` is done."""
        state = self._epochs.get(epoch)
        return state is not None and state.samples_done == state.samples

    def totals(self) -> tuple[tuple[int, int], ...]:
        """For each epoch begun, its number and the samples of its finished leases."""
        return tuple((epoch, state.samples_done) for epoch, state in sorted(self._epochs.items()))


def _cut(state: _Epoch, epoch: int, workers: int) -> Lease | None:
    left = state.samples - state.position
    if left <= 0:
        return None
    batches = -(-left // state.batch_size)
    size = min(max(batches // (2 * max(workers, 1)), 1), MAX_BATCHES) * state.batch_size
    stop = min(state.position + size, state.samples)
    lease = Lease(epoch, state.leases, state.position, stop, state.batch_size)
    state.position = stop
    state.leases += 1
    return lease
