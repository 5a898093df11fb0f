"""What a job is: the settings that all its nodes share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from psrpc.core.seats import Placement
from psrpc.errors import ConfigError
from psrpc.modes import Aggregation, Mode, OnFailure, OnPoison, Reduction, Synchronous

PROTOCOL = 5


class NonFinite(Enum):
    """What to do with a step whose gradients hold NaN or Inf."""

    ERROR = "error"
    SKIP = "skip"


class PlaneChoice(Enum):
    """How gradients and weights shall travel."""

    AUTO = "auto"  # shared memory to servers on the worker's own host, RPC to others
    RPC = "rpc"  # RPC to all
    SHM = "shm"  # shared memory to all; an error if one is on another host
    COLLECTIVE = "collective"  # process groups of each server and its workers; synchronous only


class Backend(Enum):
    """What carries the collective plane's process groups."""

    GLOO = "gloo"  # CPUs, over TCP
    NCCL = "nccl"  # GPUs; every process needs one of its own, servers included


@dataclass(frozen=True)
class Elastic:
    """How a job deals with workers that come and go.

    It begins when all workers have come, or `min_workers` of them if that is given. One whose
    connection ends, or that is silent for `dead_after_s`, is taken for dead; `on_failure` is
    whether the job goes on ("continue") or ends ("stop"). If fewer than `min_workers` (None: 1)
    are left and nobody comes within `rejoin_timeout_s`, the job ends. The samples of a lease
    that has killed three workers in a row end the job, or are skipped (`on_poison`: "stop" or
    "skip"). Times are in seconds.
    """

    min_workers: int | None = None
    on_failure: str = "continue"
    on_poison: str = "stop"
    dead_after_s: float = 10.0
    rejoin_timeout_s: float = 60.0

    def problems(self, workers: int) -> list[str]:
        """A sentence for each value that cannot be."""
        problems = []
        if self.min_workers is not None and not 1 <= self.min_workers <= workers:
            problems.append(
                f"min_workers must be 1 to {workers} (the workers), not {self.min_workers}"
            )
        choices: tuple[tuple[str, str, type[Enum]], ...] = (
            ("on_failure", self.on_failure, OnFailure),
            ("on_poison", self.on_poison, OnPoison),
        )
        for name, value, kind in choices:
            known = [str(member.value) for member in kind]
            if value not in known:
                problems.append(f"{name} must be one of {', '.join(known)}, not {value!r}")
        times = (("dead_after_s", self.dead_after_s), ("rejoin_timeout_s", self.rejoin_timeout_s))
        problems += [f"{name} must be above 0 s, not {s:g}" for name, s in times if not s > 0]
        return problems


