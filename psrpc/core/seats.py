"""Which of a job's processes serve, by the hosts that they are on."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from psrpc.errors import ConfigError


class Placement(Enum):
    """Where servers are, in a job on several hosts."""

    SPREAD = "spread"  # in turn on each host
    PACK = "pack"  # on as few hosts as they need, from the first one on
    COLOCATE = "colocate"  # as many on each host as on any other, and workers beside them


def seats(
    processes: Sequence[int], servers: int, replicas: int, placement: Placement
) -> tuple[int, ...]:
    """The host of each rank: servers have the lowest ranks, then their backups, then workers.

    `processes` says how many processes each host has. A server's backup is on another host than
    the server wherever there is room. Raises ConfigError if the processes are too few, or on hosts
    where `placement` cannot be kept.
    """
    hosts = range(len(processes))
    if placement is Placement.COLOCATE:
        _check_colocation(processes, servers * (1 + replicas))
    room = list(processes)
    taken: list[int] = []
    for server in range(servers * (1 + replicas)):
        backup = server >= servers
        first = (server % servers + (1 if backup else 0)) % len(processes)
        turn = [*hosts[first:], *hosts[:first]]
        wanted = hosts if placement is Placement.PACK else turn
        if backup:
            # The own host last.
            wanted = sorted(wanted, key=lambda host, own=taken[server % servers]: host == own)
        host = next((host for host in wanted if room[host]), None)
        if host is None:
            raise ConfigError(
                f"{sum(processes)} processes cannot hold {servers * (1 + replicas)} servers"
            )
        room[host] -= 1
        taken.append(host)
    return (*taken, *(host for host in hosts for _ in range(room[host])))


def rank_of(place: int, processes: Sequence[int], seated: Sequence[int]) -> int:
    """The rank of the launcher's process `place`: ranks of a host go to its processes in order.

    The launcher counts through the first host's processes, then through the second's.
    """
    host, before = 0, place
    while before >= processes[host]:
        before -= processes[host]
        host += 1
    return [rank for rank, its in enumerate(seated) if its == host][before]


def _check_colocation(processes: Sequence[int], serving: int) -> None:
    hosts = len(processes)
    if serving % hosts:
        raise ConfigError(
            f"--server-placement colocate puts as many servers on each host, and {serving} cannot "
            f"be shared by {hosts} hosts: give a multiple of {hosts}, or choose spread"
        )
    if any(count <= serving // hosts for count in processes):
        raise ConfigError(
            f"--server-placement colocate needs a worker beside the {serving // hosts} servers of "
            f"each host, which has {min(processes)} processes: start more, or choose spread"
        )
