"""How servers are added and removed while a job runs: when, with whom, and the point of commit.

A new layout is made in these phases. New servers come. All servers of the present layout halt and
are cut, as for a checkpoint, and stand still there. Whoever keeps rows in the new layout takes
them, and says that it is ready. When the last one has, the layout is in force: that is decided
here, alone and once. Until then it can be given up, and everybody goes on as before.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from psrpc.core.decisions import Answer, Decision, Hold, Same, Token, some_servers, some_workers
from psrpc.core.leases import LeaseBook
from psrpc.core.membership import Membership
from psrpc.core.newsroom import Newsroom
from psrpc.core.shard import ShardCore
from psrpc.errors import ScaleError, encode
from psrpc.messages import Done, Failure, Reply, Request
from psrpc.moves import (
    Again,
    Agreed,
    Arrived,
    AwaitScale,
    FindServers,
    Offer,
    Ready,
    Retire,
    Scale,
    Seat,
    Servers,
    Settled,
)
from psrpc.orders import Cut

MOST_ATTEMPTS = 10
_PATIENT_ATTEMPTS = MOST_ATTEMPTS // 2  # in which workers may take what lies free


@dataclass
class _Change:
    """A change under way, asked for by process `asker`: `layout` is that of the present attempt.

    `offers` are of the new servers, by index, with their tokens; `seats` of those that are ready.
    """

    asker: int
    before: int
    servers: int
    layout: int = 0
    attempts: int = 0
    dealt: Cut | None = None
    offers: dict[int, tuple[Offer, Token]] = field(default_factory=dict)
    seats: dict[int, Seat] = field(default_factory=dict)
    waiting: dict[int, Token] = field(default_factory=dict)  # new servers that are ready

    @property
    def to_come(self) -> list[int]:
        """The new servers that have not come."""
        return [each for each in range(self.before, self.servers) if each not in self.offers]


class Resharding:
    """The present layout, and the change under way, if there is one.

    `refusal` is why this job can have none, if it cannot.
    """

    def __init__(self, newsroom: Newsroom, leases: LeaseBook) -> None:
        self.layout = 0
        self.seats: tuple[Seat, ...] = ()
        self.refusal = ""
        self._newsroom = newsroom
        self._leases = leases
        self._numbers = 0  # of layouts, given up ones included
        self._change: _Change | None = None
        self._asking: dict[int, Token] = {}  # processes that wait for what becomes of their change
        self._outcomes: dict[int, Reply] = {}  # by process
        self._stranded: list[Token] = []  # of workers that have lost a server meanwhile
        self._behind: dict[int, set[int]] = {}  # by layout: workers that may not know of it
        self._out: list[Decision] = []
        self._settled: dict[int, Settled] = {}  # by layout that is or was in force: what was said
        self._own: list[Cut | Settled | Retire] = []

    @property
    def servers(self) -> int:
        """How many servers there are."""
        return self._newsroom.servers

    @property
    def under_way(self) -> bool:
        """Whether a change is under way."""
        return self._change is not None

    @property
    def cutting(self) -> bool:
        """Whether the servers are being cut, or have been, for the change under way."""
        return self._change is not None and self._change.layout > 0

    @property
    def doubted(self) -> bool:
        """Whether a worker has lost a server, and waits for what becomes of the change."""
        return bool(self._stranded)

    @property
    def processes(self) -> list[int]:
        """The processes that the change under way needs, beside servers."""
        change = self._change
        if change is None:
            return []
        return [change.asker, *(offer.process for offer, _ in change.offers.values())]

    @property
    def next_layout(self) -> int:
        """The number of the layout that `begin` would begin."""
        return self._numbers + 1

    @property
    def may_cut(self) -> bool:
        """Whether all new servers have come, so that the others can be cut."""
        change = self._change
        return change is not None and not change.layout and not change.to_come

    @property
    def to_come(self) -> list[int]:
        """The new servers that have not come."""
        return [] if self._change is None else self._change.to_come

    def take(
        self,
        request: Request,
        token: Token,
        shard: ShardCore,
        members: Membership,
        here: Collection[int],
    ) -> list[Decision]:
        """Take a word about layouts; `here` are the workers that may still say something."""
        match request:
            case Scale():
                reply = self._scale(request, members)
                return [Answer(token, reply, "servers are to be added or removed")]
            case AwaitScale():
                return self._await(request, token)
            case Offer():
                return self._offer(request, token)
            case Ready():
                return self._ready(request, token, shard, here)
            case FindServers():
                return [self._find(request, token)]
            case Arrived():
                self.forget(request.worker, request.layout)
                return [Answer(token, Done(), "it has moved")]
        raise AssertionError(f"{request} is not about layouts")

    def _find(self, request: FindServers, token: Token) -> Decision:
        if request.lost and self.cutting:
            self._stranded.append(token)
            return Hold(token, "it is not decided yet whether there is a new layout")
        return Answer(token, Servers(self.layout, self.seats), "the present layout")

    # Its phases.

    def _scale(self, request: Scale, members: Membership) -> Reply:
        change = self._change
        if change is not None and (change.asker, change.servers) == (
            request.worker,
            request.servers,
        ):
            return Agreed(change.before, change.servers)
        now = self._newsroom.servers
        why = self.refusal
        if not why and not members.started:
            who = some_workers(members.to_come, lambda: members.missing)
            why = f"it has not begun: {who} have not come yet"
        if not why and members.finished:
            why = "it is over"
        if not why and request.servers < 1:
            why = f"a job needs at least 1 server, not {request.servers}"
        if not why and change is not None:
            why = f"it is being changed to {some_servers(change.servers)}: wait until that is done"
        if not why and request.servers == now:
            why = f"it has {some_servers(now)} already"
        if why:
            return _failure(f"the job cannot be scaled: {why}")
        self._outcomes.pop(request.worker, None)  # of what it asked for before
        self._change = _Change(request.worker, now, request.servers)
        return Agreed(now, request.servers)

    def _await(self, request: AwaitScale, token: Token) -> list[Decision]:
        process = request.worker
        if process in self._outcomes:
            return [Answer(token, self._outcomes[process], "that is over")]
        if self._change is None or self._change.asker != process:
            return [Answer(token, _failure("nobody has asked for that"), "it has not asked")]
        if (first := self._asking.get(process)) is not None:
            return [Same(token, first, "it waits already")]
        self._asking[process] = token
        return [Hold(token, "the change is under way")]

    def _offer(self, offer: Offer, token: Token) -> list[Decision]:
        change = self._change
        if change is None or change.servers != offer.servers or offer.worker < change.before:
            return [Answer(token, _failure(_NOBODY_WANTS), "no such server is wanted")]
        known = change.offers.get(offer.worker)
        if known is not None and known[0] == offer and change.dealt is not None:
            return [Answer(token, change.dealt, "the rows are dealt out")]
        if known is not None and known[0] == offer:
            return [Same(token, known[1], "it has offered itself before")]
        if known is not None and known[0].process != offer.process:
            return [Answer(token, _failure(_NOBODY_WANTS), "another process is that server")]
        change.offers[offer.worker] = (offer, token)
        return [Hold(token, "the servers are not cut yet")]

    def begin(self, shard: ShardCore, giver: str) -> None:
        """Let the servers of the present layout be cut; the own gives its rows away at `giver`."""
        change = self._change
        assert change is not None
        assert self.may_cut
        self._numbers += 1
        change.layout, change.attempts = self._numbers, change.attempts + 1
        change.dealt, change.seats = None, {}
        skipped = self._leases.skipped
        wanted = Cut(-change.layout, layout=change.layout, servers=change.servers, skipped=skipped)
        self._newsroom.begin_cut(wanted, shard.halt(wanted.number), giver)

    def dealt(self, cut: Cut) -> None:
        """It is known where the servers are cut: the new ones may take their rows."""
        change = self._change
        if change is not None and cut.layout and cut.layout == change.layout:
            change.dealt = cut
            for _, token in change.offers.values():
                self._out.append(Answer(token, cut, "the rows are dealt out"))

    def _ready(
        self, ready: Ready, token: Token, shard: ShardCore, here: Collection[int]
    ) -> list[Decision]:
        change, server = self._change, ready.worker
        if ready.layout in self._settled:
            # Or was: whoever takes a dead one's place may not have heard of a later one.
            return [Answer(token, self._settled[ready.layout], "that layout is in force")]
        if change is None or ready.layout != change.layout:
            return [Answer(token, Again(), "that layout was given up")]
        fresh = server >= change.before
        if fresh and server in change.waiting and ready.error:
            # Another one of its pair has taken over.
            why = f"server {server}: {ready.error}"
            return [Answer(token, Again(), why), *self.give_up(why)]
        if fresh and server in change.waiting:
            return [Same(token, change.waiting[server], "it has said so before")]
        answer: Decision = Answer(token, Done(), "noted")
        if fresh:
            change.waiting[server] = token
            answer = Hold(token, "others are not ready yet")
        change.seats |= {} if ready.seat is None else {server: ready.seat}
        then: list[Decision] = []
        if ready.error or ready.seat is None:
            then = self.give_up(f"server {server}: {ready.error}")
        elif change.dealt is None or set(ready.marks) != {shard.ledger.mark(change.dealt)}:
            then = self._try_again(change)
        elif len(change.seats) == change.servers:
            then = self._commit(change, here)
        return then if fresh and then else [answer, *then]

    def _commit(self, change: _Change, here: Collection[int]) -> list[Decision]:
        """The layout is in force, from here on."""
        self.layout, self._change = change.layout, None
        self.seats = tuple(change.seats[server] for server in range(change.servers))
        self._behind[self.layout] = set(here)
        self._newsroom.servers = change.servers
        settled = Settled(self.layout, change.servers, self._newsroom.said + 1)
        self._settled[self.layout] = settled
        self._say(settled)
        why = f"layout {self.layout} is in force"
        told = [Answer(token, settled, why) for token in change.waiting.values()]
        self._retire()
        return [*told, *self._conclude(change.asker, settled, why)]

    def _try_again(self, change: _Change) -> list[Decision]:
        """A worker died with a step on some shards and not on others: make another cut.

        By then nobody can make that step, or somebody makes it again. In an epoch that was broken
        off perhaps nobody does: what still lies free there is given up.
        """
        if change.attempts >= _PATIENT_ATTEMPTS:
            self._leases.skip_broken_off()
        if change.attempts >= MOST_ATTEMPTS:
            return self.give_up("its servers have different updates at each cut")
        return self._revoke(change, Again(), "the shards have different updates")

    def give_up(self, why: str) -> list[Decision]:
        """Let everybody go on as before, if that is still possible."""
        change, self._change = self._change, None
        if change is None:
            return []
        failure = _failure(f"the job goes on with {some_servers(change.before)}: {why}")
        return [*self._revoke(change, failure, why), *self._conclude(change.asker, failure, why)]

    def _revoke(self, change: _Change, reply: Reply, why: str) -> list[Decision]:
        """Nothing comes of the present attempt."""
        if change.layout:
            self._newsroom.give_up_cut(-change.layout)
            self._own.append(Cut(-change.layout))
        tokens = [token for _, token in change.offers.values()]
        if change.dealt is not None:
            tokens = list(change.waiting.values())
        change.layout, change.offers, change.waiting, change.dealt = 0, {}, {}, None
        return [Answer(token, reply, why) for token in tokens]

    def _conclude(self, asker: int, reply: Reply, why: str) -> list[Decision]:
        self._outcomes[asker] = reply
        found, stranded = Servers(self.layout, self.seats), self._stranded
        self._stranded = []
        told: list[Decision] = [Answer(token, found, why) for token in stranded]
        token = self._asking.pop(asker, None)
        return told if token is None else [*told, Answer(token, reply, why)]

    # Those who come, go, and move.

    def lose(self, process: int, why: str) -> list[Decision]:
        """A process is dead: perhaps one that the change under way needs."""
        change = self._change
        if change is None:
            return []
        if process == change.asker:
            return self.give_up(f"the command that asked for {change.servers} is gone ({why})")
        for server, (offer, _) in change.offers.items():
            if offer.process == process:
                return self.give_up(f"the new server {server} is lost ({why})")
        return []

    def come(self, worker: int, layout: int) -> None:
        """A worker comes, which knows of `layout`."""
        for number, workers in self._behind.items():
            if number > layout:
                workers.add(worker)

    def forget(self, worker: int, layout: int | None = None) -> None:
        """A worker asks nothing of servers of earlier layouts than `layout` (None: of any)."""
        for number, workers in self._behind.items():
            if layout is None or number <= layout:
                workers.discard(worker)
        self._retire()

    def _retire(self) -> None:
        """Let those servers end that nobody needs."""
        needed = min((number for number, workers in self._behind.items() if workers), default=None)
        free = [number for number in self._behind if needed is None or number < needed]
        if free:
            self._behind = {n: w for n, w in self._behind.items() if n not in free}
            self._say(Retire(max(free)))

    def news(self) -> list[Decision]:
        """Answers that are due."""
        out, self._out = self._out, []
        return out

    def _say(self, word: Settled | Retire) -> None:
        self._newsroom.say(word)
        self._own.append(word)

    def take_own(self) -> list[Cut | Settled | Retire]:
        """What the coordinator's own server is to hear, as the others do."""
        own, self._own = self._own, []
        return own


_NOBODY_WANTS = "nobody has asked for such a server: it comes late, or the change was given up"


def _failure(text: str) -> Failure:
    return Failure(encode(ScaleError(text)))
