"""A runner: a process in which actors live."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy.random

from psrpc.actors import current
from psrpc.actors import messages as m
from psrpc.actors.cell import NO_MORE, Cell, Hooks
from psrpc.actors.crew import Threads
from psrpc.actors.doors import UNIX
from psrpc.actors.keeping import Keeping
from psrpc.actors.mail import Mail, Post
from psrpc.actors.packing import Packed, pack_error
from psrpc.errors import ActorLostError, AddressError


def main(address: str, number: int) -> None:
    """Be a runner until the head is gone, or the node, with which the kernel ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    numpy.random.seed()
    current.be_at(address)
    runner = Runner(address)
    try:
        runner.start(number)
    except AddressError:
        return  # The head has ended meanwhile.
    threading.Event().wait()


class Runner:
    """The actors of this process, and the connections by which they are called."""

    def __init__(self, head: str) -> None:
        self._address = head
        self._mail = Mail(self._got, lambda post: None, "psrpc-runner")
        self._mail.squeeze = _squeeze
        self._head: Post | None = None
        self._cells: dict[int, Cell] = {}
        self._early: defaultdict[int, list[tuple[Post, m.Call]]] = defaultdict(list)
        self._gone: dict[int, None] = {}
        self._threads = Threads()
        self._keeping = Keeping(self._say)
        self._hooks = Hooks(
            self._born, self._stillborn, self._retired, self._keeping.save, self._keeping.answer
        )

    def start(self, number: int) -> None:
        """Take calls, and say so to the head."""
        token, _, where = self._address.rpartition("@")
        self._mail.due, self._mail.tick = self._threads.due, self._threads.look
        head = self._head = self._mail.connect(self._address)
        if where.startswith(UNIX):
            own = f"{UNIX}psrpc-runner-{os.getpid()}-{secrets.token_hex(4)}"
        else:
            own = head.sock.getsockname()[0]
        self._mail.listen(own, token)
        head.got, head.over = self._told, _end
        self._mail.start()
        head.send(m.RunnerHello(number, self._mail.address, os.getpid()))

    def _got(self, post: Post, batch: list[m.Call]) -> None:
        """Calls: each goes into its actor's mailbox."""
        cells, take = self._cells, self._threads.take
        for call in batch:
            cell = cells.get(call[1])
            if call[2] == m.MANY:
                self._many(post, call)
            elif cell is not None:
                if cell.put((post, call)):
                    take(cell.run)
            elif call[1] in self._gone:
                gone = pack_error(ActorLostError(NO_MORE))
                post.send((call[0], m.GONE, gone), at_once=False)
            else:
                self._early[call[1]].append((post, call))  # the head's word is on its way

    def _many(self, post: Post, call: m.Call) -> None:
        cell, calls = self._cells.get(call[1]), m.calls_apart(call)
        if cell is None:
            self._got(post, list(calls))
        elif cell.put_all(post, calls):
            self._threads.take(cell.run)

    def _told(self, post: Post, batch: list[Any]) -> None:
        for message in batch:
            if isinstance(message, m.Embody):
                cell = self._cells[message.actor] = Cell(message, self._hooks)
                if cell.put(None):
                    self._threads.take(cell.run)
                for letter in self._early.pop(message.actor, ()):
                    if cell.put(letter):
                        self._threads.take(cell.run)
            elif isinstance(message, m.Discard):
                self._forget(message.actor)
            elif isinstance(message, m.Kept):
                self._keeping.kept()

    def _forget(self, actor: int) -> None:
        self._gone[actor] = None
        while len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]
        cell = self._cells.pop(actor, None)
        if cell is not None:
            cell.discard()

    def _say(self, message: Any) -> None:
        assert self._head is not None
        self._head.send(message)

    def _born(self, actor: int) -> None:
        self._say(m.Born(actor))

    def _stillborn(self, actor: int, error: Packed) -> None:
        self._say(m.Stillborn(actor, error))

    def _retired(self, actor: int) -> None:
        self._say(m.Retired(actor))


def _squeeze(batch: list[Any]) -> list[Any]:
    """Answers go in fewer messages; what is said to the head goes as it is."""
    return m.answers_together(batch) if type(batch[0]) is tuple else batch


_REMEMBERED = 100_000
_end: Callable[[Post], None] = lambda post: os._exit(0)  # noqa: E731
