"""The coordinator's side when servers are added or removed: it has the job cut, and takes times.

What is decided is decided in `core.resharding`; here it is seen to that a change comes to an end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from psrpc.checkpointer import Orders
from psrpc.coordinator import Coordinator
from psrpc.core.decisions import some_servers
from psrpc.counts import Reshard
from psrpc.mover import CUT_WITHIN_S, Mover
from psrpc.saying import say

_LOOK_AGAIN_S = 0.25  # while servers come or rows move
_IDLE_S = 5.0  # all that may begin a change is told; this is for what may have been forgotten
_LOOK_AFTER_S = 2.0  # how often it is seen whether those live that are waited for
_AGAIN_S = 0.1


class Reshaper:
    """Carries changes through, in a thread of its own.

    New servers are waited for `within_s`. `turn` is held while the job is cut: nobody else may cut
    it then. `all_answer` is whether all servers of the present layout live; it may block.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        orders: Orders,
        mover: Mover,
        turn: threading.Lock,
        within_s: float,
        all_answer: Callable[[], bool],
    ) -> None:
        self._all_answer = all_answer
        self._coordinator = coordinator
        self._orders = orders
        self._mover = mover
        self._turn = turn
        self._within_s = within_s
        self._began_s = time.monotonic()
        self._history: list[Reshard] = []
        self._halted_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="psrpc-reshaper", daemon=True)
        coordinator.reshards = self.history

    def start(self) -> None:
        """Begin to look for what is asked for."""
        self._thread.start()

    def close(self) -> None:
        """Stop. Blocks."""
        self._stop.set()
        with self._coordinator.changed:
            self._coordinator.changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def history(self) -> tuple[Reshard, ...]:
        """The changes that were made."""
        self._note_stall()
        return tuple(self._history)

    def _run(self) -> None:
        resharding = self._coordinator.core.resharding
        since_s = time.monotonic()
        while not self._stop.is_set():
            if not resharding.under_way:
                self._await_change()
                since_s = time.monotonic()
                continue
            if resharding.may_cut:
                self._cut()
                continue
            if time.monotonic() - since_s > self._within_s:
                late = ", ".join(map(str, resharding.to_come))
                self._orders.give_up_layout(
                    f"the new servers {late} have not come within {self._within_s:g} s"
                )
            self._wait(_LOOK_AGAIN_S)

    def _cut(self) -> None:
        """Have the servers cut, and see it through: the layout is in force then, or given up."""
        orders, resharding = self._orders, self._coordinator.core.resharding
        with self._turn:
            if self._stop.is_set() or not resharding.may_cut:
                return
            before = resharding.servers
            giver = self._mover.halt(layout := resharding.next_layout)
            self._note_stall()
            halted_s = time.monotonic()
            orders.begin_layout(giver)
            looked_s = halted_s
            while resharding.cutting and not self._stop.is_set():
                now_s = time.monotonic()
                if now_s - halted_s > CUT_WITHIN_S:
                    orders.give_up_layout(f"servers were not ready within {CUT_WITHIN_S:g} s")
                elif resharding.doubted or now_s - looked_s > _LOOK_AFTER_S:
                    if not self._all_answer():
                        orders.give_up_layout("a server is lost")
                    looked_s = time.monotonic()
                self._wait(_LOOK_AGAIN_S)
        if resharding.layout != layout:
            self._stop.wait(_AGAIN_S)  # a worker has died, and others do its work again
            return
        self._note(layout, before, resharding.servers, halted_s)

    def _note(self, layout: int, before: int, servers: int, halted_s: float) -> None:
        held_s = self._coordinator.settled_s - halted_s
        at_s = halted_s - self._began_s
        self._halted_s = halted_s
        self._history.append(Reshard(layout, before, servers, at_s, held_s, held_s))
        say(f"{some_servers(servers)} from now on, after {before}")

    def _note_stall(self) -> None:
        """The first step in the latest layout tells how long none was made."""
        resumed_s = self._coordinator.meter.resumed_s
        if self._history and resumed_s is not None:
            made = self._history[-1]
            stall_s = max(resumed_s - self._halted_s, made.held_s)
            self._history[-1] = Reshard(
                made.layout, made.before, made.servers, made.at_s, made.held_s, stall_s
            )

    def _await_change(self) -> None:
        """Wait until somebody wants other servers. An idle job is not woken up for this."""
        resharding, changed = self._coordinator.core.resharding, self._coordinator.changed
        with changed:
            changed.wait_for(lambda: resharding.under_way or self._stop.is_set(), _IDLE_S)

    def _wait(self, limit_s: float) -> None:
        with self._coordinator.changed:
            self._coordinator.changed.wait(limit_s)
