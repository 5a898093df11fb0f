"""Where a job is cut, for a checkpoint or a new layout: what comes before, and what waits.

A shard is halted first: it says how many steps of each worker it has, and takes no new ones.
The cut is then at the most that any shard has of each worker. What a shard lacks is on its way
to it, for a worker sends a step to all shards at once; so nobody waits for a step to be made.
"""

from __future__ import annotations

from psrpc.core.consistency import Gate
from psrpc.core.decisions import Token
from psrpc.messages import Push
from psrpc.orders import Cut

Parked = tuple[Push, Token]
Clocks = tuple[tuple[int, int], ...]


class Cutting:
    """The cut under way at one shard, if there is one.

    `heard` is how many words about cuts have come so far, `latest` the number of the latest
    checkpoint that was heard of, `census` the number and clocks at which the shard stands halted.
    One that is cut for a new layout is `frozen` from then on: nothing changes that steps change.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.number: int | None = None
        self.latest: int | None = None
        self.heard = 0
        self.census: tuple[int | None, Clocks] = (None, ())
        self.frozen = False
        self._cut: Cut | None = None
        self._clocks: dict[int, int] = {}
        self._parked: list[Parked] = []

    def halt(self, number: int) -> Clocks:
        """Take no new steps until the cut `number` is made or given up; returns the clocks."""
        self.number, self._cut, self._clocks, self.frozen = number, None, {}, False
        gate = self._gate
        clocks = tuple((worker, gate.clock(worker)) for worker in sorted(gate.active))
        self.heard, self.census = self.heard + 1, (number, clocks)
        if not self.moving:
            self.latest = number
        return clocks

    def hear(self, words: int | None = None) -> None:
        """It is said where to cut, or that there is no cut. `words` have been said by then."""
        self.heard = self.heard + 1 if words is None else words
        self.census = (None, ())

    def begin(self, cut: Cut) -> list[Parked]:
        """It is known where to cut; returns the waiting pushes that come before that."""
        self.number, self._cut, self._clocks = cut.number, cut, dict(cut.clocks)
        before = [parked for parked in self._parked if not self.holds(parked[0])]
        self._parked = [parked for parked in self._parked if self.holds(parked[0])]
        return before

    def holds(self, push: Push) -> bool:
        """Whether a push comes after the cut, as far as is known."""
        if self.frozen:
            return True
        return self.number is not None and push.clock >= self._clocks.get(push.worker, 0)

    @property
    def moving(self) -> int:
        """The layout for which the shard is halted, or stands at the cut; 0: for none."""
        return -self.number if self.number is not None and self.number < 0 else 0

    def park(self, push: Push, token: Token) -> None:
        """Let a push wait for the image."""
        self._parked.append((push, token))

    def keep(self, workers: frozenset[int]) -> None:
        """Forget the pushes of others than `workers`."""
        self._parked = [parked for parked in self._parked if parked[0].worker in workers]

    def lets_close(self) -> bool:
        """Whether the current round comes before the cut, if there is one."""
        if self.number is None:
            return True
        if self.frozen:
            return False
        gate = self._gate
        now = gate.floor
        return any(
            self._clocks.get(worker, 0) > now for worker in gate.active if gate.clock(worker) == now
        )

    def due(self) -> Cut | None:
        """The cut, when all steps before it are made."""
        if self.frozen:
            return None
        gate = self._gate
        behind = (w for w, clock in self._clocks.items() if gate.clock(w) < clock)
        return None if any(worker in gate.active for worker in behind) else self._cut

    def end(self) -> list[Parked]:
        """Go on; returns the pushes that have waited."""
        parked, self._parked = self._parked, []
        self.number, self._cut, self._clocks, self.frozen = None, None, {}, False
        return parked
