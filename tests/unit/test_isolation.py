"""What a launcher of isolated roles makes of their ends."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from psrpc import environment
from psrpc.environment import place_of
from psrpc.errors import PeerLostError, encode
from psrpc.isolation import Crew, Roles
from psrpc.nursery import Nursery


@dataclass(eq=False)
class Agent:
    """A role's agent that has ended, or (None) has not."""

    returncode: int | None

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float = 0.0) -> None: ...


def ended(crew: Crew, *codes: int | None) -> Roles:
    """Roles whose ranks have ended with these codes."""
    roles = Roles(Nursery(lambda: 0), [])
    for rank, code in enumerate(codes):
        place = place_of("127.0.0.1", 1, "job", world_size=len(codes))
        roles._agents[Agent(code)] = replace(place, rank=rank)  # type: ignore[index]
    return roles


SINGLE, PAIRS = Crew(2, 0, 1), Crew(2, 1, 1)
ALONE = (
    "server 1 died, so the job was ended: it would have gone on with --replicas 1, or from a "
    "checkpoint (psrpc train --checkpoint-dir, psrpc launch --revived)"
)


@pytest.mark.parametrize(
    ("crew", "codes", "why"),
    [
        (SINGLE, (0, 0, 0), None),
        (SINGLE, (None, 1, None), ALONE),
        (PAIRS, (0, 0, 0, 0, 0), None),
        (PAIRS, (None, 1, 1, None, None), None),
        (PAIRS, (0, 0, 1, 1, 0), None),
        (PAIRS, (None, 1, None, 1, None), "server 1 and its backup died, so the job was ended"),
        (PAIRS, (None, None, None, None, 1), "no worker has come to the end of its work"),
    ],
)
def test_a_shard_is_lost_when_nobody_is_left_to_serve_it(
    crew: Crew, codes: tuple[int | None, ...], why: str | None
) -> None:
    with ended(crew, *codes) as roles:
        error = roles._reason(crew)
        assert (str(error) if error else None) == why
        assert roles._failed(crew) == (why is not None and "server" in why)
        assert roles._served(crew) == (None not in codes[: crew.serving])
        roles._agents.clear()


@pytest.mark.parametrize(
    ("codes", "why"),
    [
        ((None, 137, 1), ALONE),
        ((143, 143, 1), "server1 died or left"),
        ((1, 143, 137), "server1 died or left"),
    ],
)
def test_what_a_server_died_of_says_more_than_that_it_is_lost(
    codes: tuple[int | None, ...], why: str
) -> None:
    with ended(SINGLE, *codes) as roles:
        note = roles._notes.variables()[environment.FAILURE_FILE]
        Path(note).write_text(json.dumps(encode(PeerLostError("server1 died or left"))))
        assert str(roles._reason(SINGLE)) == why
        roles._agents.clear()
