"""Which processes serve, on which hosts; and what SLURM's short forms stand for."""

from __future__ import annotations

import pytest

from psrpc import nodelists
from psrpc.core.seats import Placement, rank_of, seats
from psrpc.environment import Place, place
from psrpc.errors import ConfigError
from psrpc.seating import fellow_workers, role, seated


@pytest.mark.parametrize(
    ("processes", "servers", "replicas", "placement", "serving"),
    [
        ((2, 2), 2, 0, "pack", (0, 0)),
        ((2, 2), 3, 0, "pack", (0, 0, 1)),
        ((2, 2), 2, 0, "spread", (0, 1)),
        ((1, 1, 1), 2, 0, "spread", (0, 1)),
        ((1, 3), 3, 0, "spread", (0, 1, 1)),
        ((4, 4, 4), 4, 0, "spread", (0, 1, 2, 0)),
        ((2, 2), 2, 0, "colocate", (0, 1)),
        ((4, 4), 2, 1, "pack", (0, 0, 1, 1)),
        ((4, 4), 2, 1, "spread", (0, 1, 1, 0)),
        ((3,), 1, 1, "pack", (0, 0)),
        ((4, 3, 3), 3, 1, "colocate", (0, 1, 2, 1, 2, 0)),
        ((2, 2, 2, 2), 2, 1, "colocate", (0, 1, 2, 3)),
    ],
)
def test_where_servers_are(
    processes: tuple[int, ...],
    servers: int,
    replicas: int,
    placement: str,
    serving: tuple[int, ...],
) -> None:
    found = seats(processes, servers, replicas, Placement(placement))
    assert found[: servers * (1 + replicas)] == serving
    assert [found.count(host) for host in range(len(processes))] == list(processes)
    ranks = [rank_of(each, processes, found) for each in range(sum(processes))]
    assert sorted(ranks) == list(range(sum(processes)))
    assert ranks[0] == 0, "the first process coordinates"
    hosts = [host for host, count in enumerate(processes) for _ in range(count)]
    assert [found[rank] for rank in ranks] == hosts


@pytest.mark.parametrize(
    ("processes", "servers", "complaint"),
    [((2, 2), 1, "a multiple of 2"), ((2, 2), 4, "a worker beside the 2 servers")],
)
def test_what_cannot_be_colocated(processes: tuple[int, ...], servers: int, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        seats(processes, servers, 0, Placement.COLOCATE)


TORCHRUN = {
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}


def under_torchrun(rank: int) -> Place:
    found = place({**TORCHRUN, "RANK": str(rank), "LOCAL_RANK": str(rank % 2)})
    assert found is not None
    return found


def test_a_process_of_torchrun_takes_its_seat() -> None:
    ranks = [seated(under_torchrun(rank), 2, 0, Placement.SPREAD) for rank in range(4)]
    assert [each.rank for each in ranks] == [0, 2, 1, 3]
    assert {each.node_of for each in ranks} == {(0, 1, 0, 1)}
    assert [fellow_workers(each, 2) for each in ranks if each.rank >= 2] == [0, 0]
    packed = [seated(under_torchrun(rank), 1, 0, Placement.PACK) for rank in range(4)]
    assert [each.rank for each in packed] == [0, 1, 2, 3]
    assert [fellow_workers(each, 1) for each in packed[1:]] == [0, 0, 1]


def test_a_launcher_that_does_not_say_who_is_where() -> None:
    uneven = place({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "5"})
    assert uneven is not None
    assert seated(uneven, 1, 0, Placement.PACK) == uneven
    with pytest.raises(ConfigError, match="says how many processes"):
        seated(uneven, 1, 0, Placement.SPREAD)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-3,5],gpu7", ["node1", "node2", "node3", "node5", "gpu7"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("r[1-2]n[1-2]-x", ["r1n1-x", "r1n2-x", "r2n1-x", "r2n2-x"]),
    ],
)
def test_names_of_nodes(text: str, names: list[str]) -> None:
    assert nodelists.names(text) == names


def test_numbers_per_node() -> None:
    assert nodelists.counts("1,2(x2),4") == [1, 2, 2, 4]


SLURM = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "node[1-3]",
    "SLURM_STEP_TASKS_PER_NODE": "1,2(x2)",
    "SLURM_PROCID": "4",
    "SLURM_NODEID": "2",
    "SLURM_LOCALID": "1",
}


def test_a_task_of_slurm_has_a_place() -> None:
    found = place(SLURM)
    assert found is not None
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (4, 5, 1, 2)
    assert (found.address, found.nodes) == ("node1", ("node1", "node2", "node3"))
    assert found.node_of == (0, 1, 1, 2, 2)
    again = place({**SLURM, "SLURM_RESTART_COUNT": "1"})
    assert again is not None
    assert again.job != found.job
    assert (again.port, again.one_host) == (found.port, False)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID"])
def test_a_batch_script_and_a_single_task_have_none(name: str) -> None:
    assert place({key: value for key, value in SLURM.items() if key != name}) is None


def test_tasks_that_are_dealt_in_turn_are_not_taken_for_blocks() -> None:
    found = place({**SLURM, "SLURM_DISTRIBUTION": "cyclic"})
    assert found is not None
    assert found.node_of == ()


def test_roles_have_names() -> None:
    names = [role(rank, 1, 1) for rank in range(3)]
    assert names == ["server 0", "backup of server 0", "worker 0"]


def test_the_first_part_of_a_heterogeneous_job_has_the_first_task_wherever_its_nodes_are() -> None:
    parts = {
        "SLURM_JOB_NODELIST_HET_GROUP_0": "node3",
        "SLURM_JOB_NODELIST_HET_GROUP_1": "node[1-2]",
    }
    found = place({**SLURM, **parts})
    assert found is not None
    assert (found.address, found.node_of) == ("node3", ())
    in_order = place({**SLURM, **parts, "SLURM_JOB_NODELIST_HET_GROUP_0": "node1"})
    assert in_order is not None
    assert (in_order.address, in_order.node_of) == ("node1", (0, 1, 1, 2, 2))
    second_alone = place({**SLURM, "SLURM_JOB_NODELIST_HET_GROUP_0": "node7"})
    assert second_alone is not None
    assert (second_alone.address, second_alone.node_of) == ("node1", (0, 1, 1, 2, 2))
