"""Watches a simulated job and knows, without asking the core, what it may do.

It sees what every server receives and decides. Of the core it reads only the
counters and the floor, to compare them with its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from psrpc.core.decisions import Answer, Decision, Token
from psrpc.core.shard import ShardCore
from psrpc.messages import Acquire, Granted, Idle, Lease, Leave, Request, StreamKind, UpdateKey
from psrpc.testing.calls import CheckError
from psrpc.testing.schedule import Manner, Schedule
from psrpc.testing.shard_witness import ShardWitness


@dataclass
class _Handed:
    """A lease that was handed out: to whom, and whether it is done."""

    lease: Lease
    worker: int
    done: bool = False


@dataclass
class _Epoch:
    leases: dict[int, _Handed] = field(default_factory=dict)
    told_exhausted: set[int] = field(default_factory=set)
    given_up: list[Lease] = field(default_factory=list)
    unpushed: set[int] = field(default_factory=set)


class Witness:
    """The checks of one simulated job."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.shards = [ShardWitness(s, schedule) for s in range(schedule.servers)]
        self._epochs: dict[int, _Epoch] = {}
        self._words: dict[Token, Request] = {}
        self._said: set[tuple[int, int]] = set()
        self._left: set[int] = set()

    def received(self, server: int, token: Token, request: Request) -> None:
        """`server` has received a request."""
        if isinstance(request, Acquire | Idle | Leave):
            self._words[token] = request
            if (request.worker, request.serial) not in self._said:
                self._said.add((request.worker, request.serial))
                self._note_word(request)
        self.shards[server].received(token, request)

    def decided(
        self, server: int, token: Token, decisions: list[Decision], core: ShardCore
    ) -> None:
        """`server` has decided about what it received last."""
        self.shards[server].decided(token, decisions, core)
        for decision in decisions:
            if isinstance(decision, Answer) and isinstance(decision.reply, Granted):
                self._note_grant(self._words[decision.token], decision.reply)

    def job_ended(self, cores: list[ShardCore], unpushed: Iterable[UpdateKey]) -> None:
        """Everybody has left and nothing is on its way any more.

        `unpushed` are batches whose gradients no worker has pushed before it left.
        """
        for key in unpushed:
            self._epochs[key.stream.major].unpushed.update(self._samples_of(key))
        for shard, core in zip(self.shards, cores, strict=True):
            shard.ended(core)
            if self.schedule.own_steps:
                self._check_own_steps(shard)
            else:
                self._check_samples(shard)
            if self._abrupt():
                continue  # its last push may have reached one shard and not another
            if shard.applied != self.shards[0].applied:
                raise CheckError(f"shards 0 and {shard.index} applied different updates")
            if shard.rounds != self.shards[0].rounds:
                raise CheckError(f"shards 0 and {shard.index} had different rounds")

    # Leases.

    def _note_word(self, word: Acquire | Idle | Leave) -> None:
        epoch = self._epochs.setdefault(word.epoch, _Epoch())
        for index in word.done:
            epoch.leases[index].done = True
        if isinstance(word, Leave):
            self._left.add(word.worker)
            for epoch in self._epochs.values():
                self._note_given_back(epoch, word.worker)

    def _note_given_back(self, epoch: _Epoch, worker: int) -> None:
        """What a leaver gives back is done by others, if there is one still in that epoch."""
        others = set(range(self.schedule.workers)) - self._left - epoch.told_exhausted
        for handed in epoch.leases.values():
            if handed.worker == worker and not handed.done:
                handed.worker = -1
                if not others:
                    epoch.given_up.append(handed.lease)

    def _note_grant(self, word: Request, reply: Granted) -> None:
        if not isinstance(word, Acquire):
            return
        epoch = self._epochs.setdefault(word.epoch, _Epoch())
        if reply.exhausted:
            epoch.told_exhausted.add(word.worker)
        lease = reply.lease
        if lease is None:
            return
        handed = epoch.leases.setdefault(lease.index, _Handed(lease, word.worker))
        if handed.worker not in (word.worker, -1) or handed.done:
            raise CheckError(f"{lease} went to worker {handed.worker} and to {word.worker}")
        handed.worker = word.worker

    def _samples_of(self, key: UpdateKey) -> range:
        lease = self._epochs[key.stream.major].leases[key.stream.minor].lease
        return range(*lease.batch(key.sequence))

    # At the end.

    def _abrupt(self) -> bool:
        departure = self.schedule.departure
        return departure is not None and departure.manner is Manner.ABRUPT

    def _check_samples(self, shard: ShardWitness) -> None:
        times = {epoch: [0] * self.schedule.samples for epoch in range(self.schedule.epochs)}
        for key in shard.applied:
            if key.stream.kind is not StreamKind.LEASE:
                raise CheckError(f"{key} was applied in a job of leases")
            for sample in self._samples_of(key):
                times[key.stream.major][sample] += 1
        for number, counts in times.items():
            excused = self._excused(number)
            wrong = [
                (sample, count)
                for sample, count in enumerate(counts)
                if count != 1 and (count or sample not in excused)
            ]
            if wrong:
                raise CheckError(
                    f"shard {shard.index}, epoch {number}: (sample, times applied) {wrong[:5]}"
                )

    def _excused(self, number: int) -> set[int]:
        """The samples that nobody was left to do."""
        if self.schedule.departure is not None and self.schedule.workers == 1:
            return set(range(self.schedule.samples))
        epoch = self._epochs.get(number, _Epoch())
        given_up = (range(lease.start, lease.stop) for lease in epoch.given_up)
        return epoch.unpushed.union(*given_up)

    def _check_own_steps(self, shard: ShardWitness) -> None:
        found = {(key.stream.major, key.sequence) for key in shard.applied}
        wanted = {
            (worker, step)
            for worker, steps in enumerate(self.schedule.own_steps)
            for step in range(steps)
        }
        if found != wanted:
            raise CheckError(
                f"shard {shard.index}: updates {sorted(found ^ wanted)} are missing or too many"
            )
