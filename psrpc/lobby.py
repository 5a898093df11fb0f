"""Where a running job says what it is, so that more workers can join it."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from psrpc._version import __version__
from psrpc.environment import Place
from psrpc.errors import AddressError, ConfigError, UsageError
from psrpc.job import Job
from psrpc.planes.agent import hushed
from psrpc.rendezvous import Rendezvous

KEY = "psrpc/lobby"
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Lobby:
    """What somebody who wants to join must know.

    `arguments` are those of `psrpc train` if that started the job, else None, and `script` is
    the name of the user's. `world_size` and `servers` are what the job was started with.
    """

    job: str
    world_size: int
    servers: int
    version: str
    arguments: list[str] | None
    script: str


def publish_lobby(rendezvous: Rendezvous, job: Job, place: Place) -> None:
    """Say at the store's door what this job is."""
    program = Path(sys.argv[0])
    ours = program.name == "psrpc" or program.parts[-2:] == ("psrpc", "__main__.py")
    arguments = sys.argv[1:] if ours else None
    lobby = Lobby(place.job, place.world_size, job.servers, __version__, arguments, program.name)
    rendezvous.announce(KEY, json.dumps(vars(lobby)))


def look_up(address: str) -> Lobby:
    """What job there is at `address` (HOST:PORT). Blocks for a few seconds at most.

    Raises UsageError for something that is no address, AddressError if nobody is there,
    and ConfigError if it is no job of this version of psrpc.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"a job's address is HOST:PORT, such as 127.0.0.1:29500, not {address!r}")
    try:
        # The store's own client asks for longer than anybody wants to wait.
        socket.create_connection((host, int(port)), _PATIENCE_S).close()
        with hushed():
            store = TCPStore(
                host,
                int(port),
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=_PATIENCE_S),
            )
            text = store.get(KEY).decode() if store.check([KEY]) else None
    except (OSError, RuntimeError, dist.DistError) as error:
        raise AddressError(
            f"nobody answers for a job at {address}: is it running, and is this the address that "
            "it showed (with torchrun: MASTER_ADDR:MASTER_PORT)?"
        ) from error
    if text is None:
        raise AddressError(f"a store is at {address}, but no psrpc job has begun there")
    found: dict[str, object] = json.loads(text)
    if found.get("version") != __version__:
        raise ConfigError(
            f"the job at {address} runs psrpc {found.get('version')}, this is {__version__}: "
            "install the same"
        )
    return Lobby(**found)  # type: ignore[arg-type]
