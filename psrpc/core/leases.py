"""Which samples go to whom: an epoch's samples are handed out in leases.

A worker that is fast asks more often; that is all the load balancing there is.
Leases get smaller towards an epoch's end (guided self-scheduling, Polychronopoulos
and Kuck, IEEE Trans. Computers 1987), so that workers finish it together, and a
death costs little. What a worker leaves undone goes to the next one that asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from psrpc.core.ledger import Ledger
from psrpc.counts import EpochLeases
from psrpc.errors import UsageError
from psrpc.messages import Lease, LeaseId, UpdateKey

MAX_BATCHES = 32
POISON = 3  # workers that a lease may kill in a row

# How many of a lease's updates, from its first on, are in the weights of all shards.
StepsDone = Callable[[Lease], int]


@dataclass(frozen=True)
class _Held:
    worker: int
    lease: Lease
    asked_in: int  # the epoch that the worker was in
    turn: int  # numbers what is handed out, over all epochs


@dataclass
class _Epoch:
    samples: int
    batch_size: int
    stops: list[int] = field(default_factory=list)  # where each lease ends
    held: dict[LeaseId, _Held] = field(default_factory=dict)
    # Batches of which an update came too late, by lease: each is a part of its own since then.
    late: dict[int, set[int]] = field(default_factory=dict)
    given_up: list[tuple[int, int, int]] = field(default_factory=list)  # lease, first, past last
    returned: list[Lease] = field(default_factory=list)
    samples_done: int = 0
    samples_skipped: int = 0
    deaths: dict[int, tuple[int, int]] = field(default_factory=dict)  # how many, at which step
    broken_off: bool = False  # a worker went on to the next epoch before its end

    @property
    def position(self) -> int:
        return self.stops[-1] if self.stops else 0

    @property
    def closed(self) -> bool:
        return self.samples_done + self.samples_skipped == self.samples

    def samples_in(self, lease: Lease, end: int | None = None) -> int:
        """The samples of its batches (before `end`) that are no part of their own."""
        late = self.late.get(lease.index, ()) if not lease.until else ()
        steps = range(lease.first_step, lease.end if end is None else end)
        return sum(self.batch_samples(lease, step) for step in steps if step not in late)

    @staticmethod
    def batch_samples(lease: Lease, step: int) -> int:
        """The samples of one batch."""
        low, high = lease.batch(step)
        return high - low


class LeaseBook:
    """The leases of all epochs: free, held by a worker, or done.

    If it `goes_back`, workers may have come further than it has: of the epochs before theirs all
    that is not done comes first, and theirs is not over before that is.
    """

    def __init__(self) -> None:
        self.goes_back = False
        self._epochs: dict[int, _Epoch] = {}
        self._turns = 0
        # By process, of those that count as dead: epoch and number of a lease.
        self._died_of: dict[int, tuple[int, int]] = {}

    def acquire(
        self, worker: int, epoch: int, samples: int, batch_size: int, workers: int
    ) -> Lease | None:
        """Hand `worker` its next lease, or None when all samples are given out.

        What was given back comes first, that of earlier epochs before all (not of one that was
        broken off). Raises UsageError if the workers disagree on how many samples there are.
        """
        state = self._epochs.setdefault(epoch, _Epoch(samples, batch_size))
        if state.samples != samples:
            raise UsageError(
                f"worker {worker} counts {samples} samples in epoch {epoch}, others counted "
                f"{state.samples}: every worker must be given the same dataset"
            )
        source = self._with_returned(epoch)
        if source is not None:
            lease: Lease | None = source.returned.pop()
        else:
            lease = self._cut_earliest(epoch, samples, batch_size, workers)
        if lease is not None:
            self._turns += 1
            held = _Held(worker, lease, epoch, self._turns)
            self._epochs[lease.epoch].held[lease.id] = held
        return lease

    def available(self, epoch: int) -> bool:
        """Whether `acquire` would hand out a lease to a worker in `epoch`."""
        state = self._epochs.get(epoch)
        uncut = state is None or state.position < state.samples
        return uncut or self._with_returned(epoch) is not None

    def begun(self, epoch: int) -> bool:
        """Whether a lease of `epoch`, or of an earlier one that is not over, was handed out."""
        state = self._epochs.get(epoch)
        if self.goes_back and self._behind(epoch):
            return True
        return (state is not None and bool(state.stops)) or self._with_returned(epoch) is not None

    def closed(self, epoch: int) -> bool:
        """Whether every sample of `epoch` is done."""
        state = self._epochs.get(epoch)
        return state is not None and state.closed and not (self.goes_back and self._behind(epoch))

    @property
    def unfinished(self) -> list[int]:
        """The epochs that were begun and are not over, but for those that were broken off."""
        epochs = sorted(self._epochs.items())
        return [number for number, state in epochs if not (state.closed or state.broken_off)]

    def lacking(self, epochs: int) -> list[int]:
        """If it goes back: what is unfinished, and what it lacks of the first `epochs` epochs."""
        if not self.goes_back:
            return []
        unknown = [epoch for epoch in range(epochs) if epoch not in self._epochs]
        return sorted({*self.unfinished, *unknown})

    def _behind(self, epoch: int) -> bool:
        """Whether an earlier epoch is not over."""
        return any(number < epoch for number in self.unfinished)

    def _cut_earliest(
        self, epoch: int, samples: int, batch_size: int, workers: int
    ) -> Lease | None:
        """The next new lease: of `epoch`, or of one before it that the book has not come to."""
        for number in range(epoch if self.goes_back else 0):
            state = self._epochs.setdefault(number, _Epoch(samples, batch_size))
            lease = None if state.broken_off else _cut(state, number, workers)
            if lease is not None:
                return lease
        return _cut(self._epochs[epoch], epoch, workers)

    def finish(self, worker: int, leases: Sequence[LeaseId]) -> None:
        """Note leases as done. One that `worker` does not hold is passed over."""
        for lease in leases:
            state = self._epochs.get(lease[0])
            held = state.held.get(lease) if state is not None else None
            if state is None or held is None or held.worker != worker:
                continue
            del state.held[lease]
            _finish(state, held.lease)

    def take_back(self, worker: int, key: UpdateKey) -> None:
        """An update that `worker` made of a lease's batch came too late, and is dropped.

        The batch becomes a part of its own, which is handed out again.
        """
        epoch, index, step = key.stream.major, key.stream.minor, key.sequence
        state = self._epochs.get(epoch)
        if state is None:
            return
        single = state.held.get((epoch, index, step + 1))
        if single is not None and single.worker == worker:
            del state.held[single.lease.id]
            state.returned.append(single.lease)
            return
        held = state.held.get((epoch, index, 0))
        late = state.late.setdefault(index, set())
        if held is not None and held.worker == worker and step not in late:
            late.add(step)
            state.returned.append(replace(held.lease, first_step=step, again=True, until=step + 1))

    def give_back(
        self, worker: int, steps_done: StepsDone, *, before: int | None = None
    ) -> list[Lease]:
        """Free what `worker` holds, or only what it asked for in an epoch below `before`.

        The next holder goes on after `steps_done`. Returns the leases, the one that was worked
        on first.
        """
        freed = []
        everywhere = [h for state in self._epochs.values() for h in state.held.values()]
        for held in sorted(everywhere, key=lambda h: h.turn):
            if held.worker != worker or (before is not None and held.asked_in >= before):
                continue
            lease, there = held.lease, steps_done(held.lease)
            state = self._epochs[lease.epoch]
            del state.held[lease.id]
            first = max(lease.first_step, there)
            while not lease.until and first in state.late.get(lease.index, ()):
                first += 1
            if first >= lease.end:
                _finish(state, lease)
                continue
            state.samples_done += state.samples_in(lease, first)
            state.broken_off |= before is not None
            freed.append(replace(lease, first_step=first, again=True))
            state.returned.append(freed[-1])
        return freed

    def died_of(self, lease: Lease, process: int) -> int:
        """Note that `process` worked on `lease` when it died; returns how many have now.

        Those count that died one after another at the same step, or the one after it.
        """
        self._died_of[process] = (lease.epoch, lease.index)
        deaths = self._epochs[lease.epoch].deaths
        times, step = deaths.get(lease.index, (0, lease.first_step))
        times = times + 1 if lease.first_step <= step + 1 else 1
        deaths[lease.index] = (times, lease.first_step)
        return times

    def lived(self, process: int) -> None:
        """A process that counted as dead comes back: it was not the samples."""
        epoch, index = self._died_of.pop(process, (-1, -1))
        deaths = self._epochs[epoch].deaths if epoch in self._epochs else {}
        if index in deaths:
            times, step = deaths[index]
            deaths[index] = (max(times - 1, 0), step)

    def skip(self, lease: Lease) -> None:
        """Give up what is left of a lease that was given back."""
        state = self._epochs[lease.epoch]
        state.returned.remove(lease)
        state.samples_skipped += state.samples_in(lease)
        state.given_up.append((lease.index, lease.first_step, lease.end))

    def skip_broken_off(self) -> None:
        """Give up what is left of leases that were given back in epochs that were broken off."""
        for state in self._epochs.values():
            for lease in tuple(state.returned) if state.broken_off else ():
                self.skip(lease)

    @property
    def skipped(self) -> tuple[Lease, ...]:
        """What was given up of leases: nobody has it again."""
        return skipped_in(self.export())

    @property
    def unsettled(self) -> tuple[Lease, ...]:
        """What some shards may have and others not: what was given back or given up."""
        states = self._epochs.values()
        held = (h.lease for state in states for h in state.held.values() if h.lease.again)
        return (*self.skipped, *held, *(lease for state in states for lease in state.returned))

    def export(self) -> tuple[EpochLeases, ...]:
        """All epochs that were begun."""
        return tuple(
            EpochLeases(
                epoch,
                state.samples,
                state.samples_done,
                state.samples_skipped,
                state.batch_size,
                tuple(state.stops),
                state.broken_off,
                tuple(state.given_up),
            )
            for epoch, state in sorted(self._epochs.items())
        )

    def record(self) -> list[dict[str, Any]]:
        """The same as a value for JSON; `epochs_of` takes it back."""
        return [asdict(epoch) for epoch in self.export()]

    def restore(self, epochs: Sequence[EpochLeases], ledgers: Sequence[Ledger]) -> None:
        """Go on, before the first lease, from what a checkpoint says of all epochs.

        What the ledger of any shard lacks is handed out again, in the epoch's order.
        """
        for record in epochs:
            state = _Epoch(record.samples, record.batch_size, list(record.stops))
            state.broken_off = record.broken_off
            self._epochs[record.epoch] = state
            start = 0
            for index, stop in enumerate(record.stops):
                lease = Lease(record.epoch, index, start, stop, record.batch_size)
                start, there = stop, min(ledger.steps_in(lease) for ledger in ledgers)
                state.samples_done += state.samples_in(lease, there)
                if there < lease.steps:
                    spans = [span[1:] for span in record.given_up if span[0] == index]
                    _return_rest(state, replace(lease, first_step=there, again=True), spans)
            state.returned.sort(key=lambda left: (left.index, left.first_step), reverse=True)

    def _with_returned(self, epoch: int) -> _Epoch | None:
        for number, state in sorted(self._epochs.items()):
            wanted = number == epoch or (number < epoch and not state.broken_off)
            if state.returned and wanted:
                return state
        return None


def epochs_of(record: Mapping[str, Any]) -> list[EpochLeases]:
    """The epochs in a checkpoint's record of the coordinator."""
    return [EpochLeases(**{**e, "stops": tuple(e["stops"])}) for e in record["epochs"]]


