"""`psrpc scale`: add servers to a running job, or remove some, and be the new ones' launcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

from psrpc.core.decisions import some_servers
from psrpc.environment import Place
from psrpc.errors import JobOverError, PeerLostError, PsrpcError, ScaleError
from psrpc.isolation import Roles, terminable
from psrpc.job import PlaneChoice
from psrpc.lobby import Lobby, Running
from psrpc.messages import Reply
from psrpc.moves import Agreed, AwaitScale, Scale, Settled
from psrpc.nursery import Nursery
from psrpc.planes.agent import Agent
from psrpc.planes.base import Link
from psrpc.planes.rpc import Address, RpcLink
from psrpc.pulse import Heart
from psrpc.rendezvous import PULSE, Rendezvous, gone
from psrpc.replication.authority import REPLICAS, Authority
from psrpc.replication.failover import FailoverLink
from psrpc.replication.places import Reached, heart_to
from psrpc.saying import hushed, say

_COORDINATOR = "server0"
_LOOK_S = 0.2
_STORE_S = 30.0
_RESTARTS = 3  # of a server that has a backup


def scale(nursery: Nursery, job: Running, servers: int) -> None:
    """Let the job have `servers` servers; new ones run here, in forks of `nursery`. Blocks.

    Returns when that is done and, if there are more than before, when those that were added have
    ended. Raises ScaleError if the job cannot have them, and then goes on with those that it has;
    what made a new server fail; KeyboardInterrupt, before which servers that were added give their
    rows back, unless it comes a second time. None is left.
    """
    if job.lobby.unscalable:
        raise ScaleError(f"the job at {job.address} cannot be scaled: {job.lobby.unscalable}")

    def place(becomes: tuple[int, ...] | None = None) -> Place:
        return replace(job.place, becomes=becomes)

    with (
        terminable(),
        Roles(nursery, job.command, apart=True) as roles,
        _asking(place(), job.lobby) as (process, ask),
    ):
        agreed = ask(Scale(process, servers))
        assert isinstance(agreed, Agreed)
        if agreed.saving:
            say("a checkpoint is being made: the change waits until that is done")
        if servers > agreed.before:
            job.check_command()
        for index in range(agreed.before, servers):
            if not job.lobby.replicas:
                roles.start(place((index, servers)), restarts=0)
                continue
            for first in (1, 0):
                roles.start(place((index, servers, process, first)), restarts=_RESTARTS)
        settled = ask(AwaitScale(process), roles.check)
        assert isinstance(settled, Settled)
        say(f"the job has {some_servers(servers)} now, after {agreed.before}")
        if servers > agreed.before:
            say(
                "keep this command running: its servers end with it. Ctrl-C, SIGTERM and "
                f"`psrpc scale {job.address} --servers {agreed.before}` take them away first"
            )
            _stay(roles, ask, Scale(process, agreed.before))


def _stay(roles: Roles, ask: Ask, back: Scale) -> None:
    """Wait for the added servers' end. At Ctrl-C the job goes back, before it is raised again."""
    try:
        roles.wait_for_servers()
    except KeyboardInterrupt:
        say(f"going back to {some_servers(back.servers)} (a second time: ending at once)")
        _take_away(roles, ask, back)
        roles.wait_for_servers()
        raise


def _take_away(roles: Roles, ask: Ask, back: Scale) -> None:
    """Let the job have no more servers than that, as soon as it can, or until ours have ended."""
    said = ""
    while roles.running:
        try:
            ask(back)
            ask(AwaitScale(back.worker))
            return
        except JobOverError:
            return
        except PsrpcError as error:
            if said != str(error):
                said = str(error)
                say(said)
            time.sleep(_LOOK_S)


Ask = Callable[..., Reply]


@contextmanager
def _asking(place: Place, lobby: Lobby) -> Iterator[tuple[int, Ask]]:
    """A way to ask the coordinator, who knows by it that this command is there; its number."""
    with Rendezvous(place, _STORE_S, who="psrpc scale") as rendezvous:
        process = rendezvous.number()
        agent = Agent(
            f"scale{process}",
            lobby.servers + process,
            threads=1,
            one_host=place.one_host,
            secret=rendezvous.secret,
        )
        way = _to_whoever if lobby.replicas else _to_the_one
        heart, connect = way(rendezvous, process, agent, lobby)
        agent.start()
        try:
            heart.start()
            with _over_if_lost():
                link = connect()
            yield process, partial(_answer, link)
        finally:
            heart.stop()
            with hushed():
                agent.close()


Way = tuple[Heart, Callable[[], Link]]


def _to_the_one(rendezvous: Rendezvous, process: int, agent: Agent, lobby: Lobby) -> Way:
    """To a coordinator that stays where it is."""
    url, pulse = rendezvous.read([_COORDINATOR, PULSE])
    link = RpcLink(agent, Address(_COORDINATOR, 0, url))

    def connect() -> Link:
        link.connect()
        return link

    return Heart(pulse, process, lobby.dead_after_s, rendezvous.secret), connect


def _to_whoever(rendezvous: Rendezvous, process: int, agent: Agent, lobby: Lobby) -> Way:
    """To whoever coordinates."""
    authority = Authority(rendezvous.sealed_branch(REPLICAS), 0)
    is_over = lambda: rendezvous.heard(gone(_COORDINATOR)) is not None  # noqa: E731
    place = Reached(agent, authority, PlaneChoice.AUTO, is_over)
    heart = heart_to(authority, process, lobby.dead_after_s, rendezvous.secret)
    return heart, lambda: FailoverLink(place, _STORE_S)


def _answer(
    link: Link, request: Scale | AwaitScale, meanwhile: Callable[[], None] | None = None
) -> Reply:
    with _over_if_lost():
        pending = link.call(request)
    while True:
        with suppress(TimeoutError), _over_if_lost():
            return pending.wait(_LOOK_S)[0]
        if meanwhile is not None:
            meanwhile()


@contextmanager
def _over_if_lost() -> Iterator[None]:
    """Without its coordinator a job is over; a new server that loses somebody says so itself."""
    try:
        yield
    except PeerLostError as error:
        raise JobOverError(f"its coordinator is gone ({error})") from None
