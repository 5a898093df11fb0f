"""What the launcher says about this process. The only module that reads the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psrpc.errors import UsageError
from psrpc.nodelists import counts, names

LAUNCHED_AT = "PSRPC_LAUNCHED_AT"
FAILURE_FILE = "PSRPC_FAILURE_FILE"
OVER_FILE = "PSRPC_OVER_FILE"
LAUNCHER = "PSRPC_LAUNCHER"
PLACE = "PSRPC_PLACE"
AGENT = "PSRPC_AGENT"
CLUSTER = "PSRPC_CLUSTER"
INTERFACE = "TP_SOCKET_IFNAME"
SECRET = "PSRPC_SECRET"
SECRET_FILE = "PSRPC_SECRET_FILE"

JOINS = -1
_INTERFACES = (INTERFACE, "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
# Where srun's tasks find each other, unless MASTER_PORT says so: a range below the ports that
# kernels give out.
_FIRST_PORT, _PORTS = 15_000, 10_000


@dataclass(frozen=True)
class Place:
    """A process's place among those that torchrun (or any env:// launcher) started.

    `rank` is `JOINS` for one that comes to a job that runs already. `node_of` is the host of every
    rank, by number, and `nodes` are the hosts' names; both are empty if the launcher does not say.
    One that joins is a worker, unless it `becomes` a server: which, of how many, and, if that is
    to have a backup, by which command, and whether it is the first of the two. `crew` is what
    whoever started it was told, if it was, or has found: servers, backups of each, and whether
    servers go back to a checkpoint.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int
    agent_keeps_store: bool
    job: str
    node_of: tuple[int, ...] = ()
    nodes: tuple[str, ...] = ()
    becomes: tuple[int, ...] | None = None
    crew: tuple[int, ...] = ()

    @property
    def joins(self) -> bool:
        """Whether this process joins a job that runs already."""
        return self.rank == JOINS

    def serves(self, servers: int) -> bool:
        """Whether this process is a server, in a job that has `servers` processes of that kind."""
        return 0 <= self.rank < servers or self.becomes is not None

    @property
    def one_host(self) -> bool:
        """Whether all processes of the job run on this host."""
        return self.local_world_size == self.world_size


def place_of(
    address: str,
    port: int,
    job: str,
    *,
    world_size: int,
    one_host: bool = True,
    crew: tuple[int, ...] = (),
) -> Place:
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
        crew=crew,
    )


def place(variables: Mapping[str, str] | None = None) -> Place | None:
    """Read the place from `RANK`, `WORLD_SIZE`, ...; None if no launcher has set them.

    Where every role has a launcher of its own, `PSRPC_PLACE` counts in place of those, and tasks of
    one srun are told their places by SLURM, if by nobody else.
    Raises UsageError if only some are set or one is not a number.
    """
    env = os.environ if variables is None else variables
    if PLACE in env:
        said = json.loads(env[PLACE])
        node_of, nodes, crew = (tuple(said.pop(name, ())) for name in ("node_of", "nodes", "crew"))
        becomes = tuple(said.pop("becomes", None) or ()) or None
        return Place(**said, node_of=node_of, nodes=nodes, becomes=becomes, crew=crew)
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in env]
    if "RANK" in missing or "WORLD_SIZE" in missing:
        return task_of_slurm(env)
    if missing:
        raise UsageError(f"the launcher has set RANK and WORLD_SIZE but not {', '.join(missing)}")
    run = env.get("TORCHELASTIC_RUN_ID", "job")
    world_size = _number(env, "WORLD_SIZE")
    local_world_size = _number(env, "LOCAL_WORLD_SIZE", env["WORLD_SIZE"])
    hosts = _number(env, "GROUP_WORLD_SIZE", "1")
    alike = hosts * local_world_size == world_size
    return Place(
        rank=_number(env, "RANK"),
        world_size=world_size,
        local_rank=_number(env, "LOCAL_RANK", env["RANK"]),
        local_world_size=local_world_size,
        address=env["MASTER_ADDR"],
        port=_number(env, "MASTER_PORT"),
        agent_keeps_store=env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        job=f"{run}/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}",
        node_of=_nodes([local_world_size] * hosts) if alike else (),
    )


