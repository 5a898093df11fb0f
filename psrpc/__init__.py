"""psrpc: the parameter server for PyTorch that people can put their jobs on."""

import importlib
from typing import TYPE_CHECKING, Any

from psrpc._version import __version__

if TYPE_CHECKING:
    from psrpc.actors.cluster import Cluster, init, shutdown
    from psrpc.actors.future import as_completed, get, wait
    from psrpc.actors.handle import actor, get_actor, kill, ready
    from psrpc.actors.pool import Pool
    from psrpc.actors.remote import rref
    from psrpc.job import Checkpointing, Elastic, Hosts
    from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
    from psrpc.runtime import Result, Role, run
    from psrpc.space import ANY, FIELD, Space, SpaceServer, Taken
    from psrpc.worker import Worker

__all__ = [
    "ANY",
    "Asynchronous",
    "Cluster",
    "Pool",
    "actor",
    "as_completed",
    "get",
    "get_actor",
    "init",
    "kill",
    "ready",
    "rref",
    "shutdown",
    "wait",
    "BoundedStaleness",
    "Checkpointing",
    "Elastic",
    "FIELD",
    "Hosts",
    "Mode",
    "Result",
    "Role",
    "Space",
    "SpaceServer",
    "Synchronous",
    "Taken",
    "Worker",
    "__version__",
    "run",
]

# The rooms from the top down: a module imports only from rooms above its own.
ROOMS = (
    "errors",
    "clock",
    "nodelists",
    "environment",
    "secret",
    "addresses",
    "interrupts",
    "lifeline",
    "notes",
    "saying",
    "hosted",
    "forks",
    "promises",
    "modes",
    "counts",
    "messages",
    "usual",
    "orders",
    "moves",
    "core",
    "job",
    "arguments",
    "seating",
    "importing",
    "optional",
    "datasets",
    "models",
    "tree",
    "seeds",
    "store",
    "checkpoints",
    "planes",
    "space",
    "meter",
    "desk",
    "holding",
    "quick",
    "server",
    "coordinator",
    "pulse",
    "mover",
    "watcher",
    "checkpointer",
    "reshaper",
    "follow",
    "ticket",
    "exchange",
    "crew",
    "optimizer",
    "untrained",
    "tally",
    "samples",
    "batches",
    "stepping",
    "worker",
    "timely",
    "sealed",
    "rendezvous",
    "rollcall",
    "lobby",
    "report",
    "display",
    "replication",
    "attendance",
    "nodes",
    "replicas",
    "lives",
    "spares",
    "seeking",
    "slices",
    "working",
    "runtime",
    "actors",
    "entities",
    "examples",
    "doctor",
    "testing",
    "scripted",
    "settings",
    "trainer",
    "interpreter",
    "onehost",
    "launch",
    "nursery",
    "isolation",
    "scaling",
    "tasks",
    "slurm",
    "cli",
)

# Torch takes a second to import, which commands that have no tensors need not wait for.
_WHERE = {
    "Cluster": "actors.cluster",
    "init": "actors.cluster",
    "shutdown": "actors.cluster",
    "as_completed": "actors.future",
    "get": "actors.future",
    "wait": "actors.future",
    "actor": "actors.handle",
    "get_actor": "actors.handle",
    "kill": "actors.handle",
    "ready": "actors.handle",
    "Pool": "actors.pool",
    "rref": "actors.remote",
    "Checkpointing": "job",
    "Elastic": "job",
    "Hosts": "job",
    "Asynchronous": "modes",
    "BoundedStaleness": "modes",
    "Mode": "modes",
    "Synchronous": "modes",
    "Result": "runtime",
    "Role": "runtime",
    "run": "runtime",
    "ANY": "space",
    "FIELD": "space",
    "Space": "space",
    "SpaceServer": "space",
    "Taken": "space",
    "Worker": "worker",
}


def __getattr__(name: str) -> Any:
    """What this package offers, and its rooms: imported when they are first used."""
    if name in _WHERE:
        value = getattr(importlib.import_module(f"psrpc.{_WHERE[name]}"), name)
    elif name in ROOMS:
        value = importlib.import_module(f"psrpc.{name}")
    else:
        raise AttributeError(f"module 'psrpc' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *ROOMS})
