"""What an entry does to a server, the same on a primary and on its backup; and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from psrpc.coordinator import Coordinator
from psrpc.errors import JobFailedError, decode
from psrpc.messages import Done, GetBuffers, GetFrozen, GetState, GetStats, Peek, Request, View
from psrpc.moves import Retire, Settled
from psrpc.orders import Closed, Cut, Halt
from psrpc.planes import base
from psrpc.planes.base import Landing, Payload
from psrpc.replication.entries import Death, Event, Layout, News, Round, Rows, Verdict, Wanted
from psrpc.replication.state import Replicated, server_of, take_rows

# What changes nothing; a backup need not do it again. That it comes by there all the same proves
# that no other server reigns.
READS = (Peek, GetState, GetStats, GetFrozen, GetBuffers)


@dataclass(frozen=True)
class Kept:
    """An answer that is decided, and where its weights are to land."""

    answer: base.Answer
    land: Landing | None
    payload: Payload

    def send(self) -> None:
        """Let it go. Only now do weights land: a server that is deposed writes nowhere."""
        reply, weights = self.payload
        if self.land is not None and weights:
            self.land(weights)
            weights = []
        self.answer((reply, weights))


def take_in(
    service: Replicated,
    event: Event,
    tensors: Sequence[torch.Tensor],
    answer: base.Answer,
    land: Landing | None = None,
) -> None:
    """Let a server do what an entry says; the same on a primary and on its backup.

    `answer` is called for each push of a round.
    """
    match event:
        case Request():
            service.handle(event, tensors, answer, land)
        case Death(process, why):
            assert isinstance(service, Coordinator)
            service.lose(process, why)
        case News(Closed() as closed):
            server_of(service).tell(closed)
        case News(View() as view):
            server_of(service).adopt(view)
        case News(Halt() | Cut() | Settled() | Retire() as word):
            server_of(service).obey(word)
        case Layout(giver, why):
            assert isinstance(service, Coordinator)
            if giver:
                service.begin_layout(giver)
            else:
                service.give_up_layout(why)
        case Rows():
            take_rows(service, event, tensors)
            answer((Done(), []))
        case Wanted(number, folder):
            assert isinstance(service, Coordinator)
            if folder:
                service.begin_cut(number, folder)
            else:
                service.give_up_cut(number)
        case Round(pushes):
            server_of(service).join(pushes, tensors, [answer] * len(pushes))
        case Verdict(error):
            service.fail(decode(*error))


def disagreement(shard: int, of_primary: str, of_backup: str) -> JobFailedError:
    """The error that says that two servers differ which must be equal."""
    return JobFailedError(
        f"the primary and the backup of shard {shard} differ: their digests are {of_primary} and "
        f"{of_backup}; do both hosts run the same torch, on the same kind of processor?"
    )
