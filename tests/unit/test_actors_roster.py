"""The roster: where actors are, who waits, what a death does. No processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from psrpc.actors import messages as m
from psrpc.actors.packing import pack, unpack_error
from psrpc.actors.roster import Roster, Said
from psrpc.core.placement import Resources, Want

CLIENT, OTHER, NODE, RUNNER = 1, 2, 10, 20
SPEC = m.Spec("Thing", b"", (b"", []), Want())
APART = replace(SPEC, want=Want(Resources(cpus=1)), own_process=True)


def of(said: Said, kind: type) -> list[tuple[int, Any]]:
    return [(key, message) for key, message in said if isinstance(message, kind)]


class Town:
    """A roster with a node, whose runners come as soon as they are forked."""

    def __init__(self, cpus: float = 2, gpus: float = 0) -> None:
        self.roster = Roster()
        self.said: Said = []
        self.hear(self.roster.node_came(NODE, "node", Resources(cpus, gpus, 0), {}))

    def hear(self, said: Said) -> Said:
        self.said += said
        for key, message in said:
            if isinstance(message, m.Fork):
                number = message.runner
                came = self.roster.runner_came(RUNNER + number, number, f"at-{number}", key)
                said = said + self.hear(came)
        return said

    def create(self, actor: int, spec: m.Spec = SPEC, key: int = CLIENT) -> Said:
        return self.hear(self.roster.create(key, m.Create(actor, spec)))


def gone(said: Said) -> list[str]:
    return [str(unpack_error(message.error)) for _, message in of(said, m.Gone)]


def test_light_actors_share_as_many_runners_as_there_are_cpus() -> None:
    town = Town(cpus=2)
    for number in range(6):
        town.create(number)
    assert len(of(town.said, m.Fork)) == 2
    assert sorted(key for key, _ in of(town.said, m.Embody)) == [21] * 3 + [22] * 3


def test_who_makes_an_actor_hears_where_it_is_after_its_runner_was_told() -> None:
    said = Town().create(7)
    kinds = [type(message) for _, message in said if not isinstance(message, m.Fork)]
    assert kinds == [m.Embody, m.Located]
    assert of(said, m.Located) == [(CLIENT, m.Located(7, 1, "at-1"))]


def test_what_is_busy_is_waited_for_and_given_in_the_order_of_asking() -> None:
    town = Town(cpus=1)
    town.create(1, APART)
    assert town.create(2, APART) == []
    town.create(3, APART)
    status = town.roster.status(CLIENT, 0)[0][1].status
    waits = {actor["number"]: actor["waits"] for actor in status["actors"]}
    assert "node is 1 CPUs short" in waits[2]
    assert waits[1] == ""
    said = town.hear(town.roster.end(1, "done"))
    assert [message.actor for _, message in of(said, m.Embody)] == [2]
    assert [message.runner for _, message in of(said, m.Stop)] == [1]


def test_what_no_node_has_is_an_error_that_names_the_nearest() -> None:
    said = Town().create(1, replace(APART, want=Want(Resources(cpus=64))))
    assert "the nearest is node" in gone(said)[0]
    assert said[0][0] == CLIENT


def test_a_node_that_is_starting_is_waited_for() -> None:
    roster = Roster()
    roster.expect("node", Resources(2, 0, 0), {})
    assert roster.create(CLIENT, m.Create(1, SPEC)) == []
    said = roster.node_came(NODE, "node", Resources(2, 0, 0), {})
    assert said == [(NODE, m.Fork(1))]


def test_an_actor_begins_again_as_often_as_it_may_with_its_saved_state() -> None:
    town = Town()
    town.create(1, replace(SPEC, max_restarts=1))
    town.roster.saved(1, pack("state"))
    said = town.hear(town.roster.locate(OTHER, 1, 1))
    assert said == []  # it is not lost yet
    said = town.hear(town.roster.runner_lost(1, "killed"))
    (_, embody), *_ = of(said, m.Embody)
    assert (embody.incarnation, embody.saved) == (2, pack("state"))
    assert of(said, m.Located) == [(OTHER, m.Located(1, 2, "at-2"))]
    town.hear(town.roster.locate(CLIENT, 1, 2))
    said = town.hear(town.roster.runner_lost(2, "killed by SIGKILL"))
    assert gone(said) == ["Thing has died with its process (killed by SIGKILL), after 1 restarts"]


def test_a_runners_death_is_told_once() -> None:
    town = Town()
    town.create(1)
    assert town.roster.runner_lost(1, "killed") == []  # nobody asks for it now
    assert town.roster.runner_lost(1, "killed") == []
    assert "killed" in gone(town.roster.locate(CLIENT, 1, 1))[0]


def test_a_nodes_death_moves_its_actors_to_another() -> None:
    town = Town()
    town.create(1, replace(SPEC, max_restarts=1))
    town.hear(town.roster.node_came(11, "second", Resources(2, 0, 0), {}))
    said = town.hear(town.roster.connection_lost(NODE))
    assert [key for key, _ in of(said, m.Fork)] == [11]
    assert [message.actor for _, message in of(said, m.Embody)] == [1]


def test_a_runner_that_is_silent_is_lost_when_its_node_says_so() -> None:
    town = Town()
    town.create(1, replace(SPEC, max_restarts=1))
    assert town.roster.runner_silent(1) == []
    town.create(2)  # in another runner
    assert [message.runner for _, message in of(town.said, m.Fork)] == [1, 2]
    town.hear(town.roster.runner_lost(1, "killed"))
    assert (town.roster.actors[1].restarts, town.roster.actors[1].incarnation) == (1, 2)
    assert town.roster.runner_silent(1) == []


def test_a_node_that_dies_with_its_runners_costs_one_restart() -> None:
    town = Town()
    town.create(1, replace(SPEC, max_restarts=1))
    assert of(town.roster.runner_silent(1), m.Embody) == []  # the node's death is seen later
    town.roster.create(CLIENT, m.Create(2, APART))  # a runner that never comes
    town.hear(town.roster.node_came(11, "second", Resources(2, 0, 0), {}))
    said = town.hear(town.roster.connection_lost(NODE))
    assert sorted(message.actor for _, message in of(said, m.Embody)) == [1, 2]
    assert [town.roster.actors[number].restarts for number in (1, 2)] == [1, 0]
    assert gone(said) == []


def test_a_runner_is_forked_once_though_its_first_actor_ends_before_it_comes() -> None:
    roster = Roster()
    roster.node_came(NODE, "node", Resources(1, 0, 0), {})
    assert roster.create(CLIENT, m.Create(1, SPEC)) == [(NODE, m.Fork(1))]
    roster.end(1, "it was killed")
    assert roster.create(CLIENT, m.Create(2, SPEC)) == []
    said = roster.runner_came(RUNNER, 1, "at-1", 5)
    assert [message.actor for _, message in of(said, m.Embody)] == [2]
    assert [key for key, _ in of(roster.create(CLIENT, m.Create(3, SPEC)), m.Embody)] == [RUNNER]


def test_a_node_of_a_taken_name_gets_one_that_is_free() -> None:
    roster = Roster()
    for key in range(3):
        roster.node_came(key, "host", Resources(1, 0, 0), {})
    assert list(roster.nodes) == ["host", "host-2", "host-3"]
    roster.connection_lost(1)
    roster.node_came(5, "host", Resources(1, 0, 0), {})
    assert {name: node.key for name, node in roster.nodes.items()} == {
        "host": 0,
        "host-2": 5,
        "host-3": 2,
    }


def test_actors_end_with_who_made_them_unless_detached() -> None:
    town = Town()
    town.create(1)
    town.create(2, replace(SPEC, detached=True, name="stays"))
    town.create(3, key=OTHER)
    said = town.hear(town.roster.connection_lost(CLIENT))
    assert [message.actor for _, message in of(said, m.Discard)] == [1]
    assert set(town.roster.actors) == {2, 3}


def test_a_name_belongs_to_one_living_actor() -> None:
    town = Town()
    named = replace(SPEC, name="one")
    town.create(1, named)
    assert gone(town.create(2, named)) == ["there is an actor named 'one' already"]
    (found,) = of(town.roster.find(OTHER, 5, "one"), m.Found)
    assert (found[1].actor, found[1].ticket) == (1, 5)
    town.roster.end(1, "done")
    assert of(town.roster.find(OTHER, 6, "one"), m.Found)[0][1].actor is None
    assert gone(town.create(3, named)) == []


@pytest.mark.parametrize(
    ("wants", "expected"), [([1, 1], [(0,), (1,)]), ([0.5, 0.5, 1], [(0,), (0,), (1,)])]
)
def test_gpus_are_given_out_by_number(wants: list[float], expected: list[tuple[int]]) -> None:
    town = Town(cpus=8, gpus=2)
    for number, gpus in enumerate(wants):
        town.create(number, replace(APART, want=Want(Resources(gpus=gpus))))
    assert [message.gpus for _, message in of(town.said, m.Fork)] == expected


def test_all_that_was_used_is_given_back() -> None:
    town = Town(cpus=2, gpus=1)
    spec = replace(APART, want=Want(Resources(1, 1, 0)), max_restarts=2)
    town.create(1, spec)
    town.hear(town.roster.runner_lost(1, "killed"))
    town.hear(town.roster.end(1, "done"))
    (node,) = town.roster.nodes.values()
    assert (node.offer.used, node.offer.guests, node.gpu_used) == (Resources(), 0, [0.0])
    assert town.roster.runners == {}
