"""One role of a job for each task of an srun: the task is the launcher of its role.

The first task keeps the store in which all find each other, and has its role in a process apart.
The others are agents themselves: a role that died comes back as a fork, as under `--isolate`. What
a task's end means to others is SLURM's matter: `srun --kill-on-bad-exit=0`.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace

from torch._C._distributed_c10d import PrefixStore, TCPStore

from psrpc import addresses, environment
from psrpc.core.seats import Placement
from psrpc.environment import Place
from psrpc.errors import PeerLostError, UsageError
from psrpc.interrupts import INTERRUPTED, TERMINATED
from psrpc.isolation import Crew, Roles, agents, keep_store, terminable
from psrpc.launch import child_variables, run_agent
from psrpc.notes import Notes
from psrpc.rendezvous import left
from psrpc.saying import say
from psrpc.seating import role, seated
from psrpc.settings import TrainSettings

_PATIENCE_S = 600.0  # from SIGTERM until SIGKILL: SLURM's own KillWait is shorter
_FAREWELL_S = 4.0
_LOOK_AGAIN_S = 0.05
_KNOCK_S = 5.0
_RETURN_S = 30.0  # how long a role that died looks for the job's store


@dataclass(frozen=True)
class Task:
    """A task: its launcher's place, its rank in the job, and what the job is made of."""

    place: Place
    rank: int
    crew: Crew

    def run(self, arguments: Sequence[str], restarts: int, interface: str | None) -> int:
        """Run `python -m psrpc ARGUMENTS` as this task's role. Blocks; returns an exit code.

        Raises the error that the role has left.
        """
        # A server that came back without a backup or a checkpoint would begin afresh.
        crew = self.crew
        if self.rank < crew.serving and not (crew.replicas or crew.goes_back):
            restarts = 0
        host = addresses.store_address(self.place.address, interface)
        own = addresses.with_address(host)
        if self.place.one_host and interface is None and own is not None:
            environment.choose_interface(own.name)  # for those who join from other hosts
        place = replace(self.place, address=host, agent_keeps_store=True)
        command = ["-m", "psrpc", *arguments]
        if place.rank:
            return self._follow(place, command, restarts)
        self._keep(place, command, restarts)
        return 0

    def _keep(self, place: Place, command: Sequence[str], restarts: int) -> None:
        with agents() as nursery:
            store, port = keep_store(place.address, place.port)
            place = replace(place, port=port)
            with terminable(), Roles(nursery, command, _PATIENCE_S, told=True) as roles:
                roles.start(place, restarts=restarts)
                try:
                    roles.wait(self.crew)
                finally:
                    _wait_for_others(store, place)

    def _follow(self, place: Place, command: Sequence[str], restarts: int) -> int:
        with closing(Notes()) as notes:
            place_said = {environment.PLACE: json.dumps(asdict(place))}
            environment.for_children(**child_variables(notes), **place_said)
            code = run_agent(
                command,
                restarts,
                patience_s=_PATIENCE_S,
                again=lambda: _may_come_back(notes, place),
            )
            error = notes.failure() if code else None
        if error is not None:
            raise error
        if code and code not in (INTERRUPTED, TERMINATED):
            name = role(self.rank, self.crew.servers, self.crew.replicas)
            say(f"{name} ended with code {code}")
        return code


def _may_come_back(notes: Notes, place: Place) -> bool:
    """Whether a role that died is of use again; its own failure, but for a lost peer, is final."""
    error = notes.failure()
    if error is not None and not isinstance(error, PeerLostError):
        return False
    deadline = time.monotonic() + _RETURN_S
    while not _answers(place):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_AGAIN_S)
    notes.forget()
    return True


def _answers(place: Place) -> bool:
    """Whether the job's store is there. Raises nothing; one that refuses is gone for good."""
    try:
        socket.create_connection((place.address, place.port), _KNOCK_S).close()
    except OSError:
        return False
    return True


def _wait_for_others(store: TCPStore, place: Place) -> None:
    """Keep the store until all have left it, but not for long."""
    names = PrefixStore(f"psrpc/{place.job}", store)
    everybody = [left(rank) for rank in range(place.world_size)]
    deadline = time.monotonic() + _FAREWELL_S
    while not names.check(everybody) and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN_S)


def be_task(settings: TrainSettings, place: Place, argv: list[str]) -> None:
    """Run the role of this task of `srun`, of a job of `psrpc train`; ends the process.

    Raises UsageError if there are too few tasks.
    """
    workers = place.world_size - settings.server_processes
    if workers < 1:
        raise UsageError(
            f"{place.world_size} tasks cannot hold {settings.server_processes} servers and a worker"
        )
    seat = seated(place, settings.servers, settings.replicas, Placement(settings.server_placement))
    crew = Crew(settings.servers, settings.replicas, workers, settings.goes_back)
    sys.exit(Task(place, seat.rank, crew).run(argv, settings.max_restarts, settings.interface))
