"""An actor in its runner: a mailbox, and an object that takes one message at a time."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

from psrpc.actors.mail import Post
from psrpc.actors.messages import (
    CANCELLED,
    CHUNK,
    GONE,
    LEARN,
    PACKED,
    RAISED,
    READY,
    RETIRE,
    Answer,
    Call,
    Embody,
)
from psrpc.actors.messages import PLAIN as PLAIN_VALUE
from psrpc.actors.packing import Packed, is_plain, pack, pack_error, unpack
from psrpc.errors import ActorLostError, UsageError

Letter = tuple[Post, Call]


NO_MORE = "the actor is no more: it was killed, or nobody had a handle to it"
_MOST_FUNCTIONS = 10_000


class Functions:
    """An actor that runs any function: the member of a pool without a class."""

    def __init__(self) -> None:
        self.known: dict[int, Callable[..., Any]] = {}

    def learn(self, number: int, definition: bytes) -> None:
        """Know a function by its number."""
        self.known[number] = unpack((definition, []))
        if len(self.known) > _MOST_FUNCTIONS:
            del self.known[next(iter(self.known))]


class Hooks:
    """What a cell tells its runner."""

    def __init__(
        self,
        born: Callable[[int], None],
        stillborn: Callable[[int, Packed], None],
        retired: Callable[[int], None],
        saved: Callable[[int, Packed], None],
        answer: Callable[[Post, Answer], None],
    ) -> None:
        self.born = born
        self.stillborn = stillborn
        self.retired = retired
        self.saved = saved
        self.answer = answer  # once what was saved is kept


class Cell:
    """`put` is called by the thread that reads, `run` by one other thread at a time."""

    __slots__ = (
        "_begun",
        "_busy",
        "_error",
        "_instance",
        "_lock",
        "_mailbox",
        "_stateful",
        "embody",
        "hooks",
    )

    def __init__(self, embody: Embody, hooks: Hooks) -> None:
        self.embody: Embody | None = embody
        self.hooks = hooks
        self._mailbox: deque[Letter | None] = deque([None])  # None: be made
        self._lock = threading.Lock()
        self._begun: Letter | None = None  # what it does now
        self._busy = False
        self._instance: Any = None
        self._stateful = False
        self._error: Packed | None = None

    def put(self, letter: Letter | None) -> bool:
        """Add a call; True if `run` must be called on some thread."""
        with self._lock:
            if letter is not None:
                if letter[1][2] is None and self._drop(letter):
                    return False
                self._mailbox.append(letter)
            if self._busy:
                return False
            self._busy = True
            return True

    def put_all(self, post: Post, calls: Iterable[Call]) -> bool:
        """Add several calls; True if `run` must be called on some thread."""
        with self._lock:
            self._mailbox.extend(zip(repeat(post), calls))
            if self._busy:
                return False
            self._busy = True
            return True

    def discard(self) -> None:
        """Take no calls any more; who waits for one, or for the one that has begun, is told so.

        What that one answers yet is an answer to nobody.
        """
        with self._lock:
            self._error = pack_error(ActorLostError(NO_MORE))
            letters = [each for each in (self._begun, *self._mailbox) if each is not None]
            self._mailbox.clear()
        for post, call in letters:
            post.send((call[0], GONE, self._error))

    def run(self) -> None:
        """Do what is in the mailbox until it is empty."""
        while True:
            with self._lock:
                if not self._mailbox:
                    self._busy, self._begun = False, None
                    return
                letter = self._begun = self._mailbox.popleft()
            if letter is None:
                self._be_made()
                continue
            post, call = letter
            answer = self._answer(call)
            if self._stateful:
                self.hooks.answer(post, answer)
            else:
                post.send(answer, at_once=not self._mailbox)

    def _drop(self, letter: Letter) -> bool:
        """Take a cancelled call out of the mailbox, if it is still there."""
        post, (number, *_) = letter
        for place, other in enumerate(self._mailbox):
            if other is not None and other[0] is post and other[1][0] == number:
                del self._mailbox[place]
                post.send((number, CANCELLED, None), at_once=False)
                return True
        return True  # it has begun, and its answer will tell

    def _be_made(self) -> None:
        assert self.embody is not None
        number, spec, saved = self.embody.actor, self.embody.spec, self.embody.saved
        self.embody = None  # arguments may be large
        try:
            kind = unpack((spec.definition, []))
            args, kwargs = unpack(spec.arguments)
            self._instance = kind(*args, **kwargs)
            self._stateful = hasattr(self._instance, "save_state")
            if saved is not None:
                self._instance.load_state(unpack(saved))
        except BaseException as error:
            self._error = pack_error(error)
            self.hooks.stillborn(number, self._error)
            return
        self.hooks.born(number)

    def _answer(self, call: Call) -> Answer:
        number, actor, method, args, kwargs = call
        if self._error is not None:
            return number, GONE, self._error
        if method == RETIRE:
            self._error = pack_error(ActorLostError(NO_MORE))
            self._instance = None
            self.hooks.retired(actor)
            return number, PLAIN_VALUE, None
        try:
            if kwargs is None:
                args, kwargs = unpack(args)
            value = self._call(method, args, kwargs)
            if self._stateful:
                self.hooks.saved(actor, pack(self._instance.save_state()))
            if is_plain(value):
                return number, PLAIN_VALUE, value
            return number, PACKED, pack(value)
        except BaseException as error:
            return number, RAISED, pack_error(error)

    def _call(self, method: str | int | None, args: Any, kwargs: Any) -> Any:
        if method == CHUNK:
            return [self._one_of(self._named(args[0]), each) for each in args[1]]
        elif method == READY:
            return None
        elif method == LEARN:
            return self._instance.learn(*args)
        else:
            function = self._named(method)
            value = function(*args, **kwargs) if kwargs else function(*args)
        return asyncio.run(value) if inspect.iscoroutine(value) else value

    def _named(self, name: Any) -> Callable[..., Any]:
        if type(name) is int:
            function: Callable[..., Any] = self._instance.known[name]
            return function
        found: Callable[..., Any] | None = getattr(self._instance, name, None)
        if found is None:
            if isinstance(self._instance, Functions):
                raise UsageError(f"a pool without a class does functions, not {name!r} by its name")
            raise UsageError(f"{type(self._instance).__name__} has no method {name!r}")
        return found

    def _one_of(self, function: Callable[..., Any], args: Any) -> tuple[Packed | None, Any]:
        try:
            value = function(*args)
            return None, asyncio.run(value) if inspect.iscoroutine(value) else value
        except Exception as error:
            return pack_error(error), None
