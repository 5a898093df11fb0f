"""What is said when servers are added or removed: by those who ask, by servers, by workers.

The job's servers, and what each keeps, are a *layout* with a number; a higher one replaces a lower
one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from psrpc.messages import Reply, Request


class Seat(NamedTuple):
    """Where a server is reached: its agent, and its doors (see `planes.select`)."""

    name: str
    number: int
    url: str
    door: str
    berth: str


# What workers say and hear.


@dataclass(frozen=True)
class Moved(Reply):
    """The request is for another layout than this server's, `layout`: find the servers again."""

    layout: int


@dataclass(frozen=True)
class FindServers(Request):
    """Where are the servers now? Asked of the coordinator.

    With `lost` the worker has lost one of those that it knew: while they are cut for a new layout,
    which may have that one no more, it is answered when that is in force or given up.
    """

    lost: bool = False


@dataclass(frozen=True)
class Servers(Reply):
    """The servers of a layout, in order of their shards; no seats: those of the job's start."""

    layout: int
    seats: tuple[Seat, ...]


@dataclass(frozen=True)
class Arrived(Request):
    """The worker asks nothing any more of servers of layouts before `layout`."""

    layout: int


# What is said by who asks for another number of servers, and by a server that comes.


@dataclass(frozen=True)
class Scale(Request):
    """Let there be `servers`; `worker` is the number of the process that asks."""

    servers: int


@dataclass(frozen=True)
class Agreed(Reply):
    """That will be done; servers from `before` on are to come, if there are to be more.

    `saving` is whether it waits for a checkpoint that is being made.
    """

    before: int
    servers: int
    saving: bool = False


@dataclass(frozen=True)
class AwaitScale(Request):
    """Answered when the change is made (`Settled`), or given up. `worker` as in `Scale`."""


@dataclass(frozen=True)
class Offer(Request):
    """A new process wants to be server `worker` of `servers`; `process` is its number.

    Answered with the cut from which it is to begin. `attempt` counts its offers; `model` and
    `settings` are as in `Register`.
    """

    process: int
    servers: int
    attempt: int = 0
    model: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Ready(Request):
    """Server `worker` has its rows of `layout`, and would serve at `seat`; or why not (`error`).

    `marks` are the digests of the ledgers that they came with. The reply to a server of the present
    layout is `Done`; a new one is answered when the layout is in force (`Settled`), or is not to be
    (`Again`, if another one is to be made).
    """

    layout: int
    seat: Seat | None = None
    marks: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Settled(Reply):
    """The layout is in force, with so many servers. A new one asks on after `heard` words."""

    layout: int
    servers: int
    heard: int = 0


@dataclass(frozen=True)
class Again(Reply):
    """This layout comes to nothing: offer yourself again for the next one."""


@dataclass(frozen=True)
class Retire(Reply):
    """Nobody asks anything any more of servers of layouts before `layout`."""

    layout: int


# What the coordinator answers, beside what else it is asked.
ABOUT_SERVERS: tuple[type[Request], ...] = (
    Scale,
    AwaitScale,
    Offer,
    Ready,
    FindServers,
    Arrived,
)
