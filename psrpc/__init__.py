"""psrpc: the parameter server for PyTorch that people can put their jobs on."""

from psrpc._version import __version__
from psrpc.actors.cluster import Cluster, init, shutdown
from psrpc.actors.future import get, wait
from psrpc.actors.handle import actor, get_actor, kill, ready
from psrpc.actors.pool import Pool
from psrpc.job import Checkpointing, Elastic
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.runtime import Result, Role, run
from psrpc.worker import Worker

__all__ = [
    "Asynchronous",
    "Cluster",
    "Pool",
    "actor",
    "get",
    "get_actor",
    "init",
    "kill",
    "ready",
    "shutdown",
    "wait",
    "BoundedStaleness",
    "Checkpointing",
    "Elastic",
    "Mode",
    "Result",
    "Role",
    "Synchronous",
    "Worker",
    "__version__",
    "run",
]

# The rooms from the top down: a module imports only from rooms above its own.
ROOMS = (
    "errors",
    "clock",
    "environment",
    "interrupts",
    "lifeline",
    "notes",
    "forks",
    "modes",
    "counts",
    "messages",
    "orders",
    "core",
    "job",
    "importing",
    "optional",
    "datasets",
    "models",
    "tree",
    "seeds",
    "store",
    "checkpoints",
    "planes",
    "meter",
    "server",
    "coordinator",
    "pulse",
    "watcher",
    "checkpointer",
    "exchange",
    "crew",
    "optimizer",
    "untrained",
    "tally",
    "samples",
    "batches",
    "worker",
    "timely",
    "rendezvous",
    "lobby",
    "report",
    "display",
    "replication",
    "nodes",
    "replicas",
    "seeking",
    "working",
    "runtime",
    "actors",
    "testing",
    "settings",
    "trainer",
    "interpreter",
    "launch",
    "isolation",
    "cli",
)
