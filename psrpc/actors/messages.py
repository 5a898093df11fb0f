"""What the head, its nodes and runners, and their clients say to each other.

Calls and answers are plain tuples, for there are many of them:
a call is (number, actor, method, arguments, keywords), where `arguments` is a tuple of plain values
(without keywords there is a tuple in their place, which costs the garbage collector nothing), or,
with `keywords` None, what `packing.pack` made of both; an answer is (number, status, value).
A call without a method cancels the one of its number. A function that was learned is called by
its number in the place of a method. Many calls, or answers, that have come together go as columns,
which cost a fraction: `calls_together` and `answers_together`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from psrpc.actors.packing import Packed
from psrpc.core.placement import Resources, Want

PLAIN, PACKED, RAISED, CANCELLED, GONE, ALL_PLAIN = range(6)  # statuses of an answer
RETIRE = "__retire__"  # a call that ends its actor
LEARN = "__learn__"  # a number, and the definition of the function that it names from now on
READY = "__ready__"  # a call that is answered once the actor is made
CHUNK = "__chunk__"  # many calls of one method (by name) or function (by number), as one
MANY = (
    "__many__"  # many calls of one method or function, each with a number and an answer of its own
)

Call = tuple[int, int, str | int | None, Any, Any]
Answer = tuple[int, int, Any]
_FEW = 4


def calls_together(
    first: int, actor: int, calls: Sequence[tuple[str | int, Any, Any]]
) -> list[Call]:
    """Calls (method, arguments, keywords), numbered from `first` on, in few messages."""
    count = len(calls)
    if count >= _FEW:
        names, arguments, keywords = zip(*calls, strict=True)
        name = names[0]
        alike = names.count(name) == count and keywords.count(()) == count
        if alike and len(set(map(len, arguments))) == 1:
            return [(first, actor, MANY, (name, count), list(zip(*arguments, strict=True)))]
    return [(first + place, actor, *call) for place, call in enumerate(calls)]


def calls_apart(call: Call) -> Iterator[Call]:
    """The calls that a message with `MANY` stands for."""
    first, actor, _, (name, count), columns = call
    arguments = zip(*columns, strict=True) if columns else repeat((), count)
    return zip(range(first, first + count), repeat(actor), repeat(name), arguments, repeat(()))


def answers_together(answers: list[Answer]) -> list[Answer]:
    """Answers in fewer messages: plain ones as two columns, of numbers and of values."""
    if len(answers) < _FEW:
        return answers
    plain = [answer for answer in answers if answer[1] == PLAIN and answer[0]]
    if len(plain) < _FEW:
        return answers
    numbers, _, values = zip(*plain, strict=True)
    others = [answer for answer in answers if answer[1] != PLAIN]
    return [*others, (0, ALL_PLAIN, (numbers, values))]


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
    """An actor is no more, and why; `lived` if it had been made."""

    actor: int
    error: Packed
    lived: bool = False


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


@dataclass(frozen=True)
class Kept:
    """The head has the state that a runner sent first of those that it has not heard of yet."""
