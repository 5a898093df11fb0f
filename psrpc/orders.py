"""What servers and the coordinator say to each other, beside what workers say."""

from __future__ import annotations

from dataclasses import dataclass

from psrpc.messages import Reply, Request, View


@dataclass(frozen=True)
class Watch(Request):
    """A server's word: what is new, please? `worker` is the server.

    It knows the view numbered `epoch`, has heard `cuts` words about checkpoints, and, where
    shard 0 decides that, what the rounds before `rounds` are made of. `clocks` are those that it
    has halted at for the checkpoint `halted`.
    """

    epoch: int
    cuts: int = 0
    rounds: int = 0
    halted: int | None = None
    clocks: tuple[tuple[int, int], ...] = ()


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
    """Where a checkpoint cuts the job: of each stepping worker, the steps before its clock here.

    `number` is the checkpoint's, `folder` where it is written, `view` who is stepping. Without
    a folder, a cut of this number that is not made yet is given up.
    """

    number: int
    clocks: tuple[tuple[int, int], ...] = ()
    folder: str = ""
    view: View | None = None


@dataclass(frozen=True)
class Halt(Reply):
    """A checkpoint is to be made: say how many steps of each worker there are, and take no more.

    Until the cut of the same number comes.
    """

    number: int
