"""A server's part when servers are added or removed: it gives its rows, and takes others'.

Both happen while the server stands still at a cut, so rows go from where they lie to where they
belong. Nothing that is in use is changed: the rows of the new layout are a shard of their own,
which takes the old one's place when the coordinator says that the layout is in force.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from psrpc.desk import Answers
from psrpc.errors import PeerLostError, PsrpcError
from psrpc.moves import Ready, Retire, Seat, Settled
from psrpc.orders import Cut
from psrpc.planes import giving
from psrpc.planes.giving import Given, Giver, Wanted
from psrpc.secret import Secret
from psrpc.server import ParameterServer
from psrpc.store.blueprint import Blueprint
from psrpc.store.dealing import Dealt, chunks, common
from psrpc.store.shard import ShardStore
from psrpc.store.state import Option

CUT_WITHIN_S = 60.0


class Doors(Protocol):
    """Where workers come in, of one layout."""

    @property
    def seat(self) -> Seat: ...
    def close(self) -> None: ...


@dataclass
class _Stand:
    """The server at the cut for `layout`; `reached` is set when it stands there, or need not."""

    layout: int
    reached: threading.Event = field(default_factory=threading.Event)
    mark: str = ""
    decisions: bytes = b""
    given_up: bool = False


class Mover:
    """Moves one server from layout to layout.

    `open_doors` lets workers in to this server's shard of so many, `deliver` tells the coordinator
    that this server is ready. `doors` are those that are open now.
    """

    def __init__(
        self,
        server: ParameterServer,
        blueprint: Blueprint,
        model: nn.Module,
        at: tuple[str, Secret],
        open_doors: Callable[[int], Doors],
        deliver: Callable[[Ready], object],
        doors: Doors,
    ) -> None:
        self._server = server
        self._blueprint = blueprint
        self._model = model
        self._secret = at[1]
        self._open_doors = open_doors
        self._deliver = deliver
        self._doors = {server.layout: doors}
        self._stand: _Stand | None = None
        self._giver = Giver(*at, self._look)
        self._listens = False
        self._lock = threading.Lock()
        self._takes: threading.Thread | None = None
        server.stands, server.hears = self._stands_at, self.hear

    def halt(self, layout: int) -> str:
        """Be ready to give rows away for a new layout; returns where, HOST:PORT."""
        with self._lock:
            if not self._listens:
                self._giver.start()
                self._listens = True
            self._stand = _Stand(layout)
        return self._giver.address

    def hear(self, word: Cut | Settled | Retire) -> Answers:
        """A word about layouts has come; returns the server's answers, to be sent then."""
        if isinstance(word, Retire):
            self._retire(word)
        elif isinstance(word, Cut) and word.given_up:
            self._give_up(word)
        elif isinstance(word, Cut) and self._server.index < word.servers:
            self._begin_to_take(word)
        return self._server.hear(word)

    def close(self) -> None:
        """Give and take nothing any more, and shut all doors."""
        with self._lock:
            stand, self._stand = self._stand, None
            doors, self._doors = list(self._doors.values()), {}
        if stand is not None:
            stand.given_up = True
            stand.reached.set()
        if self._listens:
            self._giver.close()
        if self._takes is not None:
            self._takes.join(CUT_WITHIN_S)
        for each in doors:
            each.close()

    def _stands_at(self, cut: Cut) -> None:
        stand = self._stand
        if stand is None or stand.layout != cut.layout:
            return
        core = self._server.core
        stand.mark = core.ledger.mark(cut)
        if self._server.index == 0:
            stand.decisions = pickle.dumps(core)
        stand.reached.set()

    # Giving.

    def _look(self, wanted: Wanted) -> Given:
        stand = self._at_cut(wanted.layout)
        store = self._server.store
        layout = self._blueprint.layouts(wanted.servers)[wanted.shard]
        decisions = stand.decisions if wanted.fresh else b""
        return Given(stand.mark, list(chunks(store, layout)), store.options(), decisions)

    def _at_cut(self, layout: int) -> _Stand:
        """Wait until the server stands at the cut for `layout`. Raises PeerLostError."""
        stand = self._stand
        if stand is None or stand.layout != layout or not stand.reached.wait(CUT_WITHIN_S):
            raise PeerLostError(f"server {self._server.index} is not at the cut for a new layout")
        if stand.given_up:
            raise PeerLostError("the new layout was given up")
        return stand

    # Taking.

    def _begin_to_take(self, cut: Cut) -> None:
        stand = self._stand
        if stand is None or stand.layout != cut.layout:
            return  # another process was halted for this, and with its death it comes to nothing
        self._takes = threading.Thread(
            target=self._take, args=(cut, stand), name="psrpc-mover", daemon=True
        )
        self._takes.start()

    def _take(self, cut: Cut, stand: _Stand) -> None:
        server = self._server
        try:
            layout = self._blueprint.layouts(cut.servers)[server.index]
            store = ShardStore(self._blueprint, layout, self._model, server.job.reduction)
            wanted = Wanted(cut.layout, server.index, cut.servers, fresh=False)
            marks, _ = gather(cut, wanted, store, self._blueprint, self._secret, self._look)
            seat = self._open_next(stand, cut.servers)
            self._keep(cut, store, Ready(server.index, cut.layout, seat, marks))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            self.tell(Ready(server.index, cut.layout, error=why))

    def _keep(self, cut: Cut, store: ShardStore, ready: Ready) -> None:
        """The rows are here: be `ready`, and say so."""
        self._server.prepare(cut.layout, cut.servers, store)
        self.tell(ready)

    def tell(self, ready: Ready) -> None:
        """Tell the coordinator. Blocks."""
        with suppress(PsrpcError):  # one that is gone ends the job
            self._deliver(ready)

    def _open_next(self, stand: _Stand, servers: int) -> Seat:
        doors = self._open_doors(servers)
        with self._lock:
            if stand.given_up or self._stand is not stand:
                doors.close()
                raise PeerLostError("the new layout was given up")
            self._doors[stand.layout] = doors
        return doors.seat

    def reopen(self) -> None:
        """Let workers in to the next layout's shard, of which another process had the rows."""
        if self._server.next is not None:
            layout, servers, _ = self._server.next
            self._doors[layout] = self._open_doors(servers)

    # What the coordinator decides.

    def _give_up(self, cut: Cut) -> None:
        layout, stand = -cut.number, None
        if layout <= 0:
            return  # a checkpoint
        with self._lock:
            if self._stand is not None and self._stand.layout == layout:
                stand, self._stand = self._stand, None
            doors = self._doors.pop(layout, None)  # without a stand those of `reopen`
        if stand is not None:
            stand.given_up = True
            stand.reached.set()
        self._shut([] if doors is None else [doors])

    def _retire(self, retire: Retire) -> None:
        present = self._server.layout
        with self._lock:
            old = [n for n in self._doors if n < retire.layout and n != present]
            doors = [self._doors.pop(number) for number in old]
        self._shut(doors)

    @staticmethod
    def _shut(doors: Sequence[Doors]) -> None:
        """Shut doors, on a thread: whoever comes through one may wait for who calls this."""
        for each in doors:
            threading.Thread(target=each.close, name="psrpc-doors", daemon=True).start()


def gather(
    cut: Cut,
    wanted: Wanted,
    store: ShardStore,
    blueprint: Blueprint,
    secret: Secret,
    own: Callable[[Wanted], Given] | None,
) -> tuple[tuple[str, ...], bytes]:
    """Fill `store` with its rows of a new layout, from all that have some. Blocks.

    `own` gives those of this process's own shard, if it has one in the present layout. Returns
    the digests of the ledgers that they came with, and the decisions of shard 0 if `wanted`.
    Raises PeerLostError if a server gives none.
    """
    dealt, marks, decisions = Dealt(store), [], b""
    options: Sequence[Option] = ()
    for shard, layout in enumerate(blueprint.layouts(len(cut.givers))):
        shares = any(common(a, b) for a in layout.pieces for b in store.layout.pieces)
        if own is not None and shard == wanted.shard:
            given = own(wanted)
            for chunk in given.chunks:
                dealt.take(chunk)
        elif shares or (wanted.fresh and not shard):
            given = giving.take(cut.givers[shard], secret, wanted, dealt, f"server {shard}")
        else:
            continue
        marks.append(given.mark)
        decisions = decisions or given.decisions
        options = options or given.options
    dealt.finish(options)
    return tuple(marks), decisions
