"""Requests on their way through a simulated network, and words for what happens to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from psrpc.errors import FencedError, JobFailedError, JobOverError, ScaleError
from psrpc.messages import (
    Acquire,
    Failure,
    Granted,
    Pull,
    Push,
    Reply,
    Request,
    Stepped,
    StreamKind,
    Welcome,
)
from psrpc.moves import Moved
from psrpc.testing.events import EventHeap
from psrpc.testing.network import Network

Trace = Callable[[str], None]
LONGEST_PATIENCE_S = 5.0


class CheckError(AssertionError):
    """A simulated job did what no job may do."""


@dataclass(frozen=True)
class Lost(Reply):
    """No server's answer: the connection to it has ended."""


# The errors that a server may answer with; any other one is a mistake.
_EXPECTED = {error.__name__ for error in (FencedError, JobFailedError, JobOverError, ScaleError)}


class TakenForDeadError(Exception):
    """A worker is taken for dead."""


class NoJobError(Exception):
    """There is no job any more, or not for this worker."""


class ElsewhereError(Exception):
    """A server is of another layout, or (`lost`) gone."""

    def __init__(self, *, lost: bool) -> None:
        super().__init__(lost)
        self.lost = lost


@dataclass(eq=False, slots=True)
class Call:
    """One request to one server, said again and again until it has its reply."""

    server: int
    request: Request
    answered: Callable[[Call, Reply], None]
    cut: Callable[[], bool]
    reply: Reply | None = None
    abandoned: bool = False
    reason: str = "it has not come through"

    @property
    def open(self) -> bool:
        """Whether somebody still waits for the reply."""
        return self.reply is None and not self.abandoned


class Caller:
    """Says one worker's requests until they are answered, and wakes it when all are."""

    def __init__(
        self,
        deliver: list[Callable[[Call], None]],
        network: Network,
        events: EventHeap,
        retry_s: float,
        wake: Callable[[], None],
        trace: Trace | None = None,
        cut: Callable[[int], bool] = lambda server: False,
    ) -> None:
        self.waits_for: list[Call] = []
        self._deliver = deliver
        self._network = network
        self._events = events
        self._retry_s = retry_s
        self._wake = wake
        self._trace = trace
        self._cut = cut
        self._calls: list[Call] = []
        self._gone = False

    def ask(self, server: int, request: Request) -> Call:
        """Send `request`; its reply comes into the call some time."""
        call = Call(server, request, self._answered, partial(self._cut, server))
        call.abandoned = self._gone
        self._calls = [each for each in self._calls if each.open]
        self._calls.append(call)
        self._say(call, self._retry_s)
        return call

    def wait_for(self, calls: list[Call]) -> bool:
        """Wake the worker when all `calls` are answered; False if they are already."""
        self.waits_for = [call for call in calls if call.open]
        return bool(self.waits_for)

    def abandon(self) -> None:
        """The process is gone: it says nothing again, and hears nothing."""
        self._gone = True
        for call in self._calls:
            call.abandoned = True
        self.waits_for.clear()

    def _say(self, call: Call, patience_s: float) -> None:
        if call.open:
            if not call.cut():
                self._network.send(self._deliver[call.server], call)
            patience_s = min(patience_s, LONGEST_PATIENCE_S)
            self._events.after(patience_s, self._say, call, 2.0 * patience_s)

    def _answered(self, call: Call, reply: Reply) -> None:
        if not call.open:
            return
        if isinstance(reply, Failure) and reply.error[0] not in _EXPECTED:
            raise CheckError(f"{describe(call.request)} was refused: {reply.error[1]}")
        if self._trace is not None:
            worker, words = call.request.worker, describe(reply)
            self._trace(f"worker {worker} <- server {call.server}: {words}")
        call.reply = reply
        if call in self.waits_for:
            self.waits_for.remove(call)
            if isinstance(reply, Lost):
                self._lose()
            if not self.waits_for:
                self._wake()

    def _lose(self) -> None:
        """A server is gone: whoever waits need not wait for the others."""
        self.waits_for.clear()


def heed(calls: Sequence[Call]) -> None:
    """Raise what a worker's answers say that are none to what it asked, if any do."""
    errors = {call.reply.error[0] for call in calls if isinstance(call.reply, Failure)}
    if errors & {JobFailedError.__name__, JobOverError.__name__}:
        raise NoJobError
    if errors:
        raise TakenForDeadError
    if any(isinstance(call.reply, Moved | Lost) for call in calls):
        raise ElsewhereError(lost=not any(isinstance(call.reply, Moved) for call in calls))


def describe(message: Request | Reply) -> str:
    """A few words for a request or a reply."""
    name = type(message).__name__
    match message:
        case Push(key=key):
            kind = "lease" if key.stream.kind is StreamKind.LEASE else "worker"
            stream = f"{kind} {key.stream.major}/{key.stream.minor} step {key.sequence}"
            return f"{name} at clock {message.clock} of {stream}{' void' if message.void else ''}"
        case Pull():
            return f"{name} at clock {message.clock}"
        case Acquire():
            return f"{name} {message.serial} in epoch {message.epoch}"
        case Stepped():
            again = " duplicate" if message.duplicate else ""
            return f"{name} version {message.version} lead {message.lead}{again}"
        case Granted(lease=None):
            return f"{name} view {message.view.epoch}, nothing"
        case Granted(lease=lease):
            return f"{name} view {message.view.epoch}, {lease}"
        case Welcome():
            return f"{name} as worker {message.worker}"
        case Failure():
            return f"{name} {message.error[0]}: {message.error[1]}"
        case _:
            return name
