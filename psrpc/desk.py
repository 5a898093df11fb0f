"""Requests that are not answered yet, how they are answered, and what a failed worker says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from psrpc.core.decisions import Token
from psrpc.errors import JobFailedError, PeerLostError, PsrpcError
from psrpc.messages import Fail, Request
from psrpc.planes import base
from psrpc.planes.base import Landing, Payload


@dataclass(slots=True)
class Call:
    """A request that is not answered yet, and all those that its answer goes to."""

    request: Request
    tensors: Sequence[torch.Tensor] = ()
    answers: list[base.Answer] = field(default_factory=list)
    lands: list[Landing] = field(default_factory=list)
    landed: int = 0  # so many of the first of `lands` have been given the weights


class Desk:
    """Open calls by token. Not thread-safe; used under its owner's lock."""

    def __init__(self) -> None:
        self._calls: dict[Token, Call] = {}
        self.next_token = 0

    def open(self, call: Call) -> Token:
        """Keep a call until it is answered."""
        token, self.next_token = self.next_token, self.next_token + 1
        self._calls[token] = call
        return token

    def calls(self) -> list[tuple[Token, Call]]:
        """All open calls."""
        return list(self._calls.items())

    def reopen(self, next_token: Token, calls: Sequence[tuple[Token, Call]]) -> None:
        """Keep these calls in place of those that were kept."""
        self.next_token, self._calls = next_token, dict(calls)

    def look(self, token: Token) -> Call:
        """The open call of this token."""
        return self._calls[token]

    def attach(self, token: Token, first: Token) -> None:
        """Let the call `token` share the answer of the open call `first`."""
        again = self._calls.pop(token)
        self._calls[first].answers += again.answers
        self._calls[first].lands += again.lands

    def close(self, token: Token) -> Call:
        """Take out a call that is about to be answered."""
        return self._calls.pop(token)

    def clear(self) -> list[Call]:
        """Take out all open calls."""
        calls, self._calls = list(self._calls.values()), {}
        return calls


Answers = list[tuple[Call, Payload]]


def resolve(answers: Answers) -> None:
    """Send answers. Called without a lock, for it runs what waits for them."""
    for call, payload in answers:
        for answer in call.answers:
            answer(payload)


def lost_a_server(request: Fail) -> bool:
    """Whether what failed is a worker's way to a server, which others may still reach."""
    return request.error[0] == PeerLostError.__name__


def worker_failed(request: Fail) -> PsrpcError:
    """The error that ends a job by a worker's word: its failure, or one it was told of."""
    name, text = request.error
    if name == JobFailedError.__name__:
        return JobFailedError(text)
    who = f"worker {request.worker}" if request.worker >= 0 else "a worker that came"
    return JobFailedError(f"{who} failed: {name}: {text}")