def skipped_in(epochs: Sequence[EpochLeases]) -> tuple[Lease, ...]:
    """What was given up of the leases of `epochs`."""
    return tuple(
        Lease(
            each.epoch,
            index,
            each.stops[index - 1] if index else 0,
            each.stops[index],
            each.batch_size,
            first_step,
            again=True,
            until=end,
        )
        for each in epochs
        for index, first_step, end in each.given_up
    )


def _finish(state: _Epoch, lease: Lease) -> None:
    state.deaths.pop(lease.index, None)
    state.samples_done += state.samples_in(lease)


def _return_rest(state: _Epoch, lease: Lease, given_up: Sequence[tuple[int, int]]) -> None:
    """After a checkpoint: what is left of a lease is to be had, but for what was given up."""
    skipped = {step for first, end in given_up for step in range(first, end)}
    left = [step for step in range(lease.first_step, lease.steps) if step not in skipped]
    for first, end in given_up:
        lost = range(max(first, lease.first_step), end)
        state.samples_skipped += sum(state.batch_samples(lease, step) for step in lost)
        state.given_up.append((lease.index, first, end))
    if left and left[-1] == lease.steps - 1:
        first = lease.steps - 1
        while first - 1 in left:
            first -= 1
        state.returned.append(replace(lease, first_step=first))
        left = [step for step in left if step < first]
    state.returned += [replace(lease, first_step=step, until=step + 1) for step in left]


def _cut(state: _Epoch, epoch: int, workers: int) -> Lease | None:
    left = state.samples - state.position
    if left <= 0:
        return None
    batches = -(-left // state.batch_size)
    size = min(max(batches // (2 * max(workers, 1)), 1), MAX_BATCHES) * state.batch_size
    start, stop = state.position, min(state.position + size, state.samples)
    state.stops.append(stop)
    return Lease(epoch, len(state.stops) - 1, start, stop, state.batch_size)
