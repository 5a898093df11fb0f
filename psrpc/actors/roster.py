"""Which actors there are, where they are, and who waits for what. Pure: no sockets, no clock.

Each event returns what is to be said to whom: pairs of a connection's key and a message. Keys are
the shell's; nodes and runners are known by the key under which they said hello.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from psrpc.actors.messages import (
    Create,
    Discard,
    Embody,
    Fork,
    Found,
    Gone,
    Located,
    Spec,
    StatusIs,
    Stop,
)
from psrpc.actors.packing import Packed, pack_error
from psrpc.core.placement import Busy, Impossible, Offer, Placed, Resources, place
from psrpc.errors import ActorLostError, PlacementError, UsageError

Said = list[tuple[int, Any]]


@dataclass
class _Node:
    key: int | None  # None while it is starting
    offer: Offer
    gpu_used: list[float]
    shared: list[int] = field(default_factory=list)


@dataclass
class _Runner:
    node: str
    own: bool
    key: int | None = None
    came: bool = False
    address: str = ""
    pid: int = 0
    actors: set[int] = field(default_factory=set)


@dataclass
class _Actor:
    spec: Spec
    creator: int
    incarnation: int = 1
    restarts: int = 0
    runner: int | None = None
    node: str = ""
    gpus: dict[int, float] = field(default_factory=dict)
    born: bool = False
    waits: str = ""
    saved: Packed | None = None
    asking: list[tuple[int, int]] = field(default_factory=list)  # key, and after which incarnation


class Roster:
    """The state of a cluster."""

    def __init__(self) -> None:
        self.nodes: dict[str, _Node] = {}
        self.runners: dict[int, _Runner] = {}
        self.actors: dict[int, _Actor] = {}
        self.gone: dict[int, Gone] = {}
        self.names: dict[str, int] = {}
        self._runner_count = 0

    def expect(self, name: str, whole: Resources, labels: Mapping[str, str]) -> None:
        """A node is starting that will have this to give."""
        self.nodes[name] = _Node(None, Offer(name, whole, labels=labels), [0.0] * int(whole.gpus))

    def node_came(self, key: int, name: str, whole: Resources, labels: Mapping[str, str]) -> Said:
        """A node is there. One of a taken name gets a number behind it."""
        known = self.nodes.get(name)
        if known is not None and known.key is not None:
            name = next(free for n in count(2) if (free := f"{name}-{n}") not in self.nodes)
            known = None
        if known is None:
            self.expect(name, whole, labels)
        node = self.nodes[name]
        node.key = key
        waiting: Said = [
            (key, self._fork(number))
            for number, runner in self.runners.items()
            if runner.node == name
        ]
        return waiting + self._place_waiting()

    def create(self, key: int, create: Create) -> Said:
        """A client wants an actor; it hears where it is, or that it cannot be."""
        number, spec = create.actor, create.spec
        if spec.name is not None:
            if spec.name in self.names:
                error = UsageError(f"there is an actor named {spec.name!r} already")
                return self._bury(Gone(number, pack_error(error)), [(key, 0)])
            self.names[spec.name] = number
        self.actors[number] = _Actor(spec, key, asking=[(key, 0)])
        return self._settle(number)

    def locate(self, key: int, number: int, after: int) -> Said:
        """A client asks where an actor is; it hears at once, or when it is known."""
        if number in self.gone:
            return [(key, self.gone[number])]
        actor = self.actors.get(number)
        if actor is None:
            return [(key, Gone(number, pack_error(ActorLostError("no such actor was ever made"))))]
        actor.asking.append((key, after))
        return self._tell(number)

    def find(self, key: int, ticket: int, name: str) -> Said:
        """A client asks for an actor by its name."""
        number = self.names.get(name)
        spec = None if number is None else replace(self.actors[number].spec, arguments=(b"", []))
        return [(key, Found(ticket, number, spec))]

    def runner_came(self, key: int, number: int, address: str, pid: int) -> Said:
        """A runner takes calls; the actors that wait for it are made in it."""
        runner = self.runners.get(number)
        if runner is None:
            return []
        runner.key, runner.address, runner.pid, runner.came = key, address, pid, True
        said: Said = []
        for each in sorted(runner.actors):
            said += self._embody(each)
        return said

    def runner_silent(self, number: int) -> Said:
        """A runner's connection has ended: its node says how, or has ended as well.

        Nothing is said to the node, for the kernel would wait anew for one that cannot hear it.
        """
        runner = self.runners.get(number)
        if runner is None:
            return []
        runner.key = None
        node = self.nodes.get(runner.node)
        if node is None or node.key is None:
            return self.runner_lost(number, "its connection ended")
        if number in node.shared:
            node.shared.remove(number)
        return []

    def runner_lost(self, number: int, how: str) -> Said:
        """A runner has ended: its actors begin anew elsewhere, as often as they may.

        Where it never came, for its node had ended, none has begun.
        """
        runner = self.runners.pop(number, None)
        if runner is None:
            return []
        node = self.nodes.get(runner.node)
        if node is not None and number in node.shared:
            node.shared.remove(number)
        said: Said = []
        lost = sorted(runner.actors)
        for each in lost:
            actor = self.actors[each]
            self._give_back(each)
            if node is None and not runner.came:
                continue
            if actor.restarts >= actor.spec.max_restarts:
                why = f"{actor.spec.title} has died with its process ({how})"
                if actor.restarts:
                    why += f", after {actor.restarts} restarts"
                said += self._end(each, pack_error(ActorLostError(why)))
                continue
            actor.restarts += 1
            actor.incarnation += 1
            actor.born = False
        return said + self._place_waiting()

    def connection_lost(self, key: int) -> Said:
        """A node, or a client with the actors that it made, has ended."""
        said: Said = []
        for name, node in list(self.nodes.items()):
            if node.key == key:
                del self.nodes[name]
                for number in [n for n, r in self.runners.items() if r.node == name]:
                    said += self.runner_lost(number, f"its node {name} has ended")
        mine = [n for n, a in self.actors.items() if a.creator == key and not a.spec.detached]
        for number in mine:
            said += self.end(number, "the process that made it has ended")
        for actor in self.actors.values():
            actor.asking = [each for each in actor.asking if each[0] != key]
        return [each for each in said if each[0] != key]

    def born(self, number: int) -> Said:
        """An actor has been made."""
        if number in self.actors:
            self.actors[number].born = True
        return []

    def saved(self, number: int, state: Packed) -> Said:
        """This is what an actor is to begin with when it must begin anew."""
        if number in self.actors:
            self.actors[number].saved = state
        return []

    def end(self, number: int, why: str, error: Packed | None = None) -> Said:
        """An actor is to end, or has failed to begin."""
        actor = self.actors.get(number)
        if actor is None:
            return []
        runner = self.runners.get(actor.runner) if actor.runner is not None else None
        said: Said = []
        if runner is not None and runner.key is not None and error is None:
            said.append((runner.key, Discard(number)))
        own, held = runner is not None and runner.own, actor.runner
        self._give_back(number)
        gone = error or pack_error(ActorLostError(f"{actor.spec.title} is no more: {why}"))
        said += self._end(number, gone)
        if own and held is not None:
            node = self.nodes.get(self.runners.pop(held).node)
            if node is not None and node.key is not None:
                said.append((node.key, Stop(held)))
        return said + self._place_waiting()

    def status(self, key: int, ticket: int) -> Said:
        """How things are."""
        nodes = [
            {
                "name": name,
                "ready": node.key is not None,
                "whole": vars(node.offer.whole),
                "used": vars(node.offer.used),
                "labels": dict(node.offer.labels),
                "actors": node.offer.guests,
                "runners": [r.pid for r in self.runners.values() if r.node == name],
            }
            for name, node in self.nodes.items()
        ]
        actors = [
            {
                "number": number,
                "title": actor.spec.title,
                "name": actor.spec.name,
                "state": "waits" if actor.runner is None else "lives" if actor.born else "begins",
                "waits": actor.waits,
                "pid": self.runners[actor.runner].pid if actor.runner is not None else None,
                "node": self.runners[actor.runner].node if actor.runner is not None else None,
                "restarts": actor.restarts,
            }
            for number, actor in self.actors.items()
        ]
        return [(key, StatusIs(ticket, {"nodes": nodes, "actors": actors}))]

    def _settle(self, number: int) -> Said:
        """Find a place for an actor that has none."""
        actor = self.actors[number]
        offers = [node.offer for node in self.nodes.values()]
        match place(offers, actor.spec.want):
            case Impossible(reason):
                error = PlacementError(f"{actor.spec.title}: {reason}")
                return self._end(number, pack_error(error))
            case Busy(reason):
                actor.waits = reason
                return []
            case Placed(name, _):
                actor.waits = ""
                return self._take(number, name)

    def _take(self, number: int, name: str) -> Said:
        actor, node = self.actors[number], self.nodes[name]
        wants = actor.spec.want.resources
        offer = node.offer
        node.offer = replace(offer, used=offer.used.plus(wants), guests=offer.guests + 1)
        actor.gpus = _gpus(node.gpu_used, wants.gpus)
        actor.node = name
        found = None if actor.spec.own_process else self._shared(node)
        if found is not None:
            actor.runner = found
            self.runners[found].actors.add(number)
            return self._embody(number)
        self._runner_count += 1
        actor.runner = self._runner_count
        self.runners[actor.runner] = _Runner(name, actor.spec.own_process, actors={number})
        if not actor.spec.own_process:
            node.shared.append(actor.runner)
        return [] if node.key is None else [(node.key, self._fork(actor.runner))]

    def _shared(self, node: _Node) -> int | None:
        """The runner with fewest actors; None while there may be one more, and all have some."""
        most = max(1, int(node.offer.whole.cpus))
        if not node.shared:
            return None
        least = min(node.shared, key=lambda number: len(self.runners[number].actors))
        if self.runners[least].actors and len(node.shared) < most:
            return None
        return least

    def _fork(self, number: int) -> Fork:
        runner = self.runners[number]
        if not runner.own:
            return Fork(number)
        (only,) = runner.actors
        return Fork(number, tuple(self.actors[only].gpus))

    def _embody(self, number: int) -> Said:
        actor = self.actors[number]
        assert actor.runner is not None
        runner = self.runners[actor.runner]
        if runner.key is None:
            return []
        embody = Embody(number, actor.incarnation, actor.spec, actor.saved)
        return [(runner.key, embody), *self._tell(number)]

    def _tell(self, number: int) -> Said:
        """Say where an actor is to those who asked and did not know."""
        actor = self.actors[number]
        runner = self.runners.get(actor.runner) if actor.runner is not None else None
        if runner is None or runner.key is None:
            return []
        located = Located(number, actor.incarnation, runner.address)
        said: Said = [(key, located) for key, after in actor.asking if after < actor.incarnation]
        actor.asking = [each for each in actor.asking if each[1] >= actor.incarnation]
        return said

    def _give_back(self, number: int) -> None:
        actor = self.actors[number]
        if actor.runner is None:
            return
        runner = self.runners.get(actor.runner)
        if runner is not None:
            runner.actors.discard(number)
        node = self.nodes.get(actor.node)
        if node is not None:
            offer = node.offer
            used = offer.used.minus(actor.spec.want.resources)
            node.offer = replace(offer, used=used, guests=offer.guests - 1)
            for index, part in actor.gpus.items():
                node.gpu_used[index] -= part
        actor.runner, actor.gpus = None, {}

    def _end(self, number: int, error: Packed) -> Said:
        actor = self.actors.pop(number)
        if actor.spec.name is not None:
            self.names.pop(actor.spec.name, None)
        return self._bury(Gone(number, error, actor.born), actor.asking)

    def _bury(self, gone: Gone, asking: list[tuple[int, int]]) -> Said:
        self.gone[gone.actor] = gone
        while len(self.gone) > _REMEMBERED:
            del self.gone[next(iter(self.gone))]
        return [(key, gone) for key, _ in asking]

    def _place_waiting(self) -> Said:
        """What was given back may be what somebody waits for; the first to ask comes first."""
        said: Said = []
        for number, actor in list(self.actors.items()):
            if actor.runner is None and number in self.actors:
                said += self._settle(number)
        return said


_REMEMBERED = 100_000


def _gpus(used: list[float], wanted: float) -> dict[int, float]:
    """Which GPUs to give: whole ones that nobody has, or a part of the fullest that has it."""
    if wanted <= 0:
        return {}
    if wanted < 1:
        able = [i for i, part in enumerate(used) if part + wanted <= 1 + 1e-9]
        chosen = {max(able, key=lambda i: used[i]): wanted} if able else {}
    else:
        chosen = dict.fromkeys([i for i, part in enumerate(used) if not part][: int(wanted)], 1.0)
    for index, part in chosen.items():
        used[index] += part
    return chosen
