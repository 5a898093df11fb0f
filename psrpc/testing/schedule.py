"""Everything about one simulated job that its seed decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from random import Random

from psrpc.errors import UsageError
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.testing.network import Weather

MODES = ("sync", "bounded", "async", "backup")


class Manner(Enum):
    """How a worker leaves in the middle of an epoch."""

    POLITE = "polite"  # all of its pushes are answered
    ABRUPT = "abrupt"  # it does not wait for its last push, and says so


@dataclass(frozen=True)
class Departure:
    """Worker `worker` leaves when it has made `after_steps` steps."""

    worker: int
    after_steps: int
    manner: Manner


class Fate(Enum):
    """What happens to a worker's process."""

    KILL = "kill"  # it is gone, and its connections say so
    STOP = "stop"  # it stands still, and its connections say nothing
    CUT = "cut"  # nothing that it sends arrives, and nothing that is sent to it


class Point(Enum):
    """Where in a step it happens."""

    BEFORE = "before the push"
    BETWEEN = "between the shards"  # some of them have been sent the push
    AFTER = "after the push"  # before or after it comes, is applied, is answered


@dataclass(frozen=True)
class Mishap:
    """Something happens to the process of rank `rank` when it has made `after_steps` steps.

    A stop or a cut lasts `seconds`; a cut is from `server` alone, if one is given. A killed
    worker is replaced after as many, if it `returns`.
    """

    rank: int
    after_steps: int
    fate: Fate
    point: Point
    seconds: float
    returns: bool
    server: int | None = None


@dataclass(frozen=True)
class Reshard:
    """At `at_s` somebody asks for so many `servers`.

    A new one may die when it has offered itself, or the command that asked (`dies`: its server's
    index, or -1), as much as `dies_after_s` later.
    """

    at_s: float
    servers: int
    dies: int | None = None
    dies_after_s: float = 0.0


@dataclass(frozen=True)
class Pause:
    """Worker `worker` stands still for `seconds` when it has made `after_steps` steps."""

    worker: int
    after_steps: int
    seconds: float


@dataclass(frozen=True)
class Schedule:
    """One simulated job. `own_steps` are the steps of workers that feed themselves, if they do.

    `step_s` are each worker's mean seconds for one step, `retry_s` its patience
    before it says something again for the first time, `voids` the probability
    that an update carries no gradient, `folds` that a batch's gradient goes into
    the next batch's update, `blind` that a push takes no fresh weights back. With
    `overlap` workers compute while their last push is on its way. More workers come at
    `joins`, in seconds. A worker that is silent for `dead_after_s` is taken for dead. At
    `checkpoints` the job is cut, if it has begun. At the times of `reshards` it is asked to have
    another number of servers.
    """

    name: str
    seed: int
    mode: Mode
    workers: int
    servers: int
    epochs: int
    samples: int
    batch_size: int
    step_s: tuple[float, ...]
    weather: Weather
    retry_s: float
    voids: float
    folds: float
    blind: float
    own_steps: tuple[int, ...] = ()
    departure: Departure | None = None
    pause: Pause | None = None
    overlap: bool = False
    mishaps: tuple[Mishap, ...] = ()
    joins: tuple[float, ...] = ()
    dead_after_s: float = 10.0
    checkpoints: tuple[float, ...] = ()
    reshards: tuple[Reshard, ...] = ()


def draw(
    name: str,
    seed: int,
    *,
    workers: int | None = None,
    servers: int | None = None,
    epochs: int = 2,
    churn: bool = False,
    reshards: bool = False,
) -> Schedule:
    """Draw a schedule for the mode called `name`; sizes that are given are not drawn.

    With `churn` workers are killed, stopped and cut off, come back and join. With `reshards`
    servers are added and removed.
    """
    random = Random(f"{name} {seed}")
    staleness, backups = random.randint(0, 4), random.random()
    drawn_workers, drawn_servers = random.randint(1, 4), random.randint(1, 4)
    workers, servers = workers or drawn_workers, servers or drawn_servers
    if name == "backup":
        workers = max(workers, 2)
    mode = _mode(name, staleness, 1 + int(backups * (workers - 1)))
    batches, batch_size = random.randint(3, 20), random.randint(1, 4)
    weather = _weather(random)
    feed_themselves = random.random() < 0.2 and not churn
    departure = None if feed_themselves else _departure(random, workers, batches * epochs)
    schedule = Schedule(
        name=name,
        seed=seed,
        mode=mode,
        workers=workers,
        servers=servers,
        epochs=epochs,
        samples=batches * batch_size - random.randrange(batch_size),
        batch_size=batch_size,
        step_s=_speeds(random, workers),
        weather=weather,
        retry_s=weather.delay_s * random.uniform(2.5, 12.0),
        voids=random.choice((0.0, 0.0, 0.1)),
        folds=random.choice((0.0, 0.0, 0.3)),
        blind=random.choice((0.0, 0.0, 0.5)),
        own_steps=_own_steps(random, workers) if feed_themselves else (),
        departure=departure,
        pause=_pause(random, workers),
        overlap=mode.bound != 0 and random.random() < 0.4,
        checkpoints=tuple(random.uniform(0.0, 2.0) for _ in range(random.choice((0, 0, 1, 3)))),
    )
    schedule = _disturbed(random, schedule) if churn else schedule
    return replace(schedule, reshards=_reshards(random, churn=churn)) if reshards else schedule


