"""Watches a simulated job and knows, without asking the core, what it may do.

It sees what every server receives and decides. Of the core it reads only the
counters and the floor, to compare them with its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from psrpc.core.decisions import Answer, Decision, Token
from psrpc.core.shard import ShardCore
from psrpc.messages import (
    Acquire,
    Granted,
    Idle,
    Lease,
    LeaseId,
    Leave,
    Reply,
    Request,
    StreamKind,
    UpdateKey,
    View,
)
from psrpc.testing.calls import CheckError
from psrpc.testing.schedule import Schedule
from psrpc.testing.shard_witness import ShardWitness


@dataclass
class _Handed:
    """A lease that was handed out: to whom, and whether it is done."""

    lease: Lease
    worker: int
    done: bool = False


@dataclass
class _Epoch:
    parts: dict[LeaseId, _Handed] = field(default_factory=dict)


class Witness:
    """The checks of one simulated job."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.shards = [ShardWitness(s, schedule) for s in range(schedule.servers)]
        self.present = list(range(schedule.servers))  # those that keep rows now
        self._epochs: dict[int, _Epoch] = {}
        self._words: dict[Token, Request] = {}
        self._said: set[tuple[int, int]] = set()
        self._granted: set[tuple[int, int]] = set()
        self._gone: set[int] = set()
        self._checkpoints: set[int] = set()
        self._gone_early: set[int] = set()  # with a push under way

    @property
    def _present(self) -> list[ShardWitness]:
        return [self.shards[server] for server in self.present]

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

    def convened(self, token: Token | None, decisions: list[Decision]) -> None:
        """The coordinator has decided; `token` is what it received last, if it was a word."""
        self.shards[0].convened(token, decisions)
        for decision in decisions:
            word = self._words.get(decision.token) if isinstance(decision, Answer) else None
            if word is not None and isinstance(decision, Answer):
                self._note_grant(word, decision.reply)

    def adopted(self, server: int, view: View, decisions: list[Decision], core: ShardCore) -> None:
        """The coordinator's view has come to `server`."""
        self.shards[server].adopted(view, decisions, core)

    def dropped(self, worker: int, key: UpdateKey) -> None:
        """Shard 0 has dropped an update: others may have its batch."""
        if key.stream.kind is StreamKind.LEASE:
            part = (key.stream.major, key.stream.minor, key.sequence + 1)
            handed = self._epochs[part[0]].parts.get(part)
            if handed is not None and handed.worker == worker:
                handed.worker = -1

    def halted(self, server: int, halted: bool) -> None:
        """A server takes no new steps, because a checkpoint is to be made, or does again."""
        self.shards[server].halted = halted

    def made(self, number: int) -> bool:
        """Whether all shards have made their images for a checkpoint, or (0) there is none."""
        return not number or all(number in shard.images for shard in self._present)

    def cut_begun(self, number: int) -> None:
        """A checkpoint is wanted; the one before is given up if it is not made."""
        if not self.made(number - 1):
            self._checkpoints.discard(number - 1)
        self._checkpoints.add(number)

    def lost(self, worker: int) -> None:
        """The coordinator takes `worker` for dead."""
        self._give_back(worker)
        self._gone_early.add(worker)

    def job_ended(self, cores: list[ShardCore]) -> None:
        """Everybody has left and nothing is on its way any more."""
        calm = self.schedule.departure is None and not self.schedule.mishaps
        for shard, core in zip(self._present, cores, strict=True):
            shard.ended(core)
            if self.schedule.own_steps and (self.schedule.mishaps or self.schedule.joins):
                self._check_streams(shard)
            elif self.schedule.own_steps:
                self._check_own_steps(shard)
            else:
                self._check_samples(shard)
            self._check_rounds(shard)
            self._check_images(shard)
            if calm and shard.applied != self.shards[0].applied:
                raise CheckError(f"shards 0 and {shard.index} applied different updates")

    def _check_rounds(self, shard: ShardWitness) -> None:
        """A round is of the same workers on all shards, but for those that went before its end."""
        first = self.shards[0].rounds
        for clock in first.keys() | shard.rounds.keys():
            ours, theirs = first.get(clock, frozenset()), shard.rounds.get(clock, frozenset())
            if (ours ^ theirs) - self._gone_early:
                raise CheckError(
                    f"round {clock} is of workers {sorted(ours)} on shard 0 and of "
                    f"{sorted(theirs)} on shard {shard.index}"
                )

    def _check_images(self, shard: ShardWitness) -> None:
        """A checkpoint has the same updates of all shards, but for who went amid a push."""
        if self._gone_early:
            return
        for number in self._checkpoints:
            image, other = self.shards[0].images.get(number), shard.images.get(number)
            if image is None or other is None:
                continue  # the job was over before
            if other.record["ledger"] != image.record["ledger"]:
                raise CheckError(f"checkpoint {number} differs on shards 0 and {shard.index}")

    # Leases.

    def _note_word(self, word: Acquire | Idle | Leave) -> None:
        if word.worker in self._gone:
            return
        for lease in word.done:
            handed = self._epochs[lease[0]].parts[lease]
            handed.done = handed.done or handed.worker == word.worker
        if isinstance(word, Leave):
            self._give_back(word.worker)
            if not word.settled:
                self._gone_early.add(word.worker)

    def _give_back(self, worker: int) -> None:
        self._gone.add(worker)
        for epoch in self._epochs.values():
            for handed in epoch.parts.values():
                if handed.worker == worker and not handed.done:
                    handed.worker = -1

    def _note_grant(self, word: Request, reply: Reply) -> None:
        if not isinstance(word, Acquire) or not isinstance(reply, Granted):
            return
        lease = reply.lease
        if lease is None or (word.worker, word.serial) in self._granted:
            return  # what a repeated word is answered may be of the past
        self._granted.add((word.worker, word.serial))
        epoch = self._epochs.setdefault(lease.epoch, _Epoch())
        handed = epoch.parts.setdefault(lease.id, _Handed(lease, word.worker))
        if handed.worker not in (word.worker, -1) or handed.done:
            raise CheckError(f"{lease} went to worker {handed.worker} and to {word.worker}")
        handed.worker = word.worker

    def _samples_of(self, key: UpdateKey) -> range:
        lease = self._epochs[key.stream.major].parts[key.stream.major, key.stream.minor, 0].lease
        return range(*lease.batch(key.sequence))

    # At the end.

    def _check_samples(self, shard: ShardWitness) -> None:
        times = {epoch: [0] * self.schedule.samples for epoch in range(self.schedule.epochs)}
        for key in shard.applied:
            if key.stream.kind is not StreamKind.LEASE:
                raise CheckError(f"{key} was applied in a job of leases")
            for sample in self._samples_of(key):
                times[key.stream.major][sample] += 1
        for number, counts in times.items():
            wrong = [
                (sample, count)
                for sample, count in enumerate(counts)
                if count > 1 or (count == 0 and not self._nobody_left)
            ]
            if wrong:
                raise CheckError(
                    f"shard {shard.index}, epoch {number}: (sample, times applied) {wrong[:5]}"
                )

    @property
    def _nobody_left(self) -> bool:
        """Whether nobody was left to do the samples that its one worker left."""
        return self.schedule.departure is not None and self.schedule.workers == 1

    def _check_streams(self, shard: ShardWitness) -> None:
        """Own steps are on all shards, but for those under way when their worker went."""
        for key in shard.applied ^ self._present[0].applied:
            if key.stream.major not in self._gone_early:
                raise CheckError(f"{key} is on one of shards 0 and {shard.index} alone")

    def _check_own_steps(self, shard: ShardWitness) -> None:
        found = {(key.stream.major, key.sequence) for key in shard.applied}
        wanted = {
            (worker, step)
            for worker, steps in enumerate(self.schedule.own_steps)
            for step in range(steps - shard.late[worker])
        }
        if found != wanted:
            raise CheckError(
                f"shard {shard.index}: updates {sorted(found ^ wanted)} are missing or too many"
            )
