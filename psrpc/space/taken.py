"""A tuple that was taken for a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from psrpc.errors import LeaseLostError
from psrpc.space.words import Word

Ask = Callable[[Word, Any], bool]


class Taken(tuple[Any, ...]):
    """A leased tuple: it comes back into its space if its taker dies or the lease ends.

    `confirm` when the work on it is done. As a context manager it is confirmed at the end, and
    given back if an exception leaves the block. LeaseLostError says that the lease had ended:
    somebody else may have the tuple.
    """

    _ask: Callable[..., Any]

    @classmethod
    def of(cls, fields: Iterable[Any], ask: Callable[..., Any]) -> Taken:
        """The tuple, with what asks its owner about its lease."""
        taken = cls(fields)
        taken._ask = ask
        return taken

    def confirm(self) -> None:
        """The tuple is gone for good. Blocks until its owner says so."""
        self._must(self._ask(Word.CONFIRM))

    def give_back(self) -> None:
        """The tuple is in the space again, before all others."""
        self._must(self._ask(Word.GIVE_BACK))

    def renew(self, lease_s: float) -> None:
        """The lease runs for `lease_s` seconds from now."""
        self._must(self._ask(Word.RENEW, lease_s))

    def _must(self, held: bool) -> None:
        if not held:
            raise LeaseLostError(f"the lease on {tuple(self)!r:.200} had ended")

    def __enter__(self) -> Taken:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._ask(Word.GIVE_BACK) if kind is not None else self.confirm()

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)
