"""A process that serves: it starts, does its work, and closes, as its phases say."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from psrpc.attendance import watched
from psrpc.checkpointer import Checkpointer, Orders, PartWriter, restore_server
from psrpc.checkpoints.reading import open_checkpoint
from psrpc.coordinator import Coordinator
from psrpc.core.ledger import Ledger
from psrpc.errors import JobFailedError, PsrpcError, StartTimeoutError, StoppedError, encode
from psrpc.job import Job, PlaneChoice
from psrpc.mover import Mover
from psrpc.moves import Ready
from psrpc.orders import PutPart
from psrpc.planes.agent import Agent
from psrpc.planes.base import Link, Service
from psrpc.planes.conductor import Conductor, Ensemble
from psrpc.planes.entrance import Entrance
from psrpc.planes.groups import Fabric, Groups
from psrpc.planes.rpc import Address, Patience, RpcLink, answers, serve, withdraw
from psrpc.planes.staging import Staging
from psrpc.pulse import Pulse
from psrpc.rendezvous import (
    FAILED,
    FAREWELL_S,
    PULSE,
    STOP,
    Rendezvous,
    gone,
    groups_key,
    reason,
    shm_key,
    stream_key,
    worker_name,
)
from psrpc.reshaper import Reshaper
from psrpc.saying import say
from psrpc.secret import Secret
from psrpc.server import ParameterServer
from psrpc.store.blueprint import Blueprint
from psrpc.store.shard import ShardStore
from psrpc.watcher import Watcher

SERVER_THREADS = 4
_LOOK_AGAIN_S = 0.5  # each look costs an idle server a wake-up
_TELL_AFTER_S = 5.0  # of too few workers: who died may be back before that
_COORDINATOR = "server0"
_RESUME = "resume"  # the key of the checkpoint's folder from which all servers go on, or ""


class ServerNode:
    """A process that serves one shard; server 0 coordinates as well."""

    def __init__(
        self,
        job: Job,
        index: int,
        model: nn.Module,
        blueprint: Blueprint,
        fabric: Fabric,
        servers: int | None = None,
    ) -> None:
        """`servers` is how many there are, if not as many as at the job's start."""
        self.job = job
        self.index = index
        self.fabric = fabric
        self.name_of: Callable[[int], str] = lambda worker: f"worker {worker}"
        layout = blueprint.layouts(job.servers if servers is None else servers)[index]
        self.store = store = ShardStore(blueprint, layout, model, job.reduction)
        self.blueprint, self.model = blueprint, model
        self.server = ParameterServer(job, index, blueprint, store)
        self.server.servers = job.servers if servers is None else servers
        self.coordinator = Coordinator(job, self.server, blueprint, model) if index == 0 else None
        self.agent: Agent  # as soon as it serves, as is:
        self.secret: Secret
        self.service: Service = self.coordinator or self.server
        self.entrance: Entrance | None = None
        self.mover: Mover | None = None
        self.reshaper: Reshaper | None = None
        self.turn = threading.Lock()  # held while the job is cut
        self.conductor: Conductor | None = None
        self.pulse: Pulse | None = None
        self.start_within_s = job.start_timeout_s
        self.part_writer: PartWriter | None = None
        self.checkpointer: Checkpointer | None = None
        self._asked = threading.Event()

    def ask_to_stop(self) -> bool:
        """Let the job end after one more checkpoint; False if it makes none, so it may just end."""
        plan = self.job.checkpointing
        if plan is None or not plan.writes:
            return False
        self._asked.set()
        return True

    def serve(self, rendezvous: Rendezvous) -> None:
        """Serve until all workers are gone. Blocks; raises JobFailedError if the job failed."""
        self.secret = rendezvous.secret
        self.start_agent(f"server{self.index}", self.index)
        try:
            self._begin(rendezvous)
            self._wait_for_end(rendezvous)
            # The last answers must have arrived before the agent cuts them off.
            if self.server.failure is not None:
                rendezvous.say(reason(self.agent.name), json.dumps(encode(self.server.failure)))
            rendezvous.await_or_give_up(self._last_to_leave(), FAREWELL_S)
        finally:
            self._close()
            rendezvous.say(gone(self.agent.name))
        if self.server.failure is not None:
            raise self.server.failure

    def start_agent(self, name: str, number: int) -> None:
        """Let others reach this process by a name and a number that nobody else has had."""
        self.agent = Agent(
            name,
            number,
            threads=SERVER_THREADS,
            one_host=self.fabric.one_host,
            secret=self.secret,
            serves=True,
        )
        self.agent.start()

    def _close(self) -> None:
        """Answer nobody any more."""
        helpers = (self.reshaper, self.checkpointer, self.part_writer, self.mover or self.entrance)
        for helper in (*helpers, self.pulse, self.conductor):
            if helper is not None:
                helper.close()
        withdraw(self.agent)
        self.agent.close()

    def _begin(self, rendezvous: Rendezvous) -> None:
        """Be ready, and say so; or say why not, so that nobody waits for this server."""
        try:
            self._prepare_checkpoints(self.coordinator)
            self._resume(rendezvous)
            serve(self.agent, self._before(self.service, self.server, rendezvous))
            seat = self._open_doors().seat
            rendezvous.publish(shm_key(self.agent.name), seat.door)
            rendezvous.publish(stream_key(self.agent.name), seat.berth)
            if self.coordinator is not None:
                self._be_scalable(self.coordinator)
            self._listen_for_deaths(rendezvous)
            rendezvous.publish(self.agent.name, self.agent.url)
        except Exception as error:
            rendezvous.say(FAILED, json.dumps(encode(error)))
            raise

    def _listen_for_deaths(self, rendezvous: Rendezvous) -> None:
        if self.coordinator is None:
            return
        self.coordinator.lost = lambda process: rendezvous.say(gone(worker_name(process)))
        self.coordinator.suspect = self._look_after_servers
        silence_s = self.job.elastic.dead_after_s
        lose = watched(self.coordinator, self.coordinator.lose)
        self.pulse = Pulse(self.agent.host, silence_s, lose, self.secret)
        self.coordinator.expected = self.pulse.expect
        self.pulse.start()
        rendezvous.publish(PULSE, self.pulse.address)

    def _look_after_servers(self, error: PsrpcError) -> None:
        """A worker lost a server. That is the job's end if the server is dead; else its own."""

        def look() -> None:
            if not self._all_answer():
                self._fail(error)

        threading.Thread(target=look, name="psrpc-look", daemon=True).start()

    def _all_answer(self) -> bool:
        """Whether all other servers live. Blocks."""
        assert self.coordinator is not None
        seats = self.coordinator.core.resharding.seats[1:]
        others = [seat.name for seat in seats]
        if not self.coordinator.core.resharding.layout:
            others = [f"server{index}" for index in range(1, self.job.servers)]
        return all(answers(self.agent, name, Patience().ping_s) for name in others)

    def _resume(self, rendezvous: Rendezvous) -> None:
        """Go on from a checkpoint, if there is one; the coordinator chooses it for all."""
        if self.job.checkpointing is None:
            return
        if self.checkpointer is None:
            (folder,) = rendezvous.read([_RESUME])
            found = open_checkpoint(Path(folder), thorough=False) if folder else None
        else:
            found = self.checkpointer.resume()
            rendezvous.publish(_RESUME, str(found.folder.absolute()) if found else "")
        if found is None:
            return
        restore_server(found, self.server, self.store, self.blueprint)
        if self.coordinator is not None:
            ledgers = [Ledger.from_json(part.facts["ledger"]) for part in found.manifest.parts]
            self.coordinator.restore(found.manifest.job.facts, found.rest(), ledgers)

    def _prepare_checkpoints(self, orders: Orders | None) -> None:
        """Have what makes the job's checkpoints, if this server coordinates."""
        plan, coordinator = self.job.checkpointing, self.coordinator
        if plan is None or coordinator is None or orders is None:
            return
        self.part_writer = writer = PartWriter(
            self.server, self.blueprint, lambda put: coordinator.part_came(put)
        )
        self.checkpointer = Checkpointer(
            self.job,
            plan,
            coordinator,
            orders,
            self.blueprint,
            self.model,
            lambda: writer.options,
        )
        self.checkpointer.turn = self.turn

    def _begin_checkpoints(self, coordinator: Link | None) -> None:
        """Be ready to be cut."""
        if self.job.checkpointing is None:
            return
        if coordinator is not None:
            self.part_writer = PartWriter(
                self.server,
                self.blueprint,
                lambda put: _deliver(coordinator, put),
            )
        if self.part_writer is not None:
            self.part_writer.start()
        if self.checkpointer is not None and self.job.checkpointing.writes:
            self.checkpointer.start()

    def _wait_for_end(self, rendezvous: Rendezvous) -> None:
        if self.coordinator is not None:
            self._begin_checkpoints(None)
            self._supervise(
                self.coordinator, lambda: rendezvous.heard(STOP, hush=False) is not None
            )
            return
        (url,) = rendezvous.read([_COORDINATOR])
        link = RpcLink(self.agent, Address(_COORDINATOR, 0, url))
        link.connect()
        self._watch(link)
        self._wait_or_stop(rendezvous)

    def _watch(self, coordinator: Link) -> None:
        """Hear what the coordinator says."""
        self._begin_checkpoints(coordinator)
        mover = self._be_movable(lambda ready: coordinator.call(ready).wait())
        Watcher(coordinator, self.server, mover=mover).start()

    def _wait_or_stop(self, rendezvous: Rendezvous) -> None:
        """Wait for the end; pass on that this server was asked for it."""
        while not self.server.ended.wait(_LOOK_AGAIN_S):
            if self._asked.is_set():
                rendezvous.say(STOP)
                self.server.ended.wait()

    def _supervise(
        self,
        coordinator: Coordinator,
        asked: Callable[[], bool] = lambda: False,
        look: Callable[[], object] = lambda: None,
    ) -> None:
        """Wait for the end; bring it about if workers that must come do not, or somebody asks.

        `look` is called twice a second.
        """
        began_s = time.monotonic()
        short_since_s: float | None = None
        told = False
        while not self.server.ended.wait(_LOOK_AGAIN_S):
            look()
            self.server.catch_up()  # for who watches
            if self.job.checkpointing is not None and (self._asked.is_set() or asked()):
                self._stop_early(coordinator)
                return
            now_s, members = time.monotonic(), coordinator.core.members
            if not members.started and now_s - began_s > self.start_within_s:
                self._fail(self._nobody_came(coordinator))
            if not members.short:
                short_since_s, told = None, False
            elif short_since_s is None:
                short_since_s = now_s
            elif not told and now_s - short_since_s > _TELL_AFTER_S:
                told = True
                say(f"{self._left(len(members.live))}: others may come within {self._waits}")
            elif now_s - short_since_s > self.job.elastic.rejoin_timeout_s:
                if (maker := self.checkpointer) is not None and maker.begun:
                    maker.make_last()
                if members.short:
                    self._fail(self._deserted(len(members.live)))

    def _stop_early(self, coordinator: Coordinator) -> None:
        """Make a last checkpoint, at once, and end the job."""
        if (maker := self.checkpointer) and coordinator.core.members.started and maker.begun:
            maker.make_last()
        if not self.server.ended.is_set():
            assert self.job.checkpointing is not None
            folder = self.job.checkpointing.directory
            self._fail(
                StoppedError(
                    "the job was asked to stop (a signal came to a server): go on from its newest "
                    f'checkpoint, in {folder}, with --resume auto, or Checkpointing(resume="auto")'
                )
            )

    def _fail(self, error: PsrpcError) -> None:
        """End the job."""
        assert self.coordinator is not None
        self.coordinator.fail(error)

    def _nobody_came(self, coordinator: Coordinator) -> StartTimeoutError:
        who = ", ".join(self.name_of(w) for w in coordinator.core.members.missing)
        return StartTimeoutError(f"these have not come within {self.start_within_s:g} s: {who}")

    def _deserted(self, live: int) -> JobFailedError:
        return JobFailedError(f"{self._left(live)}, and nobody has come within {self._waits}")

    def _left(self, live: int) -> str:
        least = self.job.elastic.min_workers or 1
        return f"{live} workers are left of the {least} that the job needs"

    @property
    def _waits(self) -> str:
        return f"{self.job.elastic.rejoin_timeout_s:g} s"

    def _last_to_leave(self) -> list[str]:
        if self.server.left is not None:
            return []  # whoever needed it has said so
        if self.coordinator is None:
            return [gone(_COORDINATOR)]
        return [gone(worker_name(process)) for process in self.coordinator.core.processes]

    def _open_doors(self) -> Entrance:
        """Let workers in."""
        self.entrance = self._entrance(self.server.servers)
        return self.entrance

    def _entrance(self, servers: int) -> Entrance:
        """Let workers in to this server's shard of so many."""
        layout = self.blueprint.layouts(servers)[self.index]
        # Another service than the shard's own (or its coordinator's) is to hear of each push.
        quick = self.server if self.service in (self.server, self.coordinator) else None
        entrance = Entrance(self.agent, self.secret, self.service, layout, self.job.plane, quick)
        entrance.open()
        return entrance

    def _be_movable(self, deliver: Callable[[Ready], object]) -> Mover | None:
        """Be ready for other layouts; `deliver` tells the coordinator."""
        if self.job.unscalable:
            return None
        assert self.entrance is not None
        at = self.agent.host, self.secret
        self.mover = Mover(
            self.server, self.blueprint, self.model, at, self._entrance, deliver, self.entrance
        )
        return self.mover

    def _be_scalable(self, coordinator: Coordinator, orders: Orders | None = None) -> None:
        """Be ready to add and remove servers; `orders` are given to another than `coordinator`."""
        service = self.service
        mover = self._be_movable(lambda ready: service.handle(ready, (), lambda payload: None))
        if mover is None:
            return
        by, within_s = orders or coordinator, self.job.start_timeout_s
        self.reshaper = Reshaper(coordinator, by, mover, self.turn, within_s, self._all_answer)
        self.reshaper.start()

    def _before(self, service: Service, rounds: Ensemble, rendezvous: Rendezvous) -> Service:
        """What takes requests for `service`: on the collective plane one that adds up gradients."""
        if self.job.plane is not PlaneChoice.COLLECTIVE:
            return service
        name = self.agent.name
        groups = Groups(name, rendezvous.branch(groups_key(name)), self.fabric)
        staging = Staging(self.server.store.layout, self.fabric.device)
        self.conductor = Conductor(
            service, rounds, self._fail_job, staging, groups, self.job.reduction
        )
        self.server.stirred = self.conductor.stir
        self.conductor.start()
        return self.conductor

    def _fail_job(self, error: PsrpcError) -> None:
        """End the job, or this server, whose workers then do."""
        (self.coordinator or self.server).fail(error)


def _deliver(coordinator: Link, put: PutPart) -> None:
    coordinator.call(put).wait()
