"""Futures that cost little until somebody looks at them."""

from __future__ import annotations

import concurrent.futures as cf
import threading
from collections.abc import Iterable
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import Any

# Held for a moment by whoever settles promises, gives one up, or begins to look at one.
_settling = threading.Lock()
_MADE_LATE = frozenset({"_condition", "_waiters", "_done_callbacks"})


class Promise(cf.Future[Any]):
    """A `concurrent.futures.Future` whose result its maker gives by `finish` or `finish_all`.

    A condition and its lists cost more than all the rest of a short call, the garbage collector's
    work included, and most results are there before anybody looks. So they are made when
    somebody begins to wait.
    """

    _state = PENDING
    _result = None
    _exception = None
    _looked_at = False

    def __init__(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name not in _MADE_LATE:
            raise AttributeError(name)
        with _settling:
            if not self._looked_at:
                self._condition = threading.Condition()
                self._waiters: list[Any] = []
                self._done_callbacks: list[Any] = []
                self._looked_at = True
        return getattr(self, name)

    @property
    def given_up(self) -> bool:
        """Whether it was cancelled; for those who ask often."""
        return self._state is CANCELLED_AND_NOTIFIED

    @property
    def over(self) -> bool:
        """Whether it has a result, an error, or was cancelled; for those who ask often."""
        return self._state is FINISHED or self._state is CANCELLED_AND_NOTIFIED

    def result(self, timeout: float | None = None) -> Any:
        """See `concurrent.futures.Future`."""
        if self._state is FINISHED and self._exception is None:
            return self._result
        return super().result(timeout)

    def cancel(self) -> bool:
        """Give the result up; False if it is there already."""
        if self._state is FINISHED:
            return False
        with _settling:
            mine = not self._looked_at
            if mine and self._state is PENDING:
                self._state = CANCELLED_AND_NOTIFIED
            elif mine:
                return self._state is CANCELLED_AND_NOTIFIED
        if not mine:
            if self.cancelled():
                return True
            if not super().cancel():
                return False
            self.set_running_or_notify_cancel()
        self.withdraw()
        return True

    def withdraw(self) -> None:
        """It was given up: what a subclass does then."""

    def finish(self, value: Any, error: BaseException | None = None) -> bool:
        """The result is there, or the error in its place; False if it was given up."""
        with _settling:
            mine = not self._looked_at
            if mine and self._state is PENDING:
                self._result, self._exception = value, error
                self._state = FINISHED
                return True
        if mine:
            return False
        try:
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except cf.InvalidStateError:
            return False
        return True

    def __reduce__(self) -> Any:
        raise TypeError("a future stays in its process: send its result")


def finish_all(promises: Iterable[Promise], values: Iterable[Any]) -> None:
    """Several results are there."""
    watched = []
    with _settling:
        for promise, value in zip(promises, values, strict=True):
            if promise._looked_at:
                watched.append((promise, value))
            elif promise._state is PENDING:
                promise._result = value
                promise._state = FINISHED
    for promise, value in watched:
        promise.finish(value)
