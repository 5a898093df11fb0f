"""What happens to the servers of a simulated job, as a seed decides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random

from psrpc.testing.schedule import Schedule, draw


class Moment(Enum):
    """Where a server can be struck."""

    RECEIVE = "a request has come"
    FORWARD = "an entry is on its way to the backup"
    APPLY = "an entry is taken in"
    TAKE = "the backup has an entry"
    ACK = "the backup has said so"
    SETTLE = "the backup's word has come"
    REPLY = "an answer is sent"
    CLAIM = "the backup has asked for the reign"
    PROMOTE = "the backup reigns"
    COPY = "a copy is on its way"
    NAME = "a newcomer is to be named"
    HALT = "it has halted for a new layout"
    STAND = "it stands at the cut for that"
    GIVE = "another one takes its rows"
    ROWS = "it has its own"
    READY = "it says so"
    COMMIT = "the new layout is in force"


OF_LAYOUTS = (
    Moment.HALT,
    Moment.STAND,
    Moment.GIVE,
    Moment.ROWS,
    Moment.READY,
    Moment.COMMIT,
)
OF_PAIRS = tuple(moment for moment in Moment if moment not in OF_LAYOUTS)


class Blow(Enum):
    """What happens to a server."""

    KILL = "kill"  # it is gone, and its connections say so, soon
    STOP = "stop"  # it stands still
    CUT = "cut"  # nothing that it says arrives, and nothing that is said to it
    PART = "part"  # only the two servers of a shard do not hear each other


@dataclass(frozen=True)
class Strike:
    """A server of `shard` is hit when `moment` comes for the `after`th time.

    It is the server to which that happens, or (`other`) the other one. A stop or a cut lasts
    `seconds`; a killed server comes back, as a new process, after as many if it `returns`.
    """

    shard: int
    moment: Moment
    after: int
    blow: Blow
    other: bool
    seconds: float
    returns: bool


@dataclass(frozen=True)
class Ordeal:
    """A job, and what happens to its servers. `optimizer` is None where no tensors are computed."""

    schedule: Schedule
    strikes: tuple[Strike, ...]
    dead_after_s: float
    optimizer: str | None = None


def draw_ordeal(
    mode: str,
    seed: int,
    *,
    churn: bool,
    optimizer: str | None = None,
    epochs: int = 2,
    reshards: bool = False,
) -> Ordeal:
    """Draw a job for `mode`; with `churn` workers die as well, with `reshards` servers change."""
    schedule = draw(mode, seed, epochs=epochs, churn=churn, reshards=reshards)
    random = Random(f"strikes {mode} {seed} {churn}")
    moments = (*OF_PAIRS, *OF_LAYOUTS, *OF_LAYOUTS) if reshards else OF_PAIRS
    dead_after_s = max(random.choice((0.2, 1.0)), 10 * schedule.weather.delay_s)
    strikes = tuple(
        Strike(
            shard=random.randrange(4 if reshards else schedule.servers),
            moment=random.choice(moments),
            after=random.choice((1, 1, 2, random.randint(1, 40))),
            blow=random.choice(tuple(Blow)),
            other=random.random() < 0.4,
            seconds=random.choice((0.1, 1.0, 3.0)) * dead_after_s * random.uniform(0.5, 1.5),
            returns=random.random() < 0.9,
        )
        for _ in range(random.randint(1, 6))
    )
    return Ordeal(schedule, strikes, dead_after_s, optimizer)
