"""Which of a job's processes serve, by the hosts that they are on."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from psrpc.core.placement import Offer, Placed, Resources, Strategy, Want, place
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
    serving = servers * (1 + replicas)
    if placement is Placement.COLOCATE:
        _check_colocation(processes, serving)
    hosts = range(len(processes))
    taken: list[int] = []
    for server in range(serving):
        backup = server >= servers
        own = frozenset({str(taken[server % servers])} if backup else ())
        want = Want(_SEAT, strategy=_STRATEGIES[placement], apart_from=own)
        # Between hosts that are alike the turn decides; a backup's is its server's next one.
        first = 0 if placement is Placement.PACK else (server % servers + backup) % len(hosts)
        turn = [*hosts[first:], *hosts[:first]]
        match place([_offer(host, processes, taken) for host in turn], want):
            case Placed(host):
                taken.append(int(host))
            case _:
                raise ConfigError(f"{sum(processes)} processes cannot hold {serving} servers")
    left = [count - taken.count(host) for host, count in enumerate(processes)]
    return (*taken, *(host for host, count in enumerate(left) for _ in range(count)))


_SEAT = Resources(cpus=1.0)  # a process, of those that a host has
_STRATEGIES = {
    Placement.SPREAD: Strategy.EVEN,
    Placement.PACK: Strategy.PACK,
    Placement.COLOCATE: Strategy.EVEN,
}


def _offer(host: int, processes: Sequence[int], taken: Sequence[int]) -> Offer:
    """A host with its processes, of which some serve already."""
    serving = taken.count(host)
    whole, used = Resources(cpus=float(processes[host])), Resources(cpus=float(serving))
    return Offer(str(host), whole, used, guests=serving)


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
