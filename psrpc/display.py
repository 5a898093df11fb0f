"""The progress line of a running job, drawn from the first server's counters."""

from __future__ import annotations

import sys
import threading
from collections import deque
from typing import TextIO

from psrpc.clock import Clock, SystemClock
from psrpc.meter import Meter

_REDRAW_S = 0.2
_LEAVE_S = 2.0
_LOG_EVERY_S = 5.0
_WINDOW = 15
_WIDTH = 24


class ProgressLine:
    """Draws while its block runs: a bar on a terminal, a line every few seconds elsewhere.

    `total_samples` gives the bar its length; without it there is no bar.
    """

    def __init__(
        self,
        meter: Meter,
        total_samples: int | None = None,
        stream: TextIO | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._meter = meter
        self._total = total_samples
        self._stream = stream or sys.stderr
        self._clock = clock or SystemClock()
        self._tty = self._stream.isatty()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="psrpc-progress", daemon=True)
        self._seen: deque[tuple[float, int]] = deque(maxlen=_WINDOW)

    def __enter__(self) -> ProgressLine:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(_LEAVE_S)  # a terminal may be held
        if self._meter.steps:
            self._draw()
            if self._tty:
                self._stream.write("\n")
                self._stream.flush()

    def line(self) -> str:
        """The line as it would be drawn now."""
        meter = self._meter
        self._seen.append((self._clock.now(), meter.samples))
        (then, before), (now, samples) = self._seen[0], self._seen[-1]
        rate = (samples - before) / (now - then) if samples > before else meter.samples_per_s
        loss = "-" if meter.loss is None else f"{meter.loss:.4f}"
        low, high = meter.staleness_range()
        stale = f"{low}" if low == high else f"{low}-{high}"
        parts = (f"step {meter.steps}", f"loss {loss}", f"{rate:,.0f} samples/s")
        return "  ".join((*self._bar(), *parts, f"staleness {stale}"))

    def _bar(self) -> tuple[str, ...]:
        if not self._total:
            return ()
        done = min((self._meter.samples_before + self._meter.samples) / self._total, 1.0)
        filled = int(done * _WIDTH)
        return (f"{done:4.0%} [{'#' * filled}{'.' * (_WIDTH - filled)}]",)

    def _run(self) -> None:
        while not self._stop.wait(_REDRAW_S if self._tty else _LOG_EVERY_S):
            if self._meter.steps:
                self._draw()

    def _draw(self) -> None:
        self._stream.write(f"\r\033[K{self.line()}" if self._tty else f"{self.line()}\n")
        self._stream.flush()
