"""What a primary is told beside requests: each word is an entry, which its backup gets as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from psrpc.errors import PsrpcError, encode
from psrpc.messages import Failure, View
from psrpc.moves import Retire, Settled
from psrpc.orders import Closed, Cut, Halt
from psrpc.planes import base
from psrpc.planes.base import Landing, Payload
from psrpc.replication.entries import Death, Event, Layout, News, Rows, Verdict, Wanted


class Decrees:
    """Makes entries of what the coordinator says, and of what its shell wants."""

    def _enter(
        self,
        event: Event,
        tensors: Sequence[torch.Tensor] = (),
        answer: base.Answer = lambda payload: None,
        land: Landing | None = None,
    ) -> None:
        """Take an entry in, and send it to those that follow."""
        raise NotImplementedError

    def lose(self, process: int, why: str) -> None:
        """See `Coordinator`."""
        self._enter(Death(process, why))

    def adopt(self, view: View) -> None:
        """See `ParameterServer`."""
        self._enter(News(view))

    def tell(self, closed: Closed) -> None:
        """See `ParameterServer`."""
        self._enter(News(closed))

    def obey(self, word: Halt | Cut | Settled | Retire) -> None:
        """See `ParameterServer`."""
        self._enter(News(word))

    def begin_layout(self, giver: str) -> None:
        """See `Coordinator`."""
        self._enter(Layout(giver))

    def give_up_layout(self, why: str) -> None:
        """See `Coordinator`."""
        self._enter(Layout(why=why))

    def take_rows(
        self, rows: Rows, tensors: Sequence[torch.Tensor], then: Callable[[], None]
    ) -> None:
        """Have the rows for a new layout; `then` is called when no failure of this server can
        undo that.
        """

        def have(payload: Payload) -> None:
            if not isinstance(payload[0], Failure):
                then()

        self._enter(rows, tensors, have)

    def begin_cut(self, number: int, folder: str) -> None:
        """See `Coordinator`."""
        self._enter(Wanted(number, folder))

    def give_up_cut(self, number: int) -> None:
        """See `Coordinator`."""
        self._enter(Wanted(number))

    def fail(self, error: PsrpcError) -> None:
        """See `Coordinator`."""
        self._enter(Verdict(encode(error)))
