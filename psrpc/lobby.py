"""Where a running job says what it is, so that more workers can join it."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from psrpc import addresses, hosted
from psrpc._version import __version__
from psrpc.environment import SECRET_FILE, Place, choose_interface, place_of
from psrpc.environment import interface as interface_here
from psrpc.errors import AddressError, ConfigError, SecretError, UsageError
from psrpc.job import Job
from psrpc.rendezvous import Rendezvous
from psrpc.saying import hushed
from psrpc.secret import user_key

KEY = "psrpc/lobby"
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Lobby:
    """What somebody who wants to join must know.

    `arguments` are those of `psrpc train` if that started the job, else None, and `script` is
    the name of the user's. `world_size` and `servers` are what the job was started with. `one_host`
    is whether all of that is on one host, `loopback` whether nobody else can reach it.
    `unscalable` is why servers cannot be added or removed, if they cannot; `replicas` are the
    backups that each has. A process of it that is silent for `dead_after_s` is taken for dead, and
    servers of one that `goes_back` come back to a checkpoint.
    """

    job: str
    world_size: int
    servers: int
    version: str
    arguments: list[str] | None
    script: str
    one_host: bool
    loopback: bool
    unscalable: str = ""
    replicas: int = 0
    dead_after_s: float = 10.0
    goes_back: bool = False

    @property
    def crew(self) -> tuple[int, ...]:
        """See `Place.crew`."""
        return (self.servers, self.replicas, int(self.goes_back))

    def admit(self, host: str) -> bool:
        """Whether a worker here is on the job's one host; `host` is the address of its store.

        Raises ConfigError if it cannot reach the job's servers.
        """
        here = _is_own(host)
        if self.loopback and not here:
            raise ConfigError(
                f"the job at {host} can be joined on its own host only, where its servers listen "
                "on the loopback interface: start it with --interface and another one (eth0)"
            )
        return self.one_host and here


def publish_lobby(rendezvous: Rendezvous, job: Job, place: Place) -> None:
    """Say at the store's door what this job is."""
    program = Path(sys.argv[0])
    ours = program.name == "psrpc" or program.parts[-2:] == ("psrpc", "__main__.py")
    arguments = sys.argv[1:] if ours else None
    lobby = Lobby(
        place.job,
        place.world_size,
        job.servers,
        __version__,
        arguments,
        program.name,
        place.one_host,
        loopback=place.one_host and interface_here() in (None, "lo"),
        unscalable=job.unscalable,
        replicas=job.replicas,
        dead_after_s=job.elastic.dead_after_s,
        goes_back=job.goes_back,
    )
    rendezvous.announce(KEY, json.dumps(vars(lobby)))
    if job.hosts.address_file is not None:
        _leave(Path(job.hosts.address_file), rendezvous.address)


def _leave(path: Path, address: str) -> None:
    """Write the job's address to a file, at once or not at all, for its owner alone."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(f"{address}\n")
        new.replace(path)
    except OSError as error:
        raise AddressError(
            f"the job's address cannot be written to {path} ({error.strerror}): give another "
            "--address-file"
        ) from error


def address_of(said: str) -> str:
    """The job's address, if `said` is a file that has it; else `said`. Raises AddressError."""
    path = Path(said)
    if not path.is_file():
        return said
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AddressError(f"the job's address cannot be read from {said}: {error}") from error


def split(address: str) -> tuple[str, int]:
    """The host and the port of HOST:PORT or [IPV6]:PORT. Raises UsageError if it is neither."""
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(
            f"a job's address is HOST:PORT, such as 127.0.0.1:29500 or [::1]:29500, not {address!r}"
        )
    return host, int(port)


def _is_own(host: str) -> bool:
    """Whether this is an address of this host (or network namespace)."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.bind(where)
    except OSError:
        return False
    return True


def look_up(address: str) -> Lobby:
    """What job there is at `address` (HOST:PORT). Blocks for a few seconds at most.

    Raises UsageError for something that is no address, AddressError if nobody is there,
    and ConfigError if it is no job of this version of psrpc.
    """
    host, port = split(address)
    try:
        # The store's own client asks for longer than anybody wants to wait.
        socket.create_connection((host, port), _PATIENCE_S).close()
        with hushed():
            store = TCPStore(
                host,
                port,
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=_PATIENCE_S),
            )
            text = store.get(KEY).decode() if store.check([KEY]) else None
    except (OSError, RuntimeError, dist.DistError) as error:
        hint = "" if _is_own(host) else "; from another host, was it started with --interface"
        raise AddressError(
            f"nobody answers for a job at {address}: is it running, and is this the address that "
            f"it showed (with torchrun: MASTER_ADDR:MASTER_PORT){hint}?"
        ) from error
    if text is None:
        raise AddressError(f"a store is at {address}, but no psrpc job has begun there")
    try:
        found: dict[str, object] = json.loads(user_key().derive("lobby").unseal(KEY, text))
    except SecretError:
        raise SecretError(
            f"the job at {address} has another secret than you: joining needs the one of who "
            f"started it, which {SECRET_FILE} may name (the file of its user is ~/.psrpc/secret)"
        ) from None
    if found.get("version") != __version__:
        raise ConfigError(
            f"the job at {address} runs psrpc {found.get('version')}, this is {__version__}: "
            "install the same"
        )
    return Lobby(**found)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Running:
    """A running job: where it is, what it is, and what a process of it here runs with python."""

    host: str
    port: int
    lobby: Lobby
    one_host: bool
    command: list[str]

    @property
    def address(self) -> str:
        """HOST:PORT, as it was given."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def place(self) -> Place:
        """Where a worker that joins it here stands."""
        size, crew = self.lobby.world_size, self.lobby.crew
        return place_of(
            self.host, self.port, self.lobby.job, world_size=size, one_host=self.one_host, crew=crew
        )

    def check_command(self) -> None:
        """Raise UsageError unless it is known what to run."""
        if not self.command:
            raise UsageError(
                f"the job at {self.address} runs a script: give it ({self.lobby.script}) and its "
                "arguments"
            )


def find(said: str, script: Sequence[str], interface: str | None) -> Running:
    """The job at an address, or at that which a file has, as one of this host sees it.

    Its processes here listen on `interface`, if that is given. Raises what `look_up` raises, and
    UsageError for a `script` where none is needed.
    """
    if interface is not None:
        choose_interface(addresses.chosen(interface).name)
    address = address_of(said)
    lobby = look_up(address)
    host, port = split(address)
    if lobby.arguments is not None and script:
        raise UsageError(f"the job at {address} was started by psrpc train: give no script")
    if script and (why := hosted.why_not(script)):
        raise UsageError(why)
    if lobby.arguments is not None:
        command = ["-m", "psrpc", *lobby.arguments]
    else:
        command = ["-m", hosted.MODULE, *script] if script else []
    return Running(host, port, lobby, lobby.admit(host), command)
