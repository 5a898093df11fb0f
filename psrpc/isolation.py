"""A launcher for every role: one crash touches nobody else, and the crashed one comes back.

The command that was typed keeps the store in which processes find each other, and starts for
every server and worker an agent of its own: torchrun's elastic launch of one process, which
starts that process again when it dies (`torchrun --standalone --max-restarts=N`).
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from psrpc import environment, hosted
from psrpc.addresses import chosen
from psrpc.environment import Place, place_of
from psrpc.errors import ConfigError, JobFailedError, PeerLostError, PsrpcError, UsageError
from psrpc.interrupts import INTERRUPTED, TERMINATED
from psrpc.launch import child_variables, run_agent
from psrpc.lifeline import die_with_launcher
from psrpc.notes import Notes, failed_already
from psrpc.nursery import Forked, Nursery
from psrpc.saying import call_this_process, say

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

_LOOK_AGAIN_S = 0.1
_GRACE_S = 5.0  # from a failure until what still runs is ended
_STOP_S = 3.0  # what agents give their processes to end
_LONGER_S = 3.0  # and what they themselves are given beside


@dataclass(frozen=True)
class Crew:
    """How many processes there are of each kind: the lowest ranks serve, backups last of them.

    `goes_back` is whether servers without backups come back, to a checkpoint.
    """

    servers: int = 0
    replicas: int = 0
    workers: int = 0
    goes_back: bool = False

    @property
    def serving(self) -> int:
        """How many processes serve."""
        return self.servers * (1 + self.replicas)


class Roles:
    """The agents of some roles. A context manager that leaves none of them running.

    They are forks of `nursery`, which `agents()` has made. At its end it sends them SIGTERM, unless
    they are `told` by whoever sends it to this process, and gives their processes `patience_s`.
    Of a terminal's Ctrl-C their processes hear by themselves, unless they are `apart`.
    """

    def __init__(
        self,
        nursery: Nursery,
        command: Sequence[str],
        patience_s: float = _STOP_S,
        *,
        told: bool = False,
        apart: bool = False,
    ) -> None:
        self._nursery, self._command = nursery, list(command)
        self._patience_s, self._told, self._apart = patience_s, told, apart
        self._notes = Notes()
        self._agents: dict[Forked, Place] = {}

    def __enter__(self) -> Roles:
        return self

    def __exit__(self, *error: object) -> None:
        self._end(tell=not self._told)
        self._notes.close()

    def start(self, place: Place, *, restarts: int) -> None:
        """Start the agent of one role, whose process comes back so often."""
        variables = child_variables(self._notes) | {
            environment.PLACE: json.dumps(asdict(place)),
            environment.AGENT: json.dumps([restarts, self._command, self._patience_s, self._apart]),
        }
        self._agents[self._nursery.fork(variables)] = place

    def wait(self, crew: Crew) -> None:
        """Wait for the job's end. Blocks; raises what ended it, if that was a failure.

        A worker that does not come back any more is missed by nobody; a server is, unless
        another process has its shard.
        """
        deadline = None
        while self.running:
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

    @property
    def running(self) -> bool:
        """Whether one of them has not ended."""
        return any(agent.poll() is None for agent in self._agents)

    def check(self) -> None:
        """Raise what makes a process fail, if one does already."""
        if self._notes.failed or any(agent.poll() for agent in self._agents):
            self._end()
            raise self._notes.failure() or JobFailedError("a new server ended before it served")

    def wait_for_servers(self) -> None:
        """Wait for servers that were added to a job. Blocks; raises what made one fail.

        One that died and has a backup is missed by nobody.
        """
        while self.running:
            time.sleep(_LOOK_AGAIN_S)
        ended: dict[int, list[int | None]] = {}
        for agent, place in self._agents.items():
            assert place.becomes is not None
            ended.setdefault(place.becomes[0], []).append(agent.returncode)
        if any(all(codes) for codes in ended.values()):
            raise self._notes.failure() or JobFailedError("a server that was added died")

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
        ours = self._of(shard, crew)
        return bool(ours) and all(agent.poll() for agent in ours)

    def _killed(self, shard: int, crew: Crew) -> bool:
        """Whether a signal that nobody sends to end a job has ended one that served a shard."""
        codes = [agent.returncode or 0 for agent in self._of(shard, crew)]
        return any(code > 128 and code not in (INTERRUPTED, TERMINATED) for code in codes)

    def _of(self, shard: int, crew: Crew) -> list[Forked]:
        return [
            agent
            for agent, place in self._agents.items()
            if place.serves(crew.serving) and place.rank % crew.servers == shard
        ]

    def _reason(self, crew: Crew) -> PsrpcError | None:
        confessed = self._notes.failure()
        if self._served(crew) and not self._failed(crew, confessed=False):
            # To those that it lost then, the job's end mattered; what else failed is the user's.
            return None if isinstance(confessed, PeerLostError) else confessed
        if confessed is not None and not isinstance(confessed, PeerLostError):
            return confessed
        for shard in range(crew.servers):
            # Beside a word that a peer is lost counts what was killed, and not by us.
            if self._lost(shard, crew) and (confessed is None or self._killed(shard, crew)):
                return _server_died(shard, crew)
        if confessed is not None:
            return confessed
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


def _server_died(shard: int, crew: Crew) -> JobFailedError:
    backup = " and its backup" if crew.replicas else ""
    text = f"server {shard}{backup} died, so the job was ended"
    if not crew.replicas and not crew.goes_back:
        text += ": it would have gone on with --replicas 1, or from a checkpoint"
        text += " (psrpc train --checkpoint-dir, psrpc launch --revived)"
    return JobFailedError(text)


def launch_isolated(
    nursery: Nursery,
    command: Sequence[str],
    crew: Crew,
    port: int,
    restarts: int,
    interface: str | None = None,
    *,
    script: Sequence[str] = (),
) -> None:
    """Run `python COMMAND` under an agent for each role, and wait for the end.

    If that runs a user's `script`, each process learns what it was started for, as its own settings
    must be. All listen on `interface` (None: loopback, or what torch's variables say). Blocks.
    Raises what ended the job, and KeyboardInterrupt; no process is left.
    """
    host = chosen(interface or environment.interface() or "lo").address
    store, port = keep_store(host, port, script)
    world_size = crew.serving + crew.workers
    told = (crew.servers, crew.replicas, int(crew.goes_back)) if script else ()
    first = place_of(host, port, uuid.uuid4().hex, world_size=world_size, crew=told)
    with terminable(), Roles(nursery, command) as roles:
        for rank in range(world_size):
            # A server that came back without a backup or a checkpoint would begin afresh.
            comes_back = rank >= crew.serving or crew.replicas or crew.goes_back
            often = restarts if comes_back else 0
            roles.start(replace(first, rank=rank, local_rank=rank), restarts=often)
        roles.wait(crew)
    del store


def launch_script(
    script: Sequence[str],
    *,
    module: bool,
    servers: int,
    replicas: int,
    workers: int,
    revived: bool,
    max_restarts: int,
    interface: str | None,
    port: int,
) -> None:
    """Run a user's script (or a `module`) as `launch_isolated` does psrpc's own command.

    Raises ConfigError or UsageError for what cannot be started.
    """
    crew = Crew(servers, replicas, workers, revived)
    words = ["-m", *script] if module else script
    _check_script(words, crew)
    with agents() as nursery:
        command = ["-m", hosted.MODULE, *words]
        launch_isolated(nursery, command, crew, port, max_restarts, interface, script=words)


def _check_script(words: Sequence[str], crew: Crew) -> None:
    if environment.place() is not None:
        raise UsageError(
            "psrpc launch starts the processes itself: under torchrun or srun start only the script"
        )
    problems = []
    if crew.replicas and crew.goes_back:
        problems.append("--revived is for servers without backups: leave it or --replicas out")
    if why := hosted.why_not(words):
        problems.append(why)
    if problems:
        raise ConfigError(problems)


def keep_store(host: str, port: int, script: Sequence[str] = ()) -> tuple[TCPStore, int]:
    """Keep a job's store for as long as the first result lives; the second is its port.

    Says how others join, who need the `script` of the job if it has one.

    Raises AddressError if that cannot be had.
    """
    from torch._C._distributed_c10d import TCPStore

    from psrpc.addresses import listen

    listener = listen(host, port)
    port = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    words = ["--", *script] if script[:1] == ["-m"] else script
    say(f"more workers may come: {shlex.join(['psrpc', 'join', f'{host}:{port}', *words])}")
    return store, port


def launch_joiners(
    nursery: Nursery, command: Sequence[str], place: Place, workers: int, restarts: int
) -> None:
    """Run `python COMMAND` as more workers of a job that runs, and wait for their end.

    Blocks. Raises what made the first of them fail, and KeyboardInterrupt; none is left.
    """
    with terminable(), Roles(nursery, command) as roles:
        for _ in range(workers):
            roles.start(place, restarts=restarts)
        roles.wait(Crew())


def agents() -> Nursery:
    """A nursery of agents; make it before anything else that starts a thread."""
    return Nursery(_be_agent)


def _be_agent() -> int:
    """Be the agent of one role; what it shall run is in the environment."""
    die_with_launcher()
    place = environment.place()
    call_this_process("psrpc agent" if place is None else f"psrpc agent {place.rank}")
    restarts, command, patience_s, apart = environment.agent()
    if apart:
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its process is told, and the launcher decides
    again = lambda: not failed_already()  # noqa: E731
    return run_agent(command, restarts, patience_s=patience_s, again=again)
