"""Checkpoints of a running job: when they are made, who writes what, how a job goes on from one.

A checkpoint cuts the job at one point of every worker's clock. Each server copies its shard
when it has come there (workers that are further on wait that long), writes the copy in a thread
of its own, and tells the coordinator, which completes the checkpoint when all parts are there.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from psrpc.checkpoints.folder import Checkpoints
from psrpc.checkpoints.outline import names_of, rest_of
from psrpc.checkpoints.parts import Part
from psrpc.checkpoints.reading import Checkpoint, open_checkpoint
from psrpc.checkpoints.writing import JobRecord, write_part
from psrpc.coordinator import Coordinator
from psrpc.core.coordinator import CoordinatorCore
from psrpc.core.leases import epochs_of, skipped_in
from psrpc.core.ledger import Ledger
from psrpc.errors import CheckpointError, PsrpcError
from psrpc.job import Checkpointing, Job
from psrpc.orders import Cut, PutPart
from psrpc.saying import say
from psrpc.server import ParameterServer
from psrpc.store.blueprint import Blueprint
from psrpc.store.image import ShardImage
from psrpc.store.shard import ShardStore
from psrpc.store.state import Option

_CUT_WITHIN_S = 60.0
_LOOK_AGAIN_S = 0.1
_TRIES = 5


class _AgainError(CheckpointError):
    """This checkpoint came to nothing by chance: it is to be made again at once."""


class Orders(Protocol):
    """Whoever takes the coordinator's orders about cuts, for checkpoints and new layouts."""

    def begin_cut(self, number: int, folder: str) -> None: ...
    def give_up_cut(self, number: int) -> None: ...
    def begin_layout(self, giver: str) -> None: ...
    def give_up_layout(self, why: str) -> None: ...


@dataclass(frozen=True)
class _Picture:
    cut: Cut
    image: ShardImage
    record: dict[str, Any]


class PartWriter:
    """A server's side: writes its shard's images away, in a thread of its own."""

    def __init__(
        self,
        server: ParameterServer,
        blueprint: Blueprint,
        deliver: Callable[[PutPart], None],
    ) -> None:
        self._server = server
        self._index = server.index
        self._blueprint = blueprint
        self._deliver = deliver
        # One that came after another server of its shard writes nothing of that one's last cut.
        self._missed = server.core.latest_cut
        self.options: Sequence[Option] = ()  # of the latest image
        self._pictures: queue.SimpleQueue[_Picture | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="psrpc-part-writer", daemon=True)
        server.pictured = lambda *picture: self._pictures.put(_Picture(*picture))

    @property
    def _store(self) -> ShardStore:
        return self._server.store

    def start(self) -> None:
        """Begin to wait for images."""
        self._thread.start()

    def close(self) -> None:
        """Stop, when what is there is written. Blocks."""
        self._pictures.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        self._store.reserve(self._store.image_bytes())
        if self._missed is not None:
            with suppress(PsrpcError):
                self._deliver(PutPart(self._index, self._missed, lost=True))
        while (picture := self._pictures.get()) is not None:
            try:
                part = self._write(picture)
                put = PutPart(self._index, picture.cut.number, part.to_json())
            except Exception as error:
                put = PutPart(self._index, picture.cut.number, error=str(error))
            finally:
                picture.image.release()
            try:
                self._deliver(put)
            except PsrpcError:
                return  # the coordinator is gone, and the job with it
            self._store.reserve(self._store.image_bytes())

    def _write(self, picture: _Picture) -> Part:
        folder, self.options = Path(picture.cut.folder), picture.image.options
        return write_part(
            folder,
            self._index,
            self._blueprint,
            self._store.layout,
            picture.image,
            facts=picture.record,
        )