def check_alike(
    theirs: Sequence[tuple[str, str]], ours: Sequence[tuple[str, str]], who: str
) -> None:
    """Raise ConfigError with all settings that `who` has otherwise than the server."""
    known = dict(ours)
    differing = [
        f"{name} is {text} on {who} and {known[name]} on the server"
        for name, text in theirs
        if known.get(name, text) != text
    ]
    if differing:
        raise ConfigError(f"{line}; give every process the same" for line in differing)


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often a job's checkpoints are written, and what it goes on from.

    One is made every `every_s` seconds, or every `every_updates` updates of the first shard,
    and one at the job's end (neither: only a resumed job reads `directory`, nothing is
    written). The newest `keep` stay. `resume` is "never", "auto" (the newest good one in
    `directory`; none is no error), or the folder of one. If servers are `revived`, the job goes
    back to its newest checkpoint when one without a backup dies, as soon as its launcher has
    started it again: `psrpc launch --revived`. Every process needs a launcher of its own then,
    and the store one that stays.
    """

    directory: str
    every_s: float | None = 60.0
    every_updates: int | None = None
    keep: int = 3
    resume: str = "never"
    revived: bool = False

    @property
    def writes(self) -> bool:
        """Whether checkpoints are made."""
        return self.every_s is not None or self.every_updates is not None

    def problems(self) -> list[str]:
        """A sentence for each value that cannot be."""
        problems = []
        directory: object = self.directory
        resume: object = self.resume
        if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
            problems.append("a checkpoint's directory needs a name")
        if not isinstance(resume, str | os.PathLike):
            problems.append(f'resume is "never", "auto" or a folder, not {self.resume!r}')
        if self.every_s is not None and not self.every_s > 0:
            problems.append(f"every_s must be above 0 s, not {self.every_s:g}")
        if self.every_updates is not None and self.every_updates < 1:
            problems.append(f"every_updates must be 1 or more, not {self.every_updates}")
        if self.keep < 1:
            problems.append(f"at least 1 checkpoint must be kept, not {self.keep}")
        return problems


@dataclass(frozen=True)
class Hosts:
    """How a job lies on its hosts.

    `interface` is the network interface, or its address, on which this process listens: its RPC
    agent, its connections beside RPC, and its process groups (None: on one host the loopback
    interface, on several the one whose route leads to the coordinator). `placement` says where
    servers are: "pack" (on as few hosts as they need), "spread" (in turn on each) or "colocate" (as
    many on each host as on any other, and workers beside them). `address_file` is a file in which
    the job leaves its address for `psrpc join`.
    """

    interface: str | None = None
    placement: str = Placement.PACK.value
    address_file: str | None = None

    def problems(self) -> list[str]:
        """A sentence for each value that cannot be."""
        known = [member.value for member in Placement]
        if self.placement in known:
            return []
        return [f"placement must be one of {', '.join(known)}, not {self.placement!r}"]


@dataclass(frozen=True)
class Job:
    """A job's settings. `seed` orders samples and starts models.

    Each of the `servers` shards has `replicas` backups beside its primary.
    With `overlap` a worker computes its next step while the last one's gradients are on
    their way; its weights are then one step older.
    """

    workers: int
    servers: int = 1
    mode: Mode = field(default_factory=Synchronous)
    reduction: Reduction = Reduction.MEAN
    nonfinite: NonFinite = NonFinite.ERROR
    plane: PlaneChoice = PlaneChoice.AUTO
    overlap: bool = False
    seed: int = 0
    start_timeout_s: float = 300.0
    backend: Backend = Backend.GLOO
    collective_timeout_s: float = 30.0
    elastic: Elastic = field(default_factory=Elastic)
    checkpointing: Checkpointing | None = None
    hosts: Hosts = field(default_factory=Hosts)
    replicas: int = 0

    @property
    def server_processes(self) -> int:
        """How many processes serve: the first ranks, all shards' primaries before the backups."""
        return self.servers * (1 + self.replicas)

    def check(self) -> None:
        """Raise ConfigError with all that is wrong."""
        if problems := self.problems():
            raise ConfigError(problems)

    def problems(self) -> list[str]:
        """All that is wrong, a sentence each."""
        problems = []
        if self.servers < 1:
            problems.append(f"a job needs at least 1 server, not {self.servers}")
        if self.workers < 1:
            problems.append(f"a job needs at least 1 worker, not {self.workers}")
        problems += self._problems_of_mode(self.mode)
        problems += self._problems_of_replicas()
        if self.collective_timeout_s <= 0:
            problems.append(
                f"the collective timeout must be above 0 s, not {self.collective_timeout_s}"
            )
        problems += self.elastic.problems(self.workers)
        if self.checkpointing is not None:
            problems += self.checkpointing.problems()
        problems += self.hosts.problems()
        if self.start_timeout_s <= 0:
            problems.append(f"the start timeout must be above 0 s, not {self.start_timeout_s}")
        return problems

    def _problems_of_mode(self, mode: object) -> list[str]:
        if not isinstance(mode, Mode):
            return [
                f"mode must be psrpc.Synchronous(), psrpc.Asynchronous() or "
                f"psrpc.BoundedStaleness(k), not {mode!r}"
            ]
        problems = []
        if self.overlap and mode.bound == 0:
            problems.append(
                "overlap makes weights one step older, which this mode forbids: choose "
                "Asynchronous() or BoundedStaleness(k) with k of 1 or more"
            )
        if self.plane is PlaneChoice.COLLECTIVE and mode.aggregation is not Aggregation.ROUND:
            problems.append(
                f"the collective plane is for synchronous training, not for {mode!r}: use "
                "mode Synchronous() (--mode sync) or another plane (auto, rpc, shm)"
            )
        if mode.backups and mode.backups >= self.workers:
            problems.append(
                f"{mode.backups} backup workers leave none of {self.workers} workers: give fewer "
                f"than {self.workers}"
            )
        if mode.backups and self.plane is PlaneChoice.COLLECTIVE:
            problems.append(
                "the collective plane adds up the gradients of all workers, so it cannot do "
                "without backup workers: give none, or another plane (auto, rpc, shm)"
            )
        return problems

    def _problems_of_replicas(self) -> list[str]:
        if isinstance(self.replicas, bool) or self.replicas not in (0, 1):
            return [f"replicas must be 0 or 1, not {self.replicas!r}"]
        return []

    @property
    def goes_back(self) -> bool:
        """Whether a server that dies takes the job back to its newest checkpoint."""
        plan = self.checkpointing
        return not self.replicas and plan is not None and plan.revived and plan.writes

    @property
    def unscalable(self) -> str:
        """Why servers cannot be added or removed while the job runs; empty if they can."""
        if self.plane is PlaneChoice.COLLECTIVE:
            return "its plane is collective, whose groups are made for the servers of its start"
        if self.goes_back:
            return (
                "its servers come back to a checkpoint when one dies, with the number of its "
                "start: start it without --isolate, or without --checkpoint-dir"
            )
        return ""

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """What a worker and a server must have alike, as pairs of name and text."""
        return (
            ("mode", str(self.mode)),
            ("servers", str(self.servers)),
            ("replicas", str(self.replicas)),
            ("workers", str(self.workers)),
            ("reduction", self.reduction.value),
            ("plane", self.plane.value),
            ("overlap", str(self.overlap)),
            ("backend", self.backend.value),
            ("seed", str(self.seed)),
            ("revived", str(self.goes_back)),
        )
