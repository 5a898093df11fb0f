"""What servers and the coordinator say to each other, beside what workers say."""

from __future__ import annotations

from dataclasses import dataclass

from psrpc.messages import Lease, Reply, Request, View


@dataclass(frozen=True)
class Watch(Request):
    """A server's word: what is new, please? `worker` is the server.

    It knows the view numbered `epoch`, has heard `cuts` words about cuts, and, where shard 0
    decides that, what the rounds before `rounds` are made of. `clocks` are those that it has
    halted at for the cut `halted`; if that is for a new layout, it gives its rows away at `giver`.
    It is one of the servers of `layout`.
    """

    epoch: int
    cuts: int = 0
    rounds: int = 0
    halted: int | None = None
    clocks: tuple[tuple[int, int], ...] = ()
    giver: str = ""
    layout: int = 0


@dataclass(frozen=True)
class Closed(Reply):
    """The round of `clock` is made of the pushes of `workers`, and of no others, on every shard."""

    clock: int
    workers: tuple[int, ...]


@dataclass(frozen=True)
class PutPart(Request):
    """A server's part of a checkpoint is written, or (`error`) cannot be. `worker` is the server.

    `part` is what `Part.to_json` gave. With `lost`, whoever was to write it is gone, and nobody
    does if it is not written.
    """

    number: int
    part: object = None
    error: str = ""
    lost: bool = False


@dataclass(frozen=True)
class Cut(Reply):
    """Where the job is cut: of each stepping worker, the steps before its clock here.

    `number` is the cut's, `view` who is stepping. For a checkpoint `folder` is where it is
    written. For a new `layout`, of `servers`, `givers` are where those of the present one give
    their rows away, and `skipped` what was given up of leases: nobody has it again. With neither, a
    cut of this number that is not made yet is given up.
    """

    number: int
    clocks: tuple[tuple[int, int], ...] = ()
    folder: str = ""
    view: View | None = None
    layout: int = 0
    servers: int = 0
    givers: tuple[str, ...] = ()
    skipped: tuple[Lease, ...] = ()

    @property
    def given_up(self) -> bool:
        """Whether nobody is to wait for this cut any more."""
        return not self.folder and not self.layout


@dataclass(frozen=True)
class Halt(Reply):
    """The job is to be cut: say how many steps of each worker there are, and take no more.

    Until the cut of the same number comes. `layout` is as in `Cut`.
    """

    number: int
    layout: int = 0
