"""A store that answers in time, or counts as gone.

Torch's own store waits for ever for the answer of one whose host is cut off, or that is stopped,
and is deaf to signals meanwhile.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from torch._C._distributed_c10d import Store

_ANSWER_S = 30.0
_LONGEST_CUT_S = 150.0

Answer = TypeVar("Answer")

_Question = tuple[Callable[[], Any], Future[Any]]


class TimelyStore:
    """A store's `check`, `get`, `set`, `compare_set` and `add`, by a thread of its own.

    Callers may be many.

    Raises RuntimeError, as torch does for a store that is gone, if the answer takes longer than
    `answer_s`; from then on at once, until the store answers again.
    """

    def __init__(self, store: Store, answer_s: float = _ANSWER_S) -> None:
        self._store = store
        self._answer_s = answer_s
        self._stuck = False
        self._closed = False
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="psrpc-store", daemon=True)
        self._thread.start()

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        return bool(self._ask(lambda: self._store.check(keys)))

    def get(self, key: str) -> bytes:
        """The value of a key that is there."""
        value: bytes = self._ask(lambda: self._store.get(key))
        return value

    def set(self, key: str, value: str) -> None:
        """Give a key a value."""
        self._ask(lambda: self._store.set(key, value))

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Set a key that has the value `expected` ("": none); returns what it has then."""
        value: bytes = self._ask(lambda: self._store.compare_set(key, expected, desired))
        return value

    def add(self, key: str, amount: int) -> int:
        """Add to a key's number, and return the sum."""
        return int(self._ask(lambda: self._store.add(key, amount)))

    def branch(self, name: str) -> Branch:
        """The keys under `name`."""
        return Branch(self, self._store, name)

    def close(self) -> None:
        """Ask no more: the thread ends, if it can, and lets go of the store."""
        self._closed = True
        self._questions.put(None)

    def _ask(self, question: Callable[[], Any]) -> Any:
        if self._stuck:
            raise self._silent(self._answer_s)
        return self.ask(question, self._answer_s)

    def ask(self, question: Callable[[], Answer], answer_s: float) -> Answer:
        """What the store's thread has for an answer, even if it owes others."""
        answer: Future[Answer] = Future()
        self._questions.put((question, answer))
        if self._closed and answer.cancel():
            raise RuntimeError("this way to the store is closed")
        try:
            return answer.result(answer_s)
        except TimeoutError:
            answer.cancel()  # if it was not asked yet it never is
            self._stuck = True
        raise self._silent(answer_s)

    def _silent(self, answer_s: float) -> RuntimeError:
        return RuntimeError(f"the store has not answered for {answer_s:g} s")

    def _run(self) -> None:
        while (asked := self._questions.get()) is not None:
            question, answer = asked
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                found = question()
            except Exception as error:
                self._stuck = False
                answer.set_exception(error)
            else:
                self._stuck = False
                answer.set_result(found)


class Branch:
    """The keys of a store under a name, by the same thread.

    Who asks here waits for as long as a cut link may take to heal.
    """

    def __init__(self, way: TimelyStore, store: Store, name: str) -> None:
        self._way = way
        self._store = store
        self._name = name

    def check(self, keys: list[str]) -> bool:
        """See `TimelyStore`."""
        return bool(self._ask(lambda: self._store.check([self._under(key) for key in keys])))

    def get(self, key: str) -> bytes:
        """See `TimelyStore`."""
        return self._ask(lambda: self._store.get(self._under(key)))

    def set(self, key: str, value: str) -> None:
        """See `TimelyStore`."""
        self._ask(lambda: self._store.set(self._under(key), value))

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """See `TimelyStore`."""
        return self._ask(lambda: self._store.compare_set(self._under(key), expected, desired))

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        return self._way.ask(question, _LONGEST_CUT_S)

    def _under(self, key: str) -> str:
        return f"{self._name}/{key}"
