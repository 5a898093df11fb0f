"""A process that serves: it starts, does its work, and closes, as its phases say."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from psrpc.checkpointer import Checkpointer, PartWriter, restore_server
from psrpc.checkpoints.reading import open_checkpoint
from psrpc.coordinator import Coordinator
from psrpc.core.ledger import Ledger
from psrpc.errors import JobFailedError, PsrpcError, StartTimeoutError, StoppedError, encode
from psrpc.job import Job, PlaneChoice
from psrpc.orders import PutPart
from psrpc.planes.agent import Agent
from psrpc.planes.base import Link, Service
from psrpc.planes.conductor import Conductor
from psrpc.planes.doorman import Doorman
from psrpc.planes.groups import Fabric, Groups
from psrpc.planes.porter import Porter
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
from psrpc.server import ParameterServer
from psrpc.store.blueprint import Blueprint
from psrpc.store.shard import ShardStore
from psrpc.watcher import Watcher

SERVER_THREADS = 4
_LOOK_AGAIN_S = 0.25
_COORDINATOR = "server0"
_RESUME = "resume"  # the key of the checkpoint's folder from which all servers go on, or ""


class ServerNode:
    """A process that serves one shard; server 0 coordinates as well."""

    def __init__(
        self, job: Job, index: int, model: nn.Module, blueprint: Blueprint, fabric: Fabric
    ) -> None:
        self.job = job
        self.index = index
        self.fabric = fabric
        self.name_of: Callable[[int], str] = lambda worker: f"worker {worker}"
        self.layout = layout = blueprint.layouts(job.servers)[index]
        self.store = store = ShardStore(blueprint, layout, model, job.reduction)
        self.blueprint, self.model = blueprint, model
        self.server = ParameterServer(job, index, blueprint, store)
        self.coordinator = Coordinator(job, self.server, blueprint, model) if index == 0 else None
        self.agent = Agent(
            f"server{index}", index, threads=SERVER_THREADS, one_host=fabric.one_host
        )
        self.service: Service = self.coordinator or self.server
        self.doorman: Doorman | None = None
        self.porter: Porter | None = None
        self.conductor: Conductor | None = None
        self.pulse: Pulse | None = None
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
        self.agent.start()
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

    def _close(self) -> None:
        """Answer nobody any more."""
        helpers = (self.checkpointer, self.part_writer, self.doorman)
        for helper in (*helpers, self.pulse, self.porter, self.conductor):
            if helper is not None:
                helper.close()
        withdraw(self.agent)
        self.agent.close()

    def _begin(self, rendezvous: Rendezvous) -> None:
        """Be ready, and say so; or say why not, so that nobody waits for this server."""
        try:
            self._resume(rendezvous)
            self.conductor = self._raise_conductor(rendezvous)
            serve(self.agent, self.conductor or self.service)
            rendezvous.publish(shm_key(self.agent.name), self._open_door())
            rendezvous.publish(stream_key(self.agent.name), self._open_berth())
            self._listen_for_deaths(rendezvous)
            rendezvous.publish(self.agent.name, self.agent.url)
        except Exception as error:
            rendezvous.say(FAILED, json.dumps(encode(error)))
            raise

    def _listen_for_deaths(self, rendezvous: Rendezvous) -> None:
        if self.coordinator is None:
            return
        self.coordinator.lost = lambda process: rendezvous.say(gone(worker_name(process)))
        silence_s = self.job.elastic.dead_after_s
        if self.job.plane is PlaneChoice.COLLECTIVE:
            silence_s = max(silence_s, self.job.collective_timeout_s)
        else:
            self.coordinator.suspect = self._look_after_servers
        self.pulse = Pulse(self.agent.host, silence_s, self.coordinator.lose)
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
        others = [f"server{index}" for index in range(1, self.job.servers)]
        return all(answers(name, Patience().ping_s) for name in others)

    def _resume(self, rendezvous: Rendezvous) -> None:
        """Go on from a checkpoint, if there is one; the coordinator chooses it for all."""
        plan = self.job.checkpointing
        if plan is None:
            return
        if self.coordinator is None:
            (folder,) = rendezvous.read([_RESUME])
            found = open_checkpoint(Path(folder), thorough=False) if folder else None
        else:
            self.part_writer = PartWriter(
                self.server, self.store, self.blueprint, self.coordinator.part_came_from_here
            )
            writer = self.part_writer
            self.checkpointer = Checkpointer(
                self.job, plan, self.coordinator, self.blueprint, self.model, lambda: writer.options
            )
            found = self.checkpointer.resume()
            rendezvous.publish(_RESUME, str(found.folder.absolute()) if found else "")
        if found is None:
            return
        restore_server(found, self.server, self.store, self.blueprint)
        if self.coordinator is not None:
            ledgers = [Ledger.from_json(part.facts["ledger"]) for part in found.manifest.parts]
            self.coordinator.restore(found.manifest.job.facts, found.rest(), ledgers)

    def _begin_checkpoints(self, coordinator: Link | None) -> None:
        """Be ready to be cut."""
        if self.job.checkpointing is None:
            return
        if coordinator is not None:
            self.part_writer = PartWriter(
                self.server,
                self.store,
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
        self._begin_checkpoints(link)
        Watcher(link, self.server).start()
        while not self.server.ended.wait(_LOOK_AGAIN_S):
            if self._asked.is_set():
                rendezvous.say(STOP)
                self.server.ended.wait()

    def _supervise(
        self, coordinator: Coordinator, asked: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait for the end; bring it about if workers that must come do not, or somebody asks."""
        began_s = time.monotonic()
        short_since_s: float | None = None
        while not self.server.ended.is_set():
            with coordinator.changed:
                coordinator.changed.wait(_LOOK_AGAIN_S)
            if self.job.checkpointing is not None and (self._asked.is_set() or asked()):
                self._stop_early(coordinator)
                return
            now_s, members = time.monotonic(), coordinator.core.members
            if not members.started and now_s - began_s > self.job.start_timeout_s:
                self._fail(self._nobody_came(coordinator))
            if not members.short:
                short_since_s = None
            elif short_since_s is None:
                short_since_s = now_s
            elif now_s - short_since_s > self.job.elastic.rejoin_timeout_s:
                if self.checkpointer is not None and self.checkpointer.begun:
                    self.checkpointer.make_last()
                if members.short:
                    self._fail(self._deserted(len(members.live)))

    def _stop_early(self, coordinator: Coordinator) -> None:
        """Make a last checkpoint, at once, and end the job."""
        made = self.checkpointer is not None and coordinator.core.members.started
        if made and self.checkpointer is not None and self.checkpointer.begun:
            self.checkpointer.make_last()
        if not self.server.ended.is_set():
            self._fail(
                StoppedError(
                    "the job was asked to stop (SIGTERM came to a server): go on from its last "
                    "checkpoint with --resume auto"
                )
            )

    def _fail(self, error: PsrpcError) -> None:
        """End the job."""
        assert self.coordinator is not None
        self.coordinator.fail(error)

    def _nobody_came(self, coordinator: Coordinator) -> StartTimeoutError:
        missing = ", ".join(self.name_of(w) for w in coordinator.core.members.missing)
        return StartTimeoutError(
            f"these have not come within {self.job.start_timeout_s:g} s: {missing}"
        )

    def _deserted(self, live: int) -> JobFailedError:
        least = self.job.elastic.min_workers or 1
        return JobFailedError(
            f"{live} workers are left of the {least} that the job needs, and nobody has come "
            f"within {self.job.elastic.rejoin_timeout_s:g} s"
        )

    def _last_to_leave(self) -> list[str]:
        if self.coordinator is None:
            return [gone(_COORDINATOR)]
        return [gone(worker_name(process)) for process in self.coordinator.core.processes]

    def _open_door(self) -> str:
        if self.job.plane in (PlaneChoice.RPC, PlaneChoice.COLLECTIVE):
            return ""
        self.doorman = Doorman(self.service, self.layout)
        self.doorman.start()
        return self.doorman.address

    def _open_berth(self) -> str:
        if self.job.plane in (PlaneChoice.SHM, PlaneChoice.COLLECTIVE):
            return ""
        self.porter = Porter(self.service, self.layout, self.agent.host)
        self.porter.start()
        return self.porter.address

    def _raise_conductor(self, rendezvous: Rendezvous) -> Conductor | None:
        if self.job.plane is not PlaneChoice.COLLECTIVE:
            return None
        staging = Staging(self.layout, self.job.workers, self.fabric.device)
        groups = Groups(
            self.agent.name, rendezvous.branch(groups_key(self.agent.name)), self.fabric
        )
        conductor = Conductor(self.coordinator or self.server, staging, groups)
        conductor.start()
        return conductor


def _deliver(coordinator: Link, put: PutPart) -> None:
    coordinator.call(put).wait()
