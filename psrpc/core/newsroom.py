"""What the other servers are told: new views, what rounds are made of, where a checkpoint cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psrpc.core.decisions import Answer, Decision, Hold, Same, Token
from psrpc.messages import Done, Granted, Reply, View
from psrpc.orders import Closed, Cut, Halt, Watch

Clocks = Sequence[tuple[int, int]]


class Newsroom:
    """Keeps the servers' questions open until there is something new for each."""

    def __init__(self, servers: int) -> None:
        self._servers = servers
        self._watching: dict[int, tuple[Token, Watch]] = {}  # by server
        self._words: list[Halt | Cut] = []  # about checkpoints, in their order
        self._census: dict[int, Clocks] = {}  # by server: where it has halted
        self._wanted: tuple[int, str] | None = None  # the checkpoint that is to be cut

    def watch(self, request: Watch, token: Token) -> list[Decision]:
        """A server wants to know what is new; `news` answers it."""
        before = self._watching.get(request.worker)
        if before is not None and before[1] == request:
            return [Same(token, before[0], "it has asked before")]
        self._watching[request.worker] = (token, request)
        if self._wanted is not None and request.halted == self._wanted[0]:
            self._census[request.worker] = request.clocks
        hold: Decision = Hold(token, "nothing has changed")
        return [hold] if before is None else [Answer(before[0], Done(), "it has asked anew"), hold]

    def news(self, view: View, rounds: Mapping[int, tuple[int, ...]]) -> list[Decision]:
        """Tell each server what it does not know: one thing at a time, views before all."""
        decisions: list[Decision] = []
        for server, (token, watch) in list(self._watching.items()):
            news = self._news_for(watch, view, rounds)
            if news is not None:
                del self._watching[server]
                decisions.append(Answer(token, news, "there is news"))
        return decisions

    def end(self) -> list[Decision]:
        """Let all servers know that the job is over."""
        watching, self._watching = self._watching, {}
        return [Answer(token, Done(), "the job is over") for token, _ in watching.values()]

    def begin_cut(self, number: int, folder: str, clocks: Clocks) -> None:
        """A checkpoint is to be made; the own shard has halted at `clocks`."""
        self._wanted, self._census = (number, folder), {0: clocks}
        if self._servers > 1:
            self._words.append(Halt(number))

    def cut(self, view: View) -> Cut | None:
        """Where the checkpoint cuts, once, when all servers have halted.

        That is the most that any of them has of each worker.
        """
        if self._wanted is None or len(self._census) < self._servers:
            return None
        most: dict[int, int] = {}
        for clocks in self._census.values():
            for worker, clock in clocks:
                most[worker] = max(most.get(worker, 0), clock)
        number, folder = self._wanted
        cut = Cut(number, tuple(sorted(most.items())), folder, view)
        self._wanted = None
        self._words.append(cut)
        return cut

    def give_up_cut(self, number: int) -> None:
        """Let nobody wait for a checkpoint any more."""
        self._wanted = None
        self._words.append(Cut(number))

    def _news_for(
        self, watch: Watch, view: View, rounds: Mapping[int, tuple[int, ...]]
    ) -> Reply | None:
        if watch.epoch < view.epoch:
            return Granted(view)
        # The lowest first: whoever knows it asks for the next.
        for clock in sorted(rounds):
            if clock >= watch.rounds:
                return Closed(clock, rounds[clock])
        return self._words[watch.cuts] if watch.cuts < len(self._words) else None
