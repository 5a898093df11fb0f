"""What the launcher says about this process. The only module that reads the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from psrpc.errors import UsageError

LAUNCHED_AT = "PSRPC_LAUNCHED_AT"
FAILURE_FILE = "PSRPC_FAILURE_FILE"
OVER_FILE = "PSRPC_OVER_FILE"
LAUNCHER = "PSRPC_LAUNCHER"
PLACE = "PSRPC_PLACE"
AGENT = "PSRPC_AGENT"
CLUSTER = "PSRPC_CLUSTER"
INTERFACE = "TP_SOCKET_IFNAME"


JOINS = -1


@dataclass(frozen=True)
class Place:
    """A process's place among those that torchrun (or any env:// launcher) started.

    `rank` is `JOINS` for one that comes to a job that runs already.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int
    agent_keeps_store: bool
    job: str

    @property
    def joins(self) -> bool:
        """Whether this process joins a job that runs already, as a worker."""
        return self.rank == JOINS

    def serves(self, servers: int) -> bool:
        """Whether this process is a server, in a job that has `servers` processes of that kind."""
        return 0 <= self.rank < servers

    @property
    def one_host(self) -> bool:
        """Whether all processes of the job run on this host."""
        return self.local_world_size == self.world_size


def place(variables: Mapping[str, str] | None = None) -> Place | None:
    """Read the place from `RANK`, `WORLD_SIZE`, ...; None if no launcher has set them.

    Where every role has a launcher of its own, `PSRPC_PLACE` counts in place of those.
    Raises UsageError if only some are set or one is not a number.
    """
    env = os.environ if variables is None else variables
    if PLACE in env:
        return Place(**json.loads(env[PLACE]))
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in env]
    if "RANK" in missing or "WORLD_SIZE" in missing:
        return None
    if missing:
        raise UsageError(f"the launcher has set RANK and WORLD_SIZE but not {', '.join(missing)}")
    run = env.get("TORCHELASTIC_RUN_ID", "job")
    return Place(
        rank=_number(env, "RANK"),
        world_size=_number(env, "WORLD_SIZE"),
        local_rank=_number(env, "LOCAL_RANK", env["RANK"]),
        local_world_size=_number(env, "LOCAL_WORLD_SIZE", env["WORLD_SIZE"]),
        address=env["MASTER_ADDR"],
        port=_number(env, "MASTER_PORT"),
        agent_keeps_store=env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        job=f"{run}/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}",
    )


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
    """Let TensorPipe listen on this network interface, unless the user chose one."""
    os.environ.setdefault(INTERFACE, name)


def interface() -> str | None:
    """The network interface that the user chose to listen on, if any."""
    return os.environ.get(INTERFACE)


def for_children(**variables: str) -> None:
    """Set variables that child processes shall see."""
    os.environ.update(variables)


def cluster() -> str | None:
    """The address of the cluster of actors that the user wants to use, if any."""
    return os.environ.get(CLUSTER)


def show_gpus(indices: tuple[int, ...]) -> None:
    """Let this process use these GPUs, of those that it could use; before CUDA is begun."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (
        visible.split(",")
        if visible
        else [str(index) for index in range(max(indices, default=-1) + 1)]
    )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[index] for index in indices)


def with_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, with `variables` set."""
    return {**os.environ, **variables}


def unless_set(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of `variables` that the user has not set."""
    return {name: value for name, value in variables.items() if name not in os.environ}


def agent() -> tuple[int, list[str]]:
    """What the agent of one role shall run: how many restarts, and python's arguments."""
    restarts, command = json.loads(os.environ[AGENT])
    return int(restarts), [str(argument) for argument in command]


def model_endpoint() -> tuple[str | None, str | None]:
    """The key and the base URL of the model that the user's environment names, if any."""
    return os.environ.get("OPENAI_API_KEY") or None, os.environ.get("OPENAI_BASE_URL") or None


def _number(env: Mapping[str, str], name: str, default: str = "") -> int:
    text = env.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"the launcher has set {name} to {text!r}, not a number") from None
