"""A push of which nothing is rare, as the numbers that it is.

Nearly all pushes are such. A message of one has these fields in this order (`planes.wire`), and
a server decides it from them alone; a `Push` is made of it when somebody wants to see one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from psrpc.messages import Override, Push, Stream, StreamKind, UpdateKey, View

KINDS = (StreamKind.LEASE, StreamKind.WORKER)
LEASED, OWN = range(len(KINDS))
LATEST = -1  # of `read`
NO_LOSS = math.nan  # a loss of NaN says no more than none


class Usual(NamedTuple):
    """The fields of `Push` and its key, without those that are rare; `kind` indexes `KINDS`."""

    worker: int
    clock: int
    ahead: int
    kind: int
    major: int
    minor: int
    sequence: int
    total: int
    samples: int
    read: int
    loss: float
    pull: bool
    void: bool
    layout: int

    @classmethod
    def part_of(cls, push: Push) -> Usual:
        """What a push says beside what is rare."""
        (kind, major, minor), sequence, total = push.key
        return cls(
            push.worker,
            push.clock,
            push.ahead,
            KINDS.index(kind),
            major,
            minor,
            sequence,
            total,
            push.samples,
            LATEST if push.read is None else push.read,
            NO_LOSS if push.loss is None else push.loss,
            push.pull,
            push.void,
            push.layout,
        )

    @classmethod
    def of(cls, push: Push) -> Usual | None:
        """The whole push, if nothing in it is rare."""
        if push.void or push.absent or push.also or push.overrides or push.view is not None:
            return None
        return cls.part_of(push)

    @property
    def stream(self) -> Stream:
        """What numbers the update."""
        return Stream(KINDS[self.kind], self.major, self.minor)

    @property
    def key(self) -> UpdateKey:
        """The name of the update."""
        return UpdateKey(self.stream, self.sequence, self.total)

    def push(
        self,
        absent: tuple[int, ...] = (),
        also: tuple[UpdateKey, ...] = (),
        overrides: tuple[Override, ...] = (),
        view: View | None = None,
    ) -> Push:
        """The push, with what is rare."""
        return Push(
            self.worker,
            self.clock,
            self.key,
            self.samples,
            self.pull,
            absent,
            self.void,
            also,
            overrides,
            None if self.loss != self.loss else self.loss,
            view,
            self.ahead,
            None if self.read == LATEST else self.read,
            self.layout,
        )
