"""A server process of a job that goes back to a checkpoint when one of its servers dies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from psrpc.attendance import watched
from psrpc.checkpointer import restore_server
from psrpc.checkpoints.reading import Checkpoint, open_checkpoint
from psrpc.coordinator import Coordinator
from psrpc.core.ledger import Ledger
from psrpc.core.replication import Reign
from psrpc.errors import (
    DeposedError,
    FencedError,
    JobFailedError,
    JobOverError,
    PeerLostError,
    StartTimeoutError,
    encode,
)
from psrpc.job import Job
from psrpc.messages import (
    Failure,
    GetBuffers,
    GetFrozen,
    GetState,
    GetStats,
    Peek,
    Request,
    View,
)
from psrpc.nodes import ServerNode
from psrpc.planes import base
from psrpc.planes.base import Landing, Service
from psrpc.planes.groups import Fabric
from psrpc.planes.rpc import Patience, answers, serve
from psrpc.pulse import Pulse
from psrpc.rendezvous import FAILED, FAREWELL_S, STOP, Rendezvous, gone, reason, worker_name
from psrpc.replication import places
from psrpc.replication.authority import REPLICAS, Authority
from psrpc.replication.failover import FailoverLink
from psrpc.replication.lives import LIVES, NUMBERS_A_LIFE, Lives
from psrpc.replication.places import Reached
from psrpc.saying import say
from psrpc.store.blueprint import Blueprint
from psrpc.watcher import Watcher

_LOOK_S = 0.25
_LOOK_AGAIN_S = 0.05
# What is answered to anybody: one of an earlier life would take old weights for its last ones.
_READS = (Peek, GetState, GetStats, GetFrozen, GetBuffers)


class _Fence:
    """A `Service` that answers nothing to workers with numbers of an earlier life."""

    def __init__(self, service: Service, first: int) -> None:
        self._service = service
        self._first = first

    def handle(
        self,
        request: Request,
        tensors: Sequence[torch.Tensor],
        answer: base.Answer,
        land: Landing | None = None,
    ) -> None:
        """See `Service`."""
        if request.worker < self._first and isinstance(request, _READS):
            error = FencedError("a server died, and all went back to a checkpoint")
            answer((Failure(encode(error)), []))
            return
        self._service.handle(request, tensors, answer, land)


class LifeNode(ServerNode):
    """A process that serves a shard in one life of its job, the one that is when it comes."""

    def __init__(
        self,
        job: Job,
        index: int,
        model: nn.Module,
        blueprint: Blueprint,
        fabric: Fabric,
        rendezvous: Rendezvous,
    ) -> None:
        super().__init__(job, index, model, blueprint, fabric)
        self.passed = threading.Event()  # the next life has begun
        self._name = f"server{index}"
        self._rendezvous = rendezvous
        self._lives = Lives(rendezvous.sealed_branch(LIVES))
        store = rendezvous.sealed_branch(REPLICAS)
        self._authorities = [Authority(store, shard) for shard in range(job.servers)]
        self.life = self._present()
        self._first = (self.life - 1) * NUMBERS_A_LIFE
        self._looks: threading.Thread | None = None
        if self.life > 1:
            self.start_within_s = job.elastic.rejoin_timeout_s
        if self.coordinator is not None:
            self.coordinator.suspect = self._look_after_servers

    def serve(self, rendezvous: Rendezvous) -> None:
        """Serve until the job ends, or this life of it. Blocks.

        Raises JobFailedError if the job failed, and DeposedError if another life has begun: a new
        process is to serve in that, for torch lets each have one RPC agent only.
        """
        number = rendezvous.number()
        self.secret = rendezvous.secret
        self.start_agent(f"{self._name}_{number}", self.job.servers + number)
        try:
            self._look_out()
            if self._set_out(number):
                self._wait_for_end(rendezvous)
            if not self.passed.is_set():
                self._bid_farewell()
        finally:
            self.server.ended.set()
            self._close()
            if self._looks is not None:
                self._looks.join()
        if self.server.failure is None and self.passed.is_set():
            raise DeposedError(f"a server died, and {self._name} begins again with it")
        rendezvous.say(gone(self._name))
        if self.server.failure is not None:
            raise self.server.failure

    def _present(self) -> int:
        """Which life is now. If this server has served in it before, as a process that is dead
        now, that life is over.
        """
        now, seen = self._lives.now(), self._authorities[self.index].look()
        return self._lives.end(now) if seen is not None and seen.epoch == now else now

    # A life's beginning.

    def _set_out(self, number: int) -> bool:
        """Be as the checkpoint says, and serve; False if the life is over before that."""
        try:
            self._prepare_checkpoints(self.coordinator)
            if not self._restore():
                return False
            self.service = _Fence(self.coordinator or self.server, self._first)
            serve(self.agent, self._before(self.service, self.server, self._rendezvous))
            seat = self._open_doors().seat
            pulse = self._listen_to_hearts()
            own = self._authorities[self.index]
            places.post_doors(own, number, self.job.servers, seat)
            places.post(own, number, seat, pulse)
            wanted = Reign(self.life, number)
            if own.change(own.look(), wanted) != wanted:
                raise DeposedError(f"another process has shard {self.index}")
        except JobOverError:
            raise
        except Exception as error:
            self._rendezvous.say(FAILED, json.dumps(encode(error)))
            raise
        return True

    def _restore(self) -> bool:
        if self.checkpointer is None or self.coordinator is None:
            folder = self._await(lambda: self._lives.folder(self.life), "the coordinator")
            if folder is None:
                return False
            found = open_checkpoint(Path(folder), thorough=False) if folder else None
        else:
            found = self._choose()
            self._lives.choose(self.life, str(found.folder.absolute()) if found else "")
        if found is not None:
            before = self._lives.recall("samples") if self.life > 1 else None
            restore_server(found, self.server, self.store, self.blueprint, before)
        self.server.adopt(View(self._first))
        if self.coordinator is None:
            return True
        self._restore_coordinator(self.coordinator, found)
        # Whoever comes to it may come to all: none is in an earlier life any more.
        others = range(1, self.job.servers)
        if self._await(lambda: self._serve_now(others), "the other servers") is None:
            return False
        self._tell_redone(self.coordinator)
        return True

    def _restore_coordinator(self, coordinator: Coordinator, found: Checkpoint | None) -> None:
        if found is not None:
            ledgers = [Ledger.from_json(part.facts["ledger"]) for part in found.manifest.parts]
            coordinator.restore(found.manifest.job.facts, found.rest(), ledgers)
        if self.life > 1:
            coordinator.core.go_back(self._first)
        else:
            self._lives.remember("samples", self.server.stats().samples_before)

    def _choose(self) -> Checkpoint | None:
        """The checkpoint to go on from: that of a job's later lives is its own, or its first's."""
        assert self.checkpointer is not None
        if self.life == 1:
            found = self.checkpointer.resume()
            self._lives.remember("before", self.checkpointer.newest_number())
            return found
        found = self.checkpointer.newest_after(self._lives.recall("before"))
        if found is None and (folder := self._lives.folder(1)):
            found = open_checkpoint(Path(folder))
        if found is None:
            raise JobFailedError(
                "a server died before the job's first checkpoint, so the job was ended"
            )
        say(f"a server died: going back to {found.folder}")
        return found

    def _serve_now(self, shards: Sequence[int]) -> str | None:
        """Something if these are served in this life, else None."""
        reigns = [self._authorities[shard].look() for shard in shards]
        served = all(reign is not None and reign.epoch == self.life for reign in reigns)
        return "they are" if served else None

    def _await(self, look: Callable[[], str | None], who: str) -> str | None:
        """What `look` says in the end; None if this life is over before that.

        Raises JobOverError if the job is.
        """
        deadline = time.monotonic() + self.start_within_s
        while (found := look()) is None:
            if self.passed.is_set():
                return None
            if self.index and self._rendezvous.heard(gone("server0")) is not None:
                raise JobOverError("the coordinator had closed when this server came")
            self._rendezvous.heed_failure()
            if time.monotonic() > deadline:
                raise StartTimeoutError(
                    f"{self._name} waited {self.start_within_s:g} s for {who} in vain"
                )
            time.sleep(_LOOK_AGAIN_S)
        return found

    def _listen_to_hearts(self) -> str:
        if self.coordinator is None:
            return ""
        coordinator, say = self.coordinator, self._rendezvous.say
        coordinator.lost = lambda process: say(gone(worker_name(process)))
        silence_s = self.job.elastic.dead_after_s
        lose = watched(coordinator, coordinator.lose)
        self.pulse = Pulse(self.agent.host, silence_s, lose, self.secret)
        coordinator.expected = self.pulse.expect
        self.pulse.start()
        return self.pulse.address

    # Its course, and its end.

    def _look_out(self) -> None:
        """See when the next life begins, and say how far this one is."""
        lives = Lives(self._rendezvous.sealed_branch(LIVES))

        def look() -> None:
            with suppress(PeerLostError):
                while not self.server.ended.wait(_LOOK_S):
                    lives.count(self.life, self.index, self.server.stats().updates_applied)
                    if lives.now() > self.life:
                        self.passed.set()
                        self.server.ended.set()
                lives.count(self.life, self.index, self.server.stats().updates_applied)

        self._looks = threading.Thread(target=look, name="psrpc-lives", daemon=True)
        self._looks.start()

    def _all_answer(self) -> bool:
        try:
            served = [places.served(authority) for authority in self._authorities[1:]]
        except PeerLostError:
            return False
        return all(each and answers(self.agent, each.name, Patience().ping_s) for each in served)

    def _wait_for_end(self, rendezvous: Rendezvous) -> None:
        if self.coordinator is not None:
            self._begin_checkpoints(None)
            self._supervise(
                self.coordinator, lambda: rendezvous.heard(STOP, hush=False) is not None
            )
            return
        if self._await(lambda: self._serve_now([0]), "the coordinator") is None:
            return
        is_over = lambda: self.passed.is_set() or rendezvous.heard(gone("server0")) is not None  # noqa: E731
        authority = Authority(rendezvous.sealed_branch(REPLICAS), 0)
        place = Reached(self.agent, authority, self.job.plane, is_over)
        try:
            link = FailoverLink(place, self.job.elastic.rejoin_timeout_s)
        except PeerLostError:
            if self.passed.is_set():
                return
            raise
        self._begin_checkpoints(link)
        Watcher(link, self.server).start()
        self._wait_or_stop(rendezvous)

    def _tell_redone(self, coordinator: Coordinator) -> None:
        """Count what the life before had done since its checkpoint."""
        if self.life == 1:
            return
        done = self._lives.counted(self.life - 1, self.job.servers)
        kept = self.server.stats().updates_applied
        before = self._lives.recall(f"redone/{self.life - 1}")
        coordinator.updates_redone = before + max(done - kept, 0)
        self._lives.remember(f"redone/{self.life}", coordinator.updates_redone)

    def _bid_farewell(self) -> None:
        # The last answers must have arrived before the agent cuts them off.
        if self.server.failure is not None:
            error = json.dumps(encode(self.server.failure))
            self._rendezvous.say(reason(self._name), error)
        self._rendezvous.await_or_give_up(self._last_to_leave(), FAREWELL_S)
