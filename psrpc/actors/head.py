"""The head of a cluster: the roster, on a thread of its own, behind connections."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from psrpc.actors import messages as m
from psrpc.actors.doors import NO_TOKEN, TOKEN_BYTES, UNIX
from psrpc.actors.mail import Mail, Post
from psrpc.actors.roster import Roster, Said
from psrpc.core.placement import Resources

HEAD_NAME = "psrpc-head-"


class Head:
    """Keeps the roster. `where` is a host's address; by default this user's processes here."""

    def __init__(self, where: str | None = None) -> None:
        self.roster = Roster()
        self._mail = Mail(self._got, self._over, "psrpc-head")
        self._where = where or f"{UNIX}{HEAD_NAME}{os.getpid()}-{secrets.token_hex(4)}"
        here = self._where.startswith(UNIX)
        self._token = NO_TOKEN if here else secrets.token_hex(TOKEN_BYTES // 2)
        self._posts: dict[int, Post] = {}
        self._keys = itertools.count(1)
        self._clients = itertools.count(1)
        self._runners: dict[int, int] = {}  # by key

    @property
    def address(self) -> str:
        """Where nodes, runners and clients reach this, and what lets them in."""
        return self._mail.address

    def start(self) -> None:
        """Listen. Raises AddressError."""
        self._mail.listen(self._where, self._token)
        self._mail.start()

    def expect(self, name: str, whole: Resources, labels: Mapping[str, str]) -> None:
        """A node is about to come; before `start`."""
        self.roster.expect(name, whole, labels)

    def close(self) -> None:
        """End the cluster: nodes and runners end when their connection does."""
        self._mail.close()

    def _got(self, post: Post, batch: list[Any]) -> None:
        if post.tag is None:
            post.tag = next(self._keys)
            self._posts[post.tag] = post
        for message in batch:
            self._say(self._hear(post.tag, message))

    def _over(self, post: Post) -> None:
        key = post.tag
        if key is None:
            return
        del self._posts[key]
        runner = self._runners.pop(key, None)
        if runner is not None:
            self._say(self.roster.runner_silent(runner))
        self._say(self.roster.connection_lost(key))

    def _say(self, said: Said) -> None:
        for key, message in said:
            with suppress(KeyError):
                self._posts[key].send(message)

    def _hear(self, key: int, message: Any) -> Said:
        roster = self.roster
        match message:
            case m.Create():
                return roster.create(key, message)
            case m.Locate(actor, after):
                return roster.locate(key, actor, after)
            case m.Born(actor):
                return roster.born(actor)
            case m.Saved(actor, state):
                return [*roster.saved(actor, state), (key, m.Kept())]
            case m.Retired(actor):
                return roster.end(actor, "nobody had a handle to it any more")
            case m.Kill(actor):
                return roster.end(actor, "it was killed")
            case m.Stillborn(actor, error):
                return roster.end(actor, "its constructor failed", error)
            case m.Find(ticket, name):
                return roster.find(key, ticket, name)
            case m.AskStatus(ticket):
                return roster.status(key, ticket)
            case m.RunnerHello(runner, address, pid):
                self._runners[key] = runner
                return roster.runner_came(key, runner, address, pid)
            case m.RunnerEnded(runner, how):
                return roster.runner_lost(runner, how)
            case m.NodeHello(name, whole, labels):
                return roster.node_came(key, name, whole, labels)
            case m.ClientHello():
                return [(key, m.Welcome(next(self._clients)))]
        return []
