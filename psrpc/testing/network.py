"""A network that delays, overtakes, repeats and loses what is sent, by a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from psrpc.testing.events import EventHeap

LATEST_DUPLICATE = 30.0


@dataclass(frozen=True)
class Weather:
    """How a network behaves.

    `delay_s` is the mean delay; `heavy_tail` draws delays from an exponential
    distribution and not from 0.5 to 1.5 times the mean. `loss` and `duplication`
    are probabilities for each message.
    """

    delay_s: float
    heavy_tail: bool
    loss: float
    duplication: float


class Network:
    """Delivers messages in its own time, or never, or twice."""

    def __init__(self, weather: Weather, random: Random, events: EventHeap) -> None:
        self.weather = weather
        self._random = random
        self._events = events

    def send(self, deliver: Callable[..., None], *args: object) -> None:
        """Have `deliver(*args)` called some time later, zero times, once or twice."""
        weather, random = self.weather, self._random
        if random.random() >= weather.loss:
            self._events.after(self.delay(), deliver, *args)
        if random.random() < weather.duplication:
            # A repeated message may come when its sender has long gone on.
            delay_s = self.delay() * random.uniform(1.0, LATEST_DUPLICATE)
            self._events.after(delay_s, deliver, *args)

    def delay(self) -> float:
        """How long a message takes, in seconds."""
        weather = self.weather
        if weather.heavy_tail:
            return self._random.expovariate(1.0 / weather.delay_s)
        return weather.delay_s * self._random.uniform(0.5, 1.5)
