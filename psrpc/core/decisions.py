"""What the core answers: decisions about tokens, each with a sentence why.

A token stands for one request that a shell holds: its gradients, its open
future. The core never sees either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from psrpc.messages import Reply
from psrpc.orders import Cut

Token = int
_FEW = 8


class Apply(NamedTuple):
    """Make one optimizer step of these requests' gradients, in this order.

    `staleness` is that of each one's gradients, in clocks.
    """

    tokens: tuple[Token, ...]
    reason: str
    staleness: tuple[int, ...] = ()


class Answer(NamedTuple):
    """Answer this request now."""

    token: Token
    reply: Reply
    reason: str


class Hold(NamedTuple):
    """Keep this request open; a later decision answers it."""

    token: Token
    reason: str


class Made(NamedTuple):
    """The step at `clock` is made: a round, of these workers' pushes, or one that carried nothing.

    Of a single push that is applied `Apply` says as much.
    """

    clock: int
    workers: tuple[int, ...]
    reason: str


class Image(NamedTuple):
    """Copy the shard as it is at this point: its part of the checkpoint `cut`.

    `record` is what belongs to the copy of these decisions, as `ShardCore.record` gives it.
    """

    cut: Cut
    record: dict[str, Any]
    reason: str


class Same(NamedTuple):
    """This request repeats `first`, which is still open: give both the same answer."""

    token: Token
    first: Token
    reason: str


Decision = Apply | Answer | Hold | Same | Image | Made


def some_workers(count: int, names: Callable[[], Iterable[int]]) -> str:
    """Words for `count` workers; only a few are named, as finding the names costs time."""
    if count > _FEW:
        return f"{count} workers"
    return f"workers {sorted(names())}"


def some_servers(count: int) -> str:
    """Words for `count` servers."""
    return "1 server" if count == 1 else f"{count} servers"
