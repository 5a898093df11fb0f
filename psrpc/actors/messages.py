"""What the head, its nodes and runners, and their clients say to each other.

Calls and answers are plain tuples, for there are many of them:
a call is (number, actor, method, arguments, keywords), where `arguments` is a tuple of plain values
or, with `keywords` None, what `packing.pack` made of both; an answer is (number, status, value).
A call without a method cancels the one of its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psrpc.actors.packing import Packed
from psrpc.core.placement import Resources, Want

PLAIN, PACKED, RAISED, CANCELLED, GONE = range(5)  # statuses of an answer
RETIRE = "__retire__"  # a call that ends its actor
LEARN = "__learn__"  # a number, and the definition of the function that it names from now on
READY = "__ready__"  # a call that is answered once the actor is made
RUN = "__run__"  # a call of the function that its first argument names
CHUNK = "__chunk__"  # many calls of one method (by name) or function (by number)

Call = tuple[int, int, str | None, Any, Any]
Answer = tuple[int, int, Any]


@dataclass(frozen=True)
class Spec:
    """How an actor is made, as often as it must be."""

    title: str
    definition: bytes
    arguments: Packed
    want: Want
    own_process: bool = False
    max_restarts: int = 0
    max_retries: int = 0
    max_pending: int = 10_000
    name: str | None = None
    detached: bool = False


@dataclass(frozen=True)
class NodeHello:
    """A node is there; it has this to give."""

    name: str
    whole: Resources
    labels: Mapping[str, str]


@dataclass(frozen=True)
class RunnerHello:
    """A runner is there, and takes calls at `address`."""

    runner: int
    address: str
    pid: int


@dataclass(frozen=True)
class ClientHello:
    """A process wants to use actors."""


@dataclass(frozen=True)
class Welcome:
    """A client's number, which makes its actors' numbers its own."""

    client: int


@dataclass(frozen=True)
class Fork:
    """A node is to start a runner, which sees these GPUs (None: as the node does)."""

    runner: int
    gpus: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Stop:
    """A node is to end a runner."""

    runner: int


@dataclass(frozen=True)
class RunnerEnded:
    """A runner has ended, and how."""

    runner: int
    how: str


@dataclass(frozen=True)
class Create:
    """A client wants an actor."""

    actor: int
    spec: Spec


@dataclass(frozen=True)
class Locate:
    """A client asks where an actor is, if it is not where incarnation `after` was."""

    actor: int
    after: int = 0


@dataclass(frozen=True)
class Located:
    """Where an actor takes calls."""

    actor: int
    incarnation: int
    address: str


@dataclass(frozen=True)
class Gone:
    """An actor is no more, and why."""

    actor: int
    error: Packed


@dataclass(frozen=True)
class Find:
    """A client asks for an actor by its name; `ticket` is told back."""

    ticket: int
    name: str


@dataclass(frozen=True)
class Found:
    """The actor of that name, or None."""

    ticket: int
    actor: int | None
    spec: Spec | None


@dataclass(frozen=True)
class AskStatus:
    """A client asks how things are."""

    ticket: int


@dataclass(frozen=True)
class StatusIs:
    """How things are: plain values only."""

    ticket: int
    status: dict[str, Any]


@dataclass(frozen=True)
class Kill:
    """An actor is to end at once."""

    actor: int


@dataclass(frozen=True)
class Embody:
    """A runner is to make an actor, with the state that was saved last."""

    actor: int
    incarnation: int
    spec: Spec
    saved: Packed | None


@dataclass(frozen=True)
class Discard:
    """A runner is to forget an actor."""

    actor: int


@dataclass(frozen=True)
class Born:
    """An actor has been made."""

    actor: int


@dataclass(frozen=True)
class Stillborn:
    """An actor's constructor has failed."""

    actor: int
    error: Packed


@dataclass(frozen=True)
class Retired:
    """An actor has ended by itself."""

    actor: int


@dataclass(frozen=True)
class Saved:
    """An actor's state after its latest call."""

    actor: int
    state: Packed
