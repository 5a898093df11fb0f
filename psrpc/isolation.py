"""A launcher for every role: one crash touches nobody else, and the crashed one comes back.

The command that was typed keeps the store in which processes find each other, and starts for
every server and worker an agent of its own: torchrun's elastic launch of one process, which
starts that process again when it dies (`torchrun --standalone --max-restarts=N`).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from torch._C._distributed_c10d import TCPStore

from psrpc import environment
from psrpc.addresses import chosen
from psrpc.environment import JOINS, Place
from psrpc.errors import JobFailedError, PsrpcError
from psrpc.launch import child_variables, run_agent
from psrpc.lifeline import die_with_launcher
from psrpc.notes import Notes

_LOOK_AGAIN_S = 0.1
_GRACE_S = 5.0  # from a failure until what still runs is ended
_STOP_S = 3.0  # what agents give their processes to end
_LONGER_S = 3.0  # and what they themselves are given beside


def place_of(address: str, port: int, job: str, *, world_size: int, one_host: bool = True) -> Place:
    """Where a process that joins a job stands: on its one host, or on one of several."""
    return Place(
        rank=JOINS,
        world_size=world_size,
        local_rank=0,
        local_world_size=world_size if one_host else 1,
        address=address,
        port=port,
        agent_keeps_store=True,
        job=job,
    )


@dataclass(frozen=True)
class Crew:
    """How many processes there are of each kind: the lowest ranks serve, backups last of them."""

    servers: int = 0
    replicas: int = 0
    workers: int = 0

    @property
    def serving(self) -> int:
        """How many processes serve."""
        return self.servers * (1 + self.replicas)


class Roles:
    """The agents of some roles. A context manager that leaves none of them running.

    At its end it sends them SIGTERM, unless they are `told` by whoever sends it to this process,
    and gives their processes `patience_s`.
    """

    def __init__(
        self, command: Sequence[str], patience_s: float = _STOP_S, *, told: bool = False
    ) -> None:
        self._command = list(command)
        self._patience_s, self._told = patience_s, told
        self._notes = Notes()
        self._agents: dict[subprocess.Popen[bytes], Place] = {}

    def __enter__(self) -> Roles:
        return self

    def __exit__(self, *error: object) -> None:
        self._end(tell=not self._told)
        self._notes.close()

    def start(self, place: Place, *, restarts: int) -> None:
        """Start the agent of one role, whose process comes back so often."""
        variables = child_variables(self._notes) | {
            environment.PLACE: json.dumps(asdict(place)),
            environment.AGENT: json.dumps([restarts, self._command, self._patience_s]),
        }
        agent = subprocess.Popen(
            [sys.executable, "-m", "psrpc.isolation"], env=environment.with_variables(variables)
        )
        self._agents[agent] = place

    def wait(self, crew: Crew) -> None:
        """Wait for the job's end. Blocks; raises what ended it, if that was a failure.

        A worker that does not come back any more is missed by nobody; a server is, unless
        another process has its shard.
        """
        deadline = None
        while any(agent.poll() is None for agent in self._agents):
            time.sleep(_LOOK_AGAIN_S)
            if self._served(crew) and not self._failed(crew, confessed=False):
                # Workers may still evaluate, as long as they like; none need begin again.
                self._notes.end()
                continue
            if deadline is None and self._failed(crew):
                deadline = time.monotonic() + _GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                break
        self._end()
        error = self._reason(crew)
        if error is not None:
            raise error

    def _served(self, crew: Crew) -> bool:
        """Whether there were servers here, and all have ended."""
        ours = [agent for agent, place in self._agents.items() if place.serves(crew.serving)]
        return bool(ours) and all(agent.poll() is not None for agent in ours)

    def _failed(self, crew: Crew, *, confessed: bool = True) -> bool:
        if confessed and self._notes.failed:
            return True
        return any(self._lost(shard, crew) for shard in range(crew.servers))

    def _lost(self, shard: int, crew: Crew) -> bool:
        """Whether all processes that could serve a shard have failed for good."""
        ours = [
            agent
            for agent, place in self._agents.items()
            if place.serves(crew.serving) and place.rank % crew.servers == shard
        ]
        return bool(ours) and all(agent.poll() for agent in ours)

    def _reason(self, crew: Crew) -> PsrpcError | None:
        if self._served(crew) and not self._failed(crew, confessed=False):
            return None  # whoever failed after that was too late to matter
        if (confessed := self._notes.failure()) is not None:
            return confessed
        for shard in range(crew.servers):
            if self._lost(shard, crew):
                backup = " and its backup" if crew.replicas else ""
                return JobFailedError(f"server {shard}{backup} died, so the job was ended")
        agents = self._agents.items()
        codes = [agent.returncode for agent, place in agents if not place.serves(crew.serving)]
        if codes and all(codes):
            return JobFailedError("no worker has come to the end of its work")
        return None

    def _end(self, *, tell: bool = True) -> None:
        running = [agent for agent in self._agents if agent.poll() is None]
        for agent in running if tell else ():
            agent.terminate()
        deadline = time.monotonic() + self._patience_s + _LONGER_S
        for agent in running:
            with suppress(subprocess.TimeoutExpired):
                agent.wait(max(deadline - time.monotonic(), 0.0))
        for agent in running:
            if agent.poll() is None:
                agent.kill()  # its process dies with it
                agent.wait()


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end this block as Ctrl-C does, so that nothing is left running."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def launch_isolated(
    arguments: Sequence[str], crew: Crew, port: int, restarts: int, interface: str | None = None
) -> None:
    """Run `python -m psrpc ARGUMENTS` under an agent for each role, and wait for the end.

    All listen on `interface` (None: loopback, or what torch's variables say). Blocks. Raises what
    ended the job, and KeyboardInterrupt; no process is left.
    """
    host = chosen(interface or environment.interface() or "lo").address
    store, port = keep_store(host, port)
    world_size = crew.serving + crew.workers
    first = place_of(host, port, uuid.uuid4().hex, world_size=world_size)
    with terminable(), Roles(["-m", "psrpc", *arguments]) as roles:
        for rank in range(world_size):
            # A server that came back without a backup would begin afresh.
            often = restarts if rank >= crew.serving or crew.replicas else 0
            roles.start(replace(first, rank=rank, local_rank=rank), restarts=often)
        roles.wait(crew)
    del store


def keep_store(host: str, port: int) -> tuple[TCPStore, int]:
    """Keep a job's store for as long as the first result lives; the second is its port.

    Raises AddressError if that cannot be had.
    """
    from psrpc.rendezvous import listen

    listener = listen(host, port)
    port = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    print(f"psrpc: more workers may come: psrpc join {host}:{port}", file=sys.stderr, flush=True)
    return store, port


def launch_joiners(command: Sequence[str], place: Place, workers: int, restarts: int) -> None:
    """Run `python COMMAND` as more workers of a job that runs, and wait for their end.

    Blocks. Raises what made the first of them fail, and KeyboardInterrupt; none is left.
    """
    with terminable(), Roles(command) as roles:
        for _ in range(workers):
            roles.start(place, restarts=restarts)
        roles.wait(Crew())


def main() -> None:
    """Be the agent of one role; what it shall run is in the environment."""
    die_with_launcher()
    restarts, command, patience_s = environment.agent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its process is told, and the launcher decides
    sys.exit(run_agent(command, restarts, patience_s=patience_s))


if __name__ == "__main__":
    main()
