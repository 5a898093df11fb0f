"""What a process keeps from the children that it forks, such as a data loader's.

A connection ends when the last process that has it closes it: a worker's death is seen at once
only if its children, which may live on, have let go of its connections.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Protocol, TypeVar


class Closable(Protocol):
    """Something with descriptors. `close` must not need another thread, or its lock."""

    def close(self) -> None:
        """Give them back."""
        ...


Thing = TypeVar("Thing", bound=Closable)
Made = TypeVar("Made")
_ours: weakref.WeakSet[Closable] = weakref.WeakSet()


def keep_from_children(thing: Thing) -> Thing:
    """Close `thing` in every child that is forked while it exists; returns it."""
    _prepare()
    _ours.add(thing)
    return thing


def keep_sockets_from_children(make: Callable[[], Made]) -> tuple[Made, Closable]:
    """Call `make`, and close in children what sockets it opened, for as long as the second exists.

    For what has no other handle. What other threads open meanwhile counts as its own.
    """
    before = _sockets()
    made = make()
    return made, keep_from_children(_Sockets(_sockets() - before))


class _Sockets:
    """Sockets by descriptor and name, for a descriptor may have come to mean another one."""

    def __init__(self, sockets: set[tuple[int, str]]) -> None:
        self._sockets = sockets

    def close(self) -> None:
        for descriptor, _ in self._sockets & _sockets():
            os.close(descriptor)


def _sockets() -> set[tuple[int, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists them is closed again
            what = os.readlink(f"/proc/self/fd/{name}")
            if what.startswith("socket:"):
                found.add((int(name), what))
    return found


@functools.cache
def _prepare() -> None:
    os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    with ExitStack() as stack:  # which closes all, whatever one of them raises
        for thing in list(_ours):
            stack.callback(thing.close)
    _ours.clear()
