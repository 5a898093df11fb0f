"""`psrpc.run`: from a launcher's environment to a finished job."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import nn

from psrpc import environment
from psrpc.arguments import wrong_arguments
from psrpc.core.seats import Placement
from psrpc.display import ProgressLine
from psrpc.environment import Place
from psrpc.errors import ConfigError, JobOverError, ModelError, PsrpcError, UsageError
from psrpc.hosted import note_run
from psrpc.interrupts import Interrupts
from psrpc.job import Backend, Checkpointing, Elastic, Hosts, Job, NonFinite, PlaneChoice
from psrpc.lives import LifeNode
from psrpc.lobby import publish_lobby
from psrpc.modes import Mode, Reduction, Synchronous
from psrpc.nodes import ServerNode
from psrpc.planes import groups
from psrpc.planes.groups import Fabric
from psrpc.rendezvous import Rendezvous
from psrpc.replicas import ReplicaNode
from psrpc.report import Report
from psrpc.rollcall import RollCall
from psrpc.saying import one_line_errors
from psrpc.seating import check_crew, fellow_workers, role, seated
from psrpc.spares import spare_node
from psrpc.store.blueprint import Blueprint, GroupsFactory, OptimizerFactory, draw
from psrpc.worker import Worker
from psrpc.working import WorkerNode


class Role(Enum):
    """What a process does in the job."""

    SERVER = "server"
    WORKER = "worker"


@dataclass(frozen=True)
class Result:
    """What `run` returns in each process.

    `is_main` is true in exactly one process, the worker of lowest rank that trained to the
    end and has not died since. On workers `model` is the
    trained model (final weights, the workers' mean buffers) and `report` the
    job's counts; both are None on servers. `plane` names how this worker's gradients
    and weights travelled: "rpc", "shm", both joined by a plus, or "collective".
    """

    role: Role
    rank: int
    model: nn.Module | None = None
    report: Report | None = None
    plane: str = ""
    is_main: bool = False


def run(
    train: Callable[[Worker], Any],
    *,
    model: nn.Module | Callable[[], nn.Module],
    optimizer: OptimizerFactory,
    mode: Mode | None = None,
    servers: int = 1,
    replicas: int = 0,
    param_groups: GroupsFactory | None = None,
    reduction: str = "mean",
    nonfinite: str = "error",
    plane: str = "auto",
    overlap: bool = False,
    backend: str | None = None,
    collective_timeout_s: float = 30.0,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    start_timeout_s: float = 300.0,
    elastic: Elastic | None = None,
    checkpointing: Checkpointing | None = None,
    hosts: Hosts | None = None,
    progress: bool = False,
    progress_samples: int | None = None,
) -> Result:
    """Take this process's part in a job of torchrun or psrpc launch; blocks until that is done.

    The first `servers` ranks serve parameters, as many more are their backups with `replicas=1`,
    each of the others calls `train(worker)`. `model` is a module, or a class or function that makes
    one; the servers' own weights become everybody's. `optimizer` is called with parameters, as
    `functools.partial(torch.optim.SGD, lr=0.1)` is; any torch.optim class that needs no closure
    will do. `param_groups(model)` returns the groups to give it instead of `model.parameters()`.
    `mode` is `Synchronous()` (the default), `BoundedStaleness(k)` or `Asynchronous()`. `reduction`
    ("mean" by samples, or "sum") joins the gradients of a synchronous round. `nonfinite` is what
    becomes of a step with NaN or Inf in its gradients: "error" or "skip". `plane` is "auto" (shared
    memory to servers on the same host, RPC to others), "rpc", "shm" or, in synchronous mode,
    "collective": each server and its workers share process groups of `backend` "gloo" (the default)
    or "nccl" (a GPU for every process), new ones when a member dies or is still for
    `collective_timeout_s`. With `overlap` a worker computes its next step while the last one's
    gradients travel; the mode's bound counts that step, so it must be 1 or more. `device` is "auto"
    (CUDA where there is any), "cpu" or "cuda"; servers compute on the CPU. `threads` are torch's in
    this process. `elastic`, `checkpointing` and `hosts` are as `Elastic`, `Checkpointing` and
    `Hosts` say. SIGTERM and SIGINT let a worker finish its step, give its samples back and leave.

    Raises UsageError, ModelError, OptimizerError, StartTimeoutError, JobFailedError, `train`'s own.
    """
    try:
        place = _place(wrong_arguments(train, model, seed, checkpointing, elastic, hosts))
        names = {"reduction": reduction, "nonfinite": nonfinite, "plane": plane}
        names |= {"device": device} | ({} if backend is None else {"backend": backend})
        timeouts_s = {"start": start_timeout_s, "collective": collective_timeout_s}
        shards, life = (servers, replicas), elastic or Elastic()
        job = _job(place, shards, mode, names, overlap, seed, timeouts_s, life)
        job = _with_checkpoints(job, place, checkpointing, hosts or Hosts())
        _compute_with(threads)
        watch = _Watch(progress, progress_samples)
        return _take_part(job, place, train, model, optimizer, param_groups, device, watch)
    except (PsrpcError, KeyboardInterrupt):
        one_line_errors()
        raise


def _take_part(
    job: Job,
    place: Place,
    train: Callable[[Worker], Any],
    model: nn.Module | Callable[[], nn.Module],
    optimizer: OptimizerFactory,
    param_groups: GroupsFactory | None,
    device: str,
    watch: _Watch,
) -> Result:
    if os.getpid() in _TOOK_PART:
        raise UsageError(
            "psrpc.run was called before in this process, which can take part in one job only: "
            "train several models as one (torch.nn.ModuleDict), or start another job"
        )
    place = seated(place, job.servers, job.replicas, Placement(job.hosts.placement))
    # A group on GPUs has given every server one as well.
    target = _device(device, place, 0 if job.backend is Backend.NCCL else job.server_processes)
    built = _build(model, job.seed)
    blueprint = draw(built, optimizer, param_groups)
    try:
        with (
            Interrupts() as interrupts,
            _rendezvous(job, place) as rendezvous,
            RollCall(rendezvous, place, job.servers, job.replicas) as roll,
        ):
            fabric = _fabric(job, place, rendezvous)
            _TOOK_PART.add(os.getpid())
            rendezvous.named = lambda key: _named(key, roll)
            if place.rank == 0:
                publish_lobby(rendezvous, job, place)
            if place.serves(job.server_processes):
                helpers = _Helpers(interrupts, watch, roll)
                return _serve(job, place, built, blueprint, fabric, rendezvous, helpers)
            built.to(target)
            return _work(train, job, place, built, blueprint, fabric, rendezvous, interrupts)
    except JobOverError as over:
        print(f"psrpc: the job has ended: {over}", file=sys.stderr)
        return Result(Role.WORKER, place.rank, built)


def _place(problems: list[str]) -> Place:
    note_run()
    if problems:
        raise ConfigError(problems)
    place = environment.place()
    if place is None:
        raise UsageError(
            "psrpc.run must be started by torchrun: torchrun --nproc-per-node=3 script.py "
            "(the first `servers` processes serve, the rest work), or by psrpc launch script.py"
        )
    return place


@dataclass(frozen=True)
class _Watch:
    wanted: bool
    total_samples: int | None

    def over(self, node: ServerNode) -> AbstractContextManager[object]:
        if not self.wanted or node.coordinator is None:
            return nullcontext()
        return ProgressLine(node.coordinator.meter, self.total_samples)


@dataclass(frozen=True)
class _Helpers:
    """What goes on beside a server."""

    interrupts: Interrupts
    watch: _Watch
    roll: RollCall


_TOOK_PART: set[int] = set()  # processes, of which this may be a fork
_CHOICES: dict[str, type[Enum]] = {
    "reduction": Reduction,
    "nonfinite": NonFinite,
    "plane": PlaneChoice,
    "backend": Backend,
}
_DEVICES = ("auto", "cpu", "cuda")


def _job(
    place: Place,
    shards: tuple[int, int],
    mode: Mode | None,
    names: Mapping[str, str],
    overlap: bool,
    seed: int,
    timeouts_s: Mapping[str, float],
    elastic: Elastic,
) -> Job:
    """The job of these settings: `shards` are servers and replicas.

    Raises ConfigError with all that is wrong in a call of `run`.
    """
    servers, replicas = shards
    problems = _unknown_names(names)
    chosen: dict[str, Any] = {
        name: kind(names[name])
        for name, kind in _CHOICES.items()
        if names.get(name) in [member.value for member in kind]
    }
    plane = chosen.get("plane", PlaneChoice.COLLECTIVE)  # an unknown one is said above
    if "backend" in names and plane is not PlaneChoice.COLLECTIVE:
        problems.append(
            f"backend belongs to the collective plane, not to {plane.value}: give "
            'plane="collective" as well, or no backend'
        )
    if isinstance(servers, bool) or not isinstance(servers, int):
        problems.append(f"servers must be a whole number, not {servers!r}")
        servers = 1
    serving = servers * (2 if replicas == 1 else 1)
    if 1 <= serving >= place.world_size:
        backups = f" with {servers} backups" if replicas == 1 else ""
        problems.append(
            f"{place.world_size} processes cannot hold {servers} servers{backups} and a worker: "
            f"start at least {serving + 1} (torchrun --nproc-per-node={serving + 1})"
        )
    job = Job(
        max(place.world_size - serving, 1),
        servers,
        Synchronous() if mode is None else mode,
        overlap=overlap,
        seed=seed,
        start_timeout_s=timeouts_s["start"],
        collective_timeout_s=timeouts_s["collective"],
        elastic=elastic,
        replicas=replicas,
        **chosen,
    )
    problems += job.problems()
    problems += _missing_gpus(job, place, names["device"])
    if problems:
        raise ConfigError(problems)
    return job


def _compute_with(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _rendezvous(job: Job, place: Place) -> Rendezvous:
    who = "a new process" if place.joins else role(place.rank, job.servers, job.replicas)
    # Who joins `psrpc train` has the options of the job, which may name another host's interface.
    wanted = None if place.joins else job.hosts.interface
    return Rendezvous(place, job.start_timeout_s, wanted=wanted, who=who)


def _named(key: str, roll: RollCall) -> str:
    """What a server's key in the store is called: "server 1 on node2"."""
    number = key.partition("/")[0].removeprefix("server")
    return roll.name(int(number)) if number.isdigit() else key


def _with_checkpoints(
    job: Job, place: Place, checkpointing: Checkpointing | None, hosts: Hosts
) -> Job:
    job = replace(job, checkpointing=checkpointing, hosts=hosts)
    job.check()
    check_crew(place, job.servers, job.replicas, goes_back=job.goes_back)
    return job


def _unknown_names(names: Mapping[str, str]) -> list[str]:
    known = {name: [member.value for member in kind] for name, kind in _CHOICES.items()}
    known["device"] = list(_DEVICES)
    return [
        f"{name} must be one of {', '.join(known[name])}, not {value!r}"
        for name, value in names.items()
        if value not in known[name]
    ]


def _missing_gpus(job: Job, place: Place, device: str) -> list[str]:
    problems: list[str] = []
    try:
        groups.check(job.backend, place.local_world_size)
    except ConfigError as error:
        problems += error.problems
    if device == "cuda" and not torch.cuda.is_available():
        problems.append("device is cuda, but torch finds no usable GPU here")
    return problems


def _fabric(job: Job, place: Place, rendezvous: Rendezvous) -> Fabric:
    device = groups.device_of(job.backend, place.local_rank)
    own = rendezvous.interface
    if own is not None:
        environment.choose_interface(own.name)
    host = None if own is None else own.address
    return Fabric(job.backend, job.collective_timeout_s, device, place.one_host, host)


def _device(name: str, place: Place, servers: int) -> torch.device:
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", fellow_workers(place, servers) % torch.cuda.device_count())


def _build(model: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    built = model if isinstance(model, nn.Module) else model()
    if not isinstance(built, nn.Module):
        raise ModelError(
            f"model= must be a torch.nn.Module, or a class or function that makes one; it made "
            f"{type(built).__name__}"
        )
    return built


def _serve(
    job: Job,
    place: Place,
    model: nn.Module,
    blueprint: Blueprint,
    fabric: Fabric,
    rendezvous: Rendezvous,
    helpers: _Helpers,
) -> Result:
    if place.becomes is not None:
        spare = spare_node(job, place.becomes, model, blueprint, fabric)
        helpers.interrupts.ask_first(spare.ask_to_stop)
        spare.serve(rendezvous)
        return Result(Role.SERVER, place.rank)
    if job.replicas:
        index, first = place.rank % job.servers, place.rank < job.servers
        pair = ReplicaNode(job, index, model, blueprint, fabric, first=first)
        pair.reigning = lambda: helpers.watch.over(pair)
        _make_ready(pair, helpers)
        pair.serve(rendezvous)
        return Result(Role.SERVER, place.rank)
    parts = (job, place.rank, model, blueprint, fabric)
    node = LifeNode(*parts, rendezvous) if job.goes_back else ServerNode(*parts)
    _make_ready(node, helpers)
    with helpers.watch.over(node):
        node.serve(rendezvous)
    return Result(Role.SERVER, place.rank)


def _make_ready(node: ServerNode, helpers: _Helpers) -> None:
    """It is asked before it is interrupted; and the roll is called until the job has begun."""
    helpers.interrupts.ask_first(node.ask_to_stop)
    coordinator, roll = node.coordinator, helpers.roll
    if coordinator is not None:
        roll.begun = lambda: coordinator.core.members.started
    node.name_of = lambda worker: roll.name(node.job.server_processes + worker)


def _work(
    train: Callable[[Worker], Any],
    job: Job,
    place: Place,
    model: nn.Module,
    blueprint: Blueprint,
    fabric: Fabric,
    rendezvous: Rendezvous,
    interrupts: Interrupts,
) -> Result:
    rank = None if place.joins else place.rank - job.server_processes
    # From here on workers draw their own random numbers (dropout, augmentation).
    torch.manual_seed(job.seed + 1 + (rank if rank is not None else os.getpid()))
    node = WorkerNode(job, rank, model, blueprint, fabric)
    interrupts.ask_first(node.ask_to_leave)
    report = node.train(train, rendezvous)
    assert node.worker is not None
    return Result(Role.WORKER, node.worker.rank, model, report, node.plane, node.worker.main)
