"""Which process of a launcher has which rank in the job, and where the others are."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from psrpc.core.seats import Placement, rank_of, seats
from psrpc.environment import Place
from psrpc.errors import ConfigError

_REVIVED = "Checkpointing(revived=True)"


def seated(place: Place, servers: int, replicas: int, placement: Placement) -> Place:
    """This process's place when servers are where `placement` puts them.

    Ranks are the job's from then on: servers, their backups, workers. Raises ConfigError if
    that cannot be, or if the launcher does not say which process is where.
    """
    if place.joins or not servers or servers * (1 + replicas) >= place.world_size:
        return place  # what is wrong with the numbers is said elsewhere
    if not place.node_of:
        if placement is Placement.PACK or place.one_host:
            return place
        raise ConfigError(
            f"--server-placement {placement.value} needs a launcher that says how many processes "
            "each host has: torchrun with as many on each, or srun"
        )
    count = Counter(place.node_of)
    processes = [count[node] for node in sorted(count)]
    node_of = seats(processes, servers, replicas, placement)
    return replace(place, rank=rank_of(place.rank, processes, node_of), node_of=node_of)


def check_crew(place: Place, servers: int, replicas: int, *, goes_back: bool) -> None:
    """Raise ConfigError if this process was started for a job of another shape."""
    ours = (servers, replicas, int(goes_back))
    if not place.crew or place.crew == ours:
        return
    who, option = "psrpc launch", "--revived"
    if place.joins:
        who, option = "the job", _REVIVED
    raise ConfigError(
        f"psrpc.run has {_shape(ours, _REVIVED)} here, and {who} has "
        f"{_shape(place.crew, option)}: give both the same"
    )


def _shape(crew: tuple[int, ...], option: str) -> str:
    servers, replicas, goes_back = crew
    return f"servers={servers}, replicas={replicas} and {'' if goes_back else 'no '}{option}"


def role(rank: int, servers: int, replicas: int) -> str:
    """What a rank is called."""
    if rank < servers:
        return f"server {rank}"
    serving = servers * (1 + replicas)
    return f"backup of server {rank % servers}" if rank < serving else f"worker {rank - serving}"


def fellow_workers(place: Place, serving: int) -> int:
    """How many workers on this process's host have lower ranks than it."""
    if not place.node_of or place.joins:
        return max(place.local_rank - serving, 0)
    own = place.node_of[place.rank]
    return sum(place.node_of[rank] == own for rank in range(serving, place.rank))
