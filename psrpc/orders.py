"""What servers and the coordinator say to each other, beside what workers say."""

from __future__ import annotations

from dataclasses import dataclass

from psrpc.messages import Reply, Request


@dataclass(frozen=True)
class Watch(Request):
    """A server's word: what is new, please? `worker` is the server.

    It knows the view numbered `epoch`, and has heard of `cuts` cuts.
    """

    epoch: int
    cuts: int = 0


@dataclass(frozen=True)
class PutPart(Request):
    """A server's part of a checkpoint is written, or (`error`) cannot be. `worker` is the server.

    `part` is what `Part.to_json` gave.
    """

    number: int
    part: object = None
    error: str = ""


@dataclass(frozen=True)
class Cut(Reply):
    """Where a checkpoint cuts the job: of each stepping worker, the steps before its clock here.

    `number` is the checkpoint's, `folder` where it is written. Without a folder, a cut of this
    number that is not made yet is given up.
    """

    number: int
    clocks: tuple[tuple[int, int], ...] = ()
    folder: str = ""
