"""The three ways to keep workers together: one rule, three bounds.

Every worker has a *clock*, the number of its finished steps. A worker may start
its next step only while its clock is at most `bound` ahead of the slowest live
worker's. Synchronous training is the bound 0 with one optimizer step for each
round of gradients; bounded staleness (stale synchronous parallel, Ho et al.,
"More Effective Distributed ML via a Stale Synchronous Parallel Parameter
Server", NeurIPS 2013) is the bound K with one optimizer step for each push;
asynchronous training has no bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from psrpc.errors import UsageError


class Aggregation(Enum):
    """How pushes become optimizer steps."""

    ROUND = "round"  # one step for the gradients of all workers at one clock
    PUSH = "push"  # one step for every push, as it comes


class Reduction(Enum):
    """How the gradients of one round become one gradient."""

    MEAN = "mean"  # weighted by samples, so it equals the mean over one large batch
    SUM = "sum"  # added up


@dataclass(frozen=True)
class Mode:
    """A consistency rule; use one of its subclasses."""

    @property
    def name(self) -> str:
        """The name that `--mode` knows: sync, bounded or async."""
        raise NotImplementedError

    @property
    def bound(self) -> int | None:
        """How many clocks a worker may start ahead of the slowest; None: any number."""
        raise NotImplementedError

    @property
    def aggregation(self) -> Aggregation:
        """What one optimizer step is made of."""
        return Aggregation.PUSH

    @property
    def backups(self) -> int:
        """How many workers' pushes a round does without."""
        return 0


@dataclass(frozen=True)
class Synchronous(Mode):
    """All workers take each step together, from the same weights.

    With `backup_workers`, B, a round of n workers is complete with the first n - B pushes (at
    least one), and drops those that come later; their samples are done again. Source: Chen et
    al., "Revisiting Distributed Synchronous SGD", arXiv 1604.00981, section 3.
    """

    backup_workers: int = 0
    name = "sync"
    bound = 0
    aggregation = Aggregation.ROUND

    def __post_init__(self) -> None:
        if isinstance(self.backup_workers, bool) or not isinstance(self.backup_workers, int):
            raise UsageError(f"backup_workers must be a whole number, not {self.backup_workers!r}")
        if self.backup_workers < 0:
            raise UsageError(f"backup_workers must be 0 or more, not {self.backup_workers}")

    @property
    def backups(self) -> int:
        """The backup workers."""
        return self.backup_workers


@dataclass(frozen=True)
class BoundedStaleness(Mode):
    """No worker starts a step more than `staleness` clocks ahead of the slowest."""

    staleness: int = 4
    name = "bounded"

    def __post_init__(self) -> None:
        if isinstance(self.staleness, bool) or not isinstance(self.staleness, int):
            raise UsageError(f"staleness must be a whole number, not {self.staleness!r}")
        if self.staleness < 0:
            raise UsageError(f"staleness must be 0 or more, not {self.staleness}")

    @property
    def bound(self) -> int:
        """The staleness."""
        return self.staleness


@dataclass(frozen=True)
class Asynchronous(Mode):
    """Nobody waits for anybody."""

    name = "async"
    bound = None


class OnFailure(Enum):
    """What a worker's death means for the job."""

    CONTINUE = "continue"
    STOP = "stop"


class OnPoison(Enum):
    """What becomes of a lease at one step of which three workers in a row have died."""

    STOP = "stop"  # the job ends
    SKIP = "skip"  # its samples are given up, and counted as such
