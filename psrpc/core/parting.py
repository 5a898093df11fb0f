"""Who has left, and which of them reports the results."""

from __future__ import annotations

from psrpc.core.decisions import Answer, Decision, Hold, Same, Token
from psrpc.core.words import Words
from psrpc.messages import Bye, Left


class Parting:
    """The end of the workers: they leave together, and say farewell when they have all they want.

    The one of lowest rank of those who stay to the end reports the results. The others' farewells
    are answered when it has said its own: if it dies before, one of them takes its place.
    """

    def __init__(self, words: Words) -> None:
        self._words = words
        self.here: set[int] = set()  # may still say something
        self._leaving: dict[int, int] = {}  # those who wait for the others' leaving: their ranks
        self._stayed: dict[int, int] = {}  # those who left together, and have not gone: their ranks
        self._main: int | None = None  # of those
        self._held: dict[int, Token] = {}  # their farewells
        self._told: dict[int, Left] = {}  # how farewells were answered

    @property
    def all_gone(self) -> bool:
        """Whether nobody will say anything again."""
        return not self.here

    def come(self, worker: int) -> None:
        """A worker belongs to the job."""
        self.here.add(worker)

    def leave(self, worker: int, rank: int) -> None:
        """A worker is done, and waits for the others."""
        self._leaving[worker] = rank

    def waits(self, worker: int) -> bool:
        """Whether a worker waits for the others' leaving."""
        return worker in self._leaving

    def part(self) -> list[Decision]:
        """All are done: let those go who wait for each other."""
        leaving, self._leaving = self._leaving, {}
        if leaving:
            self._stayed = dict(leaving)
            self._main = min(leaving, key=leaving.__getitem__)
        return [
            self._words.answer(worker, Left(main=worker == self._main), "all workers have left")
            for worker in sorted(leaving)
        ]

    def bye(self, request: Bye, token: Token) -> list[Decision]:
        """A worker has said its last word, perhaps while it waited for the others' leaving."""
        worker = request.worker
        decisions: list[Decision] = []
        if self._leaving.pop(worker, None) is not None:
            decisions.append(self._words.answer(worker, Left(), "it waits no longer"))
        if worker in self._told:
            return [*decisions, Answer(token, self._told[worker], "as the first time")]
        if worker == self._main:
            return [*decisions, *self._report(token)]
        if worker not in self._stayed:
            return [*decisions, self._dismiss(worker, token)]
        if worker in self._held and not request.gone:
            return [*decisions, Same(token, self._held[worker], "said before, and still open")]
        if request.gone:
            held = [self._held.pop(worker)] if worker in self._held else []
            return [*decisions, *(self._dismiss(worker, each) for each in (*held, token))]
        self._held[worker] = token
        return [*decisions, Hold(token, f"worker {self._main} has not got the results yet")]

    def lose(self, worker: int) -> list[Decision]:
        """A worker is dead: if it was the one to report, another is."""
        self._leaving.pop(worker, None)
        held = self._held.pop(worker, None)
        decisions: list[Decision] = [] if held is None else [self._dismiss(worker, held)]
        self._go(worker, Left())
        if worker != self._main:
            return decisions
        self._main = min(self._stayed, key=self._stayed.__getitem__, default=None)
        if self._main is not None and self._main in self._held:
            decisions += self._report(self._held.pop(self._main))
        return decisions

    def _report(self, token: Token) -> list[Decision]:
        """The one that reports has all that it needs: the others may go."""
        assert self._main is not None
        main, self._main = self._main, None
        self._go(main, Left(main=True))
        held, self._held = self._held, {}
        self._stayed.clear()
        return [
            Answer(token, self._told[main], "it reports the results"),
            *(self._dismiss(worker, each) for worker, each in sorted(held.items())),
        ]

    def _dismiss(self, worker: int, token: Token) -> Decision:
        self._go(worker, Left())
        return Answer(token, self._told[worker], "another reports the results")

    def _go(self, worker: int, told: Left) -> None:
        self.here.discard(worker)
        self._stayed.pop(worker, None)
        self._told.setdefault(worker, told)  # the death of one that has reported changes nothing
