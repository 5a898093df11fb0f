"""What the other servers are told: new views, what rounds are made of, cuts, new layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from psrpc.core.decisions import Answer, Decision, Hold, Same, Token
from psrpc.messages import Done, Granted, Reply, View
from psrpc.moves import Retire, Settled
from psrpc.orders import Closed, Cut, Halt, Watch

Clocks = Sequence[tuple[int, int]]


class Newsroom:
    """Keeps the servers' questions open until there is something new for each."""

    def __init__(self, servers: int) -> None:
        self.servers = servers
        self._watching: dict[tuple[int, int], tuple[Token, Watch]] = {}  # by server and layout
        self._words: list[Halt | Cut | Settled | Retire] = []  # about cuts, in their order
        self._census: dict[int, tuple[Clocks, str]] = {}  # by server: where it has halted
        self._wanted: Cut | None = None  # the cut that is to be made

    @property
    def said(self) -> int:
        """How many words about cuts have been said."""
        return len(self._words)

    def watch(self, request: Watch, token: Token) -> list[Decision]:
        """A server wants to know what is new; `news` answers it."""
        who = request.worker, request.layout
        before = self._watching.get(who)
        if before is not None and before[1] == request:
            return [Same(token, before[0], "it has asked before")]
        self._watching[who] = (token, request)
        if self._wanted is not None and request.halted == self._wanted.number:
            self._census[request.worker] = (request.clocks, request.giver)
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

    def begin_cut(self, wanted: Cut, clocks: Clocks, giver: str = "") -> None:
        """The job is to be cut; the own shard has halted at `clocks`, and gives rows at `giver`."""
        self._wanted, self._census = wanted, {0: (clocks, giver)}
        if self.servers > 1:
            self._words.append(Halt(wanted.number, wanted.layout))

    def cut(self, view: View) -> Cut | None:
        """Where to cut, once, when all servers have halted.

        That is the most that any of them has of each worker.
        """
        if self._wanted is None or len(self._census) < self.servers:
            return None
        most: dict[int, int] = {}
        for clocks, _ in self._census.values():
            for worker, clock in clocks:
                most[worker] = max(most.get(worker, 0), clock)
        givers: tuple[str, ...] = ()
        if self._wanted.layout:
            givers = tuple(self._census[server][1] for server in range(self.servers))
        cut = replace(self._wanted, clocks=tuple(sorted(most.items())), view=view, givers=givers)
        self._wanted = None
        self._words.append(cut)
        return cut

    def say(self, word: Settled | Retire) -> None:
        """Let all servers hear of a layout."""
        self._words.append(word)

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
