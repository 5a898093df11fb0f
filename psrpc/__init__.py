"""psrpc: the parameter server for PyTorch that people can put their jobs on."""

from psrpc._version import __version__
from psrpc.job import Checkpointing, Elastic
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.runtime import Result, Role, run
from psrpc.space import ANY, FIELD, Space, SpaceServer
from psrpc.worker import Worker

__all__ = [
    "ANY",
    "Asynchronous",
    "BoundedStaleness",
    "Checkpointing",
    "Elastic",
    "FIELD",
    "Mode",
    "Result",
    "Role",
    "Space",
    "SpaceServer",
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
    "store",
    "checkpoints",
    "planes",
    "space",
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
    "batches",
    "worker",
    "timely",
    "rendezvous",
    "lobby",
    "report",
    "display",
    "nodes",
    "working",
    "runtime",
    "testing",
    "settings",
    "trainer",
    "interpreter",
    "launch",
    "isolation",
    "cli",
)