def task_of_slurm(variables: Mapping[str, str] | None = None) -> Place | None:
    """The place of a task among several that one srun has started; None for anything else.

    A process that torchrun has started in such a task is none.

    The first task's host is where they meet, unless MASTER_ADDR and MASTER_PORT say otherwise.
    """
    env = os.environ if variables is None else variables
    alone = int(env.get("SLURM_STEP_NUM_TASKS", "1")) < 2
    if alone or "SLURM_PROCID" not in env or "RANK" in env:
        return None
    nodes = names(env["SLURM_STEP_NODELIST"])
    # The first part of a heterogeneous job has the first tasks, wherever its nodes are in the list.
    first = names(env.get("SLURM_JOB_NODELIST_HET_GROUP_0", ""))[:1] or nodes[:1]
    in_order = first == nodes[:1] or first[0] not in nodes
    tasks = counts(env["SLURM_STEP_TASKS_PER_NODE"])
    job, step = int(env["SLURM_JOB_ID"]), int(env["SLURM_STEP_ID"])
    node = int(env["SLURM_NODEID"])
    in_blocks = env.get("SLURM_DISTRIBUTION", "block").startswith("block")
    life = env.get("SLURM_RESTART_COUNT", "0")
    return Place(
        rank=int(env["SLURM_PROCID"]),
        world_size=sum(tasks),
        local_rank=int(env["SLURM_LOCALID"]),
        local_world_size=tasks[node],
        address=env.get("MASTER_ADDR", nodes[0] if in_order else first[0]),
        port=_number(env, "MASTER_PORT", str(_FIRST_PORT + (job * 7 + step) % _PORTS)),
        agent_keeps_store=False,
        job=f"slurm-{job}.{step}/{life}",
        node_of=_nodes(tasks) if in_blocks and in_order else (),
        nodes=tuple(nodes),
    )


def _nodes(processes: Sequence[int]) -> tuple[int, ...]:
    """The host of each process, where hosts have so many, one host's after another's."""
    return tuple(node for node, count in enumerate(processes) for _ in range(count))


def launched_at() -> float | None:
    """When the user's command began, in seconds since 1970, if our launcher said so."""
    said = os.environ.get(LAUNCHED_AT)
    return float(said) if said else None


def failure_file() -> str | None:
    """Where our launcher wants the one line that says why a process failed."""
    return os.environ.get(FAILURE_FILE)


def over_file() -> str | None:
    """Where our launcher says that the job is over."""
    return os.environ.get(OVER_FILE)


def launcher() -> int | None:
    """The process id of our launcher, if it started this process."""
    said = os.environ.get(LAUNCHER)
    return int(said) if said else None


def use_interface(name: str) -> None:
    """Let TensorPipe listen on this network interface, unless one was chosen before."""
    os.environ.setdefault(INTERFACE, name)


def choose_interface(name: str) -> None:
    """Let all of torch listen on this network interface, here and in children."""
    os.environ.update(dict.fromkeys(_INTERFACES, name))


def interface() -> str | None:
    """The network interface that the user's variables chose to listen on, if any."""
    return os.environ.get(INTERFACE)


def secret() -> tuple[str | None, str | None]:
    """The user's secret, and the file that has it, where the environment gives one."""
    return os.environ.get(SECRET) or None, os.environ.get(SECRET_FILE) or None


_SLURM = ("SLURM_JOB_ID", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_JOB_PARTITION", "SLURM_NODELIST")


def slurm() -> dict[str, str]:
    """What SLURM says of the job that this process is in; empty if it is in none."""
    found = {name: os.environ[name] for name in _SLURM if name in os.environ}
    return found if "SLURM_JOB_ID" in found else {}


def for_children(**variables: str) -> None:
    """Set variables that child processes shall see."""
    os.environ.update(variables)


def cluster() -> str | None:
    """The address of the cluster of actors that the user wants to use, if any."""
    return os.environ.get(CLUSTER) or None


def show_gpus(indices: tuple[int, ...]) -> None:
    """Let this process use these GPUs, of those that it could use; before CUDA is begun."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (
        visible.split(",")
        if visible
        else [str(index) for index in range(max(indices, default=-1) + 1)]
    )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[index] for index in indices)


def torch_defaults() -> dict[str, str]:
    """What torch shall find when it is loaded, unless the user has set it."""
    # Torch's C++ side logs lost connections as warnings; what matters of them is reported.
    return unless_set({"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"})


def with_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, with `variables` set."""
    return {**os.environ, **variables}


def unless_set(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of `variables` that the user has not set."""
    return {name: value for name, value in variables.items() if name not in os.environ}


def agent() -> tuple[int, list[str], float, bool]:
    """What the agent of one role shall run: how many restarts, python's arguments, its patience.

    The last is whether a terminal's Ctrl-C is its launcher's alone to hear.
    """
    restarts, command, patience_s, apart = json.loads(os.environ[AGENT])
    return int(restarts), [str(argument) for argument in command], float(patience_s), bool(apart)


def model_endpoint() -> tuple[str | None, str | None]:
    """The key and the base URL of the model that the user's environment names, if any."""
    return os.environ.get("OPENAI_API_KEY") or None, os.environ.get("OPENAI_BASE_URL") or None


def _number(env: Mapping[str, str], name: str, default: str = "") -> int:
    text = env.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"the launcher has set {name} to {text!r}, not a number") from None
