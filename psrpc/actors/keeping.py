"""Answers that wait until the head has the state that goes with them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from psrpc.actors import messages as m
from psrpc.actors.mail import Post
from psrpc.actors.packing import Packed


class Keeping:
    """What a runner's actors have saved, and the answers that nobody may hear before that is kept.

    Whoever has an answer must find its effect in an actor that begins again. The head is another
    connection than the caller's, so that it has the state can only be known from itself. Nobody
    waits here: an actor goes on to its next call meanwhile.
    """

    def __init__(self, say: Callable[[Any], None]) -> None:
        self._say = say  # to the head, which hears things in the order in which they are said
        self._owed: deque[list[tuple[Post, m.Answer]]] = deque()  # for each state, in that order
        self._lock = threading.Lock()

    def save(self, actor: int, state: Packed) -> None:
        """Send a state to the head."""
        with self._lock:
            self._owed.append([])
            self._say(m.Saved(actor, state))

    def answer(self, post: Post, answer: m.Answer) -> None:
        """Send an answer when all that was saved before it is kept."""
        with self._lock:
            if self._owed:
                self._owed[-1].append((post, answer))
                return
        post.send(answer)

    def kept(self) -> None:
        """The head has the first state that it had not."""
        with self._lock:
            answers = self._owed.popleft()
        for post, answer in answers:
            post.send(answer, at_once=False)