def _reshards(random: Random, *, churn: bool) -> tuple[Reshard, ...]:
    return tuple(
        Reshard(
            random.uniform(0.0, 2.5),
            random.randint(1, 4),
            random.choice((None, None, -1, 1, 2, 3)) if churn else None,
            random.uniform(0.0, 0.3),
        )
        for _ in range(random.randint(1, 5))
    )


def _disturbed(random: Random, schedule: Schedule) -> Schedule:
    batches = -(-schedule.samples // schedule.batch_size)
    usual = max(schedule.epochs * batches // schedule.workers, 1)
    dead_after_s = random.choice((0.2, 1.0, 5.0))
    mishaps = [_mishap(random, schedule, usual, dead_after_s) for _ in range(random.randint(0, 4))]
    stays = random.randrange(schedule.workers)  # or comes back, so that the job can end
    mishaps = [replace(each, returns=True) if each.rank == stays else each for each in mishaps]
    departure = schedule.departure
    if departure is not None and departure.worker == stays:
        departure = None
    joins = tuple(random.uniform(0.0, 3.0) for _ in range(random.choice((0, 0, 1, 2))))
    return replace(
        schedule,
        departure=departure,
        mishaps=tuple(mishaps),
        joins=joins,
        dead_after_s=dead_after_s,
    )


def _mishap(random: Random, schedule: Schedule, usual: int, dead_after_s: float) -> Mishap:
    return Mishap(
        rank=random.randrange(schedule.workers),
        after_steps=random.randrange(usual + 1),
        fate=random.choice(tuple(Fate)),
        point=random.choice(tuple(Point)),
        seconds=random.choice((0.1, 1.0, 3.0)) * dead_after_s * random.uniform(0.5, 1.5),
        returns=random.random() < 0.6,
        server=random.choice((None, random.randrange(schedule.servers))),
    )


def _mode(name: str, staleness: int, backups: int) -> Mode:
    modes: dict[str, Mode] = {
        "sync": Synchronous(),
        "bounded": BoundedStaleness(staleness),
        "async": Asynchronous(),
        "backup": Synchronous(backups),
    }
    if name not in modes:
        raise UsageError(f"no mode is called {name!r}; there are {', '.join(MODES)}")
    return modes[name]


def _weather(random: Random) -> Weather:
    fair = random.random() < 0.15
    return Weather(
        delay_s=random.choice((0.0005, 0.005, 0.05)),
        heavy_tail=random.random() < 0.5,
        loss=0.0 if fair else random.uniform(0.0, 0.2),
        duplication=0.0 if fair else random.uniform(0.0, 0.2),
    )


def _speeds(random: Random, workers: int) -> tuple[float, ...]:
    usual_s = random.uniform(0.005, 0.05)
    factors = (random.choice((1.0, 1.0, 1.5, 6.0)) for _ in range(workers))
    return tuple(usual_s * factor for factor in factors)


def _own_steps(random: Random, workers: int) -> tuple[int, ...]:
    if random.random() < 0.5:
        return (random.randint(1, 12),) * workers
    return tuple(random.randint(0, 15) for _ in range(workers))


def _departure(random: Random, workers: int, steps: int) -> Departure | None:
    if random.random() < 0.6:
        return None
    after = random.randrange(max(steps // workers, 1))
    return Departure(random.randrange(workers), after, random.choice(tuple(Manner)))


def _pause(random: Random, workers: int) -> Pause | None:
    if random.random() < 0.7:
        return None
    return Pause(random.randrange(workers), random.randrange(10), random.uniform(0.5, 5.0))
