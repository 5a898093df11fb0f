"""Which node something runs on: one pure function over what nodes have and what is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

_KINDS = ("cpus", "gpus", "memory_bytes")
_SLACK = 1e-9  # thirds of a CPU do not add up to one exactly


class Strategy(Enum):
    """Which of the nodes that can give what is wanted is taken."""

    SPREAD = "spread"  # the one with most to spare
    PACK = "pack"  # the one with least to spare
    EVEN = "even"  # the one with fewest guests, however large it is
    AFFINITY = "affinity"  # a named one, no other


@dataclass(frozen=True)
class Resources:
    """An amount of everything that is given out. Parts of CPUs and GPUs may be asked for."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_bytes: int = 0

    def plus(self, other: Resources) -> Resources:
        """Both together."""
        return Resources(
            self.cpus + other.cpus,
            self.gpus + other.gpus,
            self.memory_bytes + other.memory_bytes,
        )

    def minus(self, other: Resources) -> Resources:
        """What is left when the other is taken away."""
        return Resources(
            self.cpus - other.cpus,
            self.gpus - other.gpus,
            self.memory_bytes - other.memory_bytes,
        )

    def lacks(self, wanted: Resources) -> dict[str, float]:
        """By how much this is less than what is wanted, by kind; empty if it is enough."""
        short = {kind: getattr(wanted, kind) - getattr(self, kind) for kind in _KINDS}
        return {kind: amount for kind, amount in short.items() if amount > _SLACK}

    def share_of(self, whole: Resources) -> float:
        """The largest share that this is of the whole, of any kind: 0 to 1."""
        wholes = ((getattr(self, kind), getattr(whole, kind)) for kind in _KINDS)
        return max((part / total for part, total in wholes if total), default=0.0)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs, {self.gpus:g} GPUs, {_size(self.memory_bytes)}"


@dataclass(frozen=True)
class Want:
    """What is asked for. `labels` must all be the node's; `near` names a node for `AFFINITY`.

    The nodes of `apart_from` are taken only where no other has room.
    """

    resources: Resources = field(default_factory=Resources)
    labels: Mapping[str, str] = field(default_factory=dict)
    strategy: Strategy = Strategy.SPREAD
    near: str | None = None
    apart_from: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Offer:
    """A node: all that it has, what of it is given out, and to how many."""

    name: str
    whole: Resources
    used: Resources = field(default_factory=Resources)
    labels: Mapping[str, str] = field(default_factory=dict)
    guests: int = 0

    @property
    def free(self) -> Resources:
        """What is not given out."""
        return self.whole.minus(self.used)


@dataclass(frozen=True)
class Placed:
    """It goes to this node."""

    node: str
    reason: str


@dataclass(frozen=True)
class Busy:
    """A node could give it, but not before others give back what they have."""

    reason: str


@dataclass(frozen=True)
class Impossible:
    """No node there is could ever give it; `reason` names the nearest and what it lacks."""

    reason: str


Verdict = Placed | Busy | Impossible


def place(offers: Sequence[Offer], want: Want) -> Verdict:
    """Choose a node. The order of `offers` decides between nodes that are alike."""
    if not offers:
        return Impossible("there is no node")
    names = [offer.name for offer in offers]
    if want.strategy is Strategy.AFFINITY and want.near not in names:
        return Impossible(f"no node is named {want.near}; there are {', '.join(names)}")
    able = [offer for offer in offers if not _faults(offer, want)]
    if not able:
        nearest = min(offers, key=lambda offer: _distance(offer, want))
        return Impossible(
            f"no node can give {_told(want)}; the nearest is {nearest.name}, which "
            f"{'; '.join(_faults(nearest, want))}"
        )
    free = [offer for offer in able if not offer.free.lacks(want.resources)]
    if not free:
        soonest = min(able, key=lambda offer: sum(offer.free.lacks(want.resources).values()))
        short = _shortage(soonest.free.lacks(want.resources))
        return Busy(f"waits for {_told(want)}: {soonest.name} is {short} short, others use it")
    free = [offer for offer in free if offer.name not in want.apart_from] or free
    chosen = (max if want.strategy is Strategy.PACK else min)(
        free, key=lambda offer: _load(offer, want.strategy)
    )
    return Placed(chosen.name, f"{want.strategy.value}: {len(free)} of {len(offers)} nodes can")


def _load(offer: Offer, strategy: Strategy) -> tuple[float, float]:
    """How full a node is; guests that asked for nothing decide between equals."""
    if strategy is Strategy.EVEN:
        return offer.guests, 0.0
    return offer.used.share_of(offer.whole), offer.guests


def _faults(offer: Offer, want: Want) -> list[str]:
    """Why this node could never give what is wanted; nothing if it could."""
    faults = []
    if want.strategy is Strategy.AFFINITY and offer.name != want.near:
        faults.append(f"is not {want.near}")
    for name, value in want.labels.items():
        has = offer.labels.get(name)
        if has != value:
            faults.append(f"has {name}={has}" if has is not None else f"has no label {name}")
    if offer.whole.lacks(want.resources):
        faults.append(f"has {offer.whole} in all")
    return faults


def _distance(offer: Offer, want: Want) -> tuple[int, int, float]:
    lacks = offer.whole.lacks(want.resources)
    shares = sum(amount / getattr(want.resources, kind) for kind, amount in lacks.items())
    labels = sum(offer.labels.get(name) != value for name, value in want.labels.items())
    named = want.strategy is Strategy.AFFINITY and offer.name != want.near
    return int(named), labels, shares


def _told(want: Want) -> str:
    amounts = {kind: float(getattr(want.resources, kind)) for kind in _KINDS}
    said = _shortage({kind: amount for kind, amount in amounts.items() if amount})
    labels = ", ".join(f"{name}={value}" for name, value in want.labels.items())
    parts = [said, labels and f"the labels {labels}"]
    if want.strategy is Strategy.AFFINITY:
        parts.append(f"the place {want.near}")
    return " and ".join(part for part in parts if part) or "a place"


def _shortage(amounts: Mapping[str, float]) -> str:
    said = {
        "cpus": lambda amount: f"{amount:g} CPUs",
        "gpus": lambda amount: f"{amount:g} GPUs",
        "memory_bytes": lambda amount: f"{_size(amount)}",
    }
    return ", ".join(said[kind](amount) for kind, amount in amounts.items())


def _size(amount: float) -> str:
    return f"{amount / 1e9:.3g} GB of memory"