class Checkpointer:
    """The coordinator's side: begins checkpoints and completes them, in a thread of its own.

    `orders` are taken by the coordinator, or by whoever replicates it.
    """

    def __init__(
        self,
        job: Job,
        plan: Checkpointing,
        coordinator: Coordinator,
        orders: Orders,
        blueprint: Blueprint,
        model: nn.Module,
        options: Callable[[], Sequence[Option]],
    ) -> None:
        self._job = job
        self._options = options
        self._plan = plan
        self._coordinator = coordinator
        self._orders = orders
        self._blueprint = blueprint
        self._model = model
        self.turn = threading.Lock()  # held while the job is cut
        self._checkpoints = Checkpoints(Path(plan.directory), plan.keep)
        self._puts: queue.SimpleQueue[PutPart] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._made_last = threading.Event()
        coordinator.part_came = self._puts.put
        coordinator.kept_last = self.kept_last
        self._making = False
        coordinator.saving = lambda: self._making

    def start(self) -> None:
        """Make the folder, and begin. Raises CheckpointError.

        What another coordinator has begun before this one, and not finished, is given up.
        """
        before = self._coordinator.server.core.latest_cut
        self._checkpoints.start(after=before or 0)
        if before is not None:
            self._orders.give_up_cut(before)
        self._begin()

    def _begin(self) -> None:
        thread = threading.Thread(target=self._run, name="psrpc-checkpointer", daemon=True)
        thread.start()
        self._thread = thread

    @property
    def begun(self) -> bool:
        """Whether checkpoints are made."""
        return self._thread is not None

    def kept_last(self) -> bool:
        """Have one more checkpoint made, at the job's end; returns whether that is over.

        From any thread; to be asked again until it is.
        """
        self._wanted.set()
        return self._made_last.is_set()

    def close(self) -> None:
        """Stop; a checkpoint under way is given up. Blocks."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            with suppress(CheckpointError):  # a folder that cannot be read any more
                self._checkpoints.clear()

    def make_last(self) -> None:
        """Make one more checkpoint, of a job that is about to end before its time. Blocks.

        Should it go on all the same, others are made as ever.
        """
        self.close()
        self._stop.clear()
        try:
            self.make()
        except CheckpointError as error:
            say(f"the last checkpoint failed: {error}")
        self._begin()

    def resume(self) -> Checkpoint | None:
        """The newest good checkpoint, or the one that the plan names; says what was passed over.

        Raises CheckpointError if there are some, and none is good.
        """
        if self._plan.resume == "never":
            return None
        if self._plan.resume != "auto":
            found = open_checkpoint(Path(self._plan.resume))
            found.check(self._blueprint)
            self._check_seed(found)
            return found
        self._checkpoints.start()
        fits = partial(facts_for, servers=self._job.servers)
        found_or_none, passed = self._checkpoints.newest(self._blueprint, fits=fits)
        for _, why in passed:
            say(f"passed over: {why}")
        if found_or_none is None and passed:
            raise CheckpointError(
                f"none of the checkpoints in {self._plan.directory} can be gone on from: move them "
                "away to start afresh"
            )
        if found_or_none is None:
            say(f"no checkpoint in {self._plan.directory} yet: training begins anew")
            return None
        self._check_seed(found_or_none)
        say(f"going on from {found_or_none.folder}")
        return found_or_none

    def newest_number(self) -> int:
        """The number of the newest checkpoint in the folder, good or not; 0 without one."""
        return self._checkpoints.newest_number()

    def newest_after(self, number: int) -> Checkpoint | None:
        """The newest good checkpoint of a number above `number`; says what was passed over."""
        self._checkpoints.start()
        found, passed = self._checkpoints.newest(self._blueprint, above=number)
        for _, why in passed:
            say(f"passed over: {why}")
        return found

    def _check_seed(self, found: Checkpoint) -> None:
        ours, theirs = str(self._job.seed), found.manifest.settings.get("seed", str(self._job.seed))
        if ours != theirs:
            raise CheckpointError(
                f"{found.folder} is of a job with seed {theirs}, whose samples have another order "
                f"than with seed {ours}: give the same seed"
            )

    def make(self) -> None:
        """Make one checkpoint now. Blocks; raises CheckpointError."""
        with self.turn:
            self._making = True
            try:
                self._make()
            finally:
                self._making = False

    def _make(self) -> None:
        number = self._checkpoints.begin()
        try:
            self._orders.begin_cut(number, str(self._folder(number)))
            parts = self._collect(number)
            self._coordinator.look(partial(_compare, parts))
            record = JobRecord(
                self._blueprint,
                names_of(self._model, self._blueprint),
                rest_of(self._model, self._blueprint, self._coordinator.buffers()),
                dict(self._job.settings),
                self._options(),
                self._coordinator.look(_record),
            )
            self._checkpoints.finish(number, parts, record)
        except Exception:
            self._orders.give_up_cut(number)
            self._checkpoints.abandon(number)
            raise

    def _folder(self, number: int) -> Path:
        return self._checkpoints.partial(number).absolute()

    def _run(self) -> None:
        failures = 0
        due_s, due_updates = self._next()
        while not self._stop.wait(_LOOK_AGAIN_S):
            last = self._wanted.is_set()
            if not last and time.monotonic() < due_s and self._updates() < due_updates:
                continue
            try:
                self.make()
                failures = 0
            except _AgainError as error:
                failures += 1
                if failures < _TRIES:
                    continue
                say(f"a checkpoint failed, and training goes on: {error}")
            except Exception as error:
                if not self._stop.is_set():
                    say(f"a checkpoint failed, and training goes on: {error}")
            if last:
                self._made_last.set()
                return
            due_s, due_updates = self._next()

    def _updates(self) -> int:
        self._coordinator.server.catch_up()
        return self._coordinator.meter.steps

    def _next(self) -> tuple[float, float]:
        """When the next checkpoint is due: the time, or the number of updates."""
        never, every_s, every = float("inf"), self._plan.every_s, self._plan.every_updates
        due_s = never if every_s is None else time.monotonic() + every_s
        return due_s, never if every is None else self._updates() + every

    def _collect(self, number: int) -> list[Part]:
        parts: dict[int, Part] = {}
        deadline = time.monotonic() + _CUT_WITHIN_S
        servers = range(self._coordinator.core.resharding.servers)
        while len(parts) < len(servers):
            if time.monotonic() > deadline or self._stop.is_set():
                missing = sorted(set(servers) - parts.keys())
                raise CheckpointError(f"servers {missing} have not written their parts in time")
            try:
                put = self._puts.get(timeout=_LOOK_AGAIN_S)
            except queue.Empty:
                continue
            if put.number != number:
                continue
            if put.lost and put.worker not in parts:
                raise _AgainError(f"server {put.worker} was lost before its part was written")
            if put.lost:
                continue
            if put.error:
                raise CheckpointError(f"server {put.worker}: {put.error}")
            assert isinstance(put.part, Mapping)
            parts[put.worker] = Part.from_json(put.part)
        return [parts[server] for server in servers]


def _record(core: CoordinatorCore) -> dict[str, Any]:
    """What a checkpoint keeps of the coordinator, as a value for JSON."""
    return {"incarnation": core.incarnation, "epochs": core.leases.record()}


def _compare(parts: Sequence[Part], core: CoordinatorCore) -> None:
    """Raise _AgainError unless all shards have the same updates of those who are there."""
    workers, leases = core.members.live, core.leases.unsettled
    ledgers = [Ledger.from_json(part.facts["ledger"]) for part in parts]
    if len({ledger.digest(workers, leases) for ledger in ledgers}) > 1:
        raise _AgainError("its parts are of different updates, because a server heard of it late")


def facts_for(checkpoint: Checkpoint, servers: int, index: int = 0) -> Mapping[str, Any]:
    """What server `index` of `servers` is to know of a checkpoint.

    Raises CheckpointError if it is of another number, and they have different updates.
    """
    facts = [part.facts for part in checkpoint.manifest.parts]
    if len(facts) == servers:
        return facts[index]
    skipped = skipped_in(epochs_of(checkpoint.manifest.job.facts))
    ledgers = [Ledger.from_json(each["ledger"]) for each in facts]
    if len({ledger.digest((), skipped) for ledger in ledgers}) > 1:
        raise CheckpointError(
            f"{checkpoint.folder} has different updates on its {len(facts)} servers, and can "
            "only be gone on from with as many; or resume from an older one"
        )
    return facts[0]


def restore_server(
    checkpoint: Checkpoint,
    server: ParameterServer,
    store: ShardStore,
    blueprint: Blueprint,
    samples_before: int | None = None,
) -> None:
    """Let a server go on from a checkpoint, before it serves. Raises CheckpointError.

    `samples_before` were there when this run began, if that was before the checkpoint.
    """
    record = facts_for(checkpoint, server.job.servers, server.index)
    store.restore(checkpoint.shard(blueprint, store.layout))
    began = {} if samples_before is None else {"samples_before": samples_before}
    server.core.restore({**record, **began})
