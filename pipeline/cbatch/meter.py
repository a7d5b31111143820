"""How late the event loop is, and what is in flight: the client's own health, sampled every 10 ms.

A loop that is late stamps late. What it cannot see is said, too: uvloop's timers are no finer than 1 ms.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any

EVERY_S = 0.01
TIMER_S = 0.001  # a timer may be so late for reasons of its own
STEPS = 8  # of the histogram to a doubling: quantiles are at most 9 % too high
LEAST_S = 0.0001
KEPT = 4_096  # late ticks: 40 s of a loop that is late all the time
SERIES_ROWS = 600
SERIES = (
    *("t_s", "in_flight", "waiting", "sent", "answered", "failed", "rate_limited", "completion_tokens", "loop_lag_s"),
)


class Lags:
    """A histogram of lags."""

    def __init__(self) -> None:
        self.n = 0
        self.max_s = 0.0
        self._counts: dict[int, int] = {}

    def add(self, lag_s: float) -> None:
        """Count one."""
        self.n += 1
        self.max_s = max(self.max_s, lag_s)
        step = math.ceil(STEPS * math.log2(lag_s / LEAST_S)) if lag_s > LEAST_S else 0
        self._counts[step] = self._counts.get(step, 0) + 1

    def quantile(self, level: float) -> float:
        """The upper edge of the step that holds it, in seconds; 0 where all is on time."""
        wanted, seen = level * self.n, 0
        for step in sorted(self._counts):
            seen += self._counts[step]
            if seen >= wanted:
                return min(LEAST_S * 2 ** (step / STEPS), self.max_s) if step else 0.0
        return 0.0

    def found(self) -> dict[str, float] | None:
        """{"p50", "p99", "max", "n"} in seconds; None where nothing was sampled."""
        if not self.n:
            return None
        return {"p50": self.quantile(0.5), "p99": self.quantile(0.99), "max": self.max_s, "n": self.n}


class Meter:
    """Samples until stopped; `clock` is the one that stamps requests."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        in_flight: Callable[[], int] = lambda: 0,
        waiting: Callable[[], int] = lambda: 0,
        counts: Callable[[], tuple[int, ...]] = lambda: (0, 0, 0, 0, 0),
        zero: float | None = None,
    ) -> None:
        """`counts` are those of SERIES from `sent` to `completion_tokens`; `zero` is where its time begins."""
        self.lags = Lags()
        self.stretch: Lags | None = None  # a second histogram, for who wants one of a part of the run
        self.starved_s = 0.0  # with less than `wanted` in flight
        self.wanted: float | None = None
        self._clock = clock
        self._in_flight, self._waiting, self._counts = in_flight, waiting, counts
        self._loop = asyncio.get_running_loop()
        self._late: deque[tuple[float, float]] = deque(maxlen=KEPT)  # ticks: when due, when they came
        self._last = clock()
        self._zero = self._last if zero is None else zero
        self._due = self._last + EVERY_S
        self._series = Series(self._last - self._zero, counts())
        self._timer = self._loop.call_later(EVERY_S, self._tick)

    def stop(self) -> None:
        """Sample no more."""
        self._timer.cancel()

    def around(self, stamp: float) -> float:
        """How late the loop was when it stamped, in seconds; 0 where it was on time."""
        now = self._clock()
        lag_s = now - self._due if self._due - EVERY_S <= stamp else 0.0
        for due, came in reversed(self._late):
            if came < stamp:
                break
            if due - EVERY_S <= stamp:
                lag_s = max(lag_s, came - due)
        return max(lag_s - TIMER_S, 0.0)

    def series(self) -> dict[str, Any]:
        """What was sampled so far, as run.json keeps it."""
        return self._series.found(self._clock() - self._zero, self._counts())

    def _tick(self) -> None:
        now = self._clock()
        late_s = now - self._due
        lag_s = max(late_s - TIMER_S, 0.0)
        if lag_s:
            self._late.append((self._due, now))
        self.lags.add(lag_s)
        if self.stretch is not None:
            self.stretch.add(lag_s)
        flying = self._in_flight()
        if self.wanted is not None and flying < self.wanted:
            self.starved_s += now - self._last
        self._series.sample(now - self._zero, now - self._last, flying, self._waiting(), lag_s, self._counts)
        self._last = now
        self._due = now + EVERY_S
        self._timer = self._loop.call_later(EVERY_S, self._tick)


class Series:
    """What a session did, in at most SERIES_ROWS equal intervals: where there are more, two become one."""

    def __init__(self, t_s: float, counts: tuple[int, ...]) -> None:
        self._every_s = 0.25
        self._rows: list[list[float]] = []
        self._closed_s = t_s
        self._before = counts
        self._flying = self._waiting = self._seconds = self._lag_s = 0.0

    def sample(
        self,
        t_s: float,
        seconds: float,
        flying: int,
        waiting: int,
        lag_s: float,
        counts: Callable[[], tuple[int, ...]],
    ) -> None:
        """So many were in flight, and waited, for the last `seconds`."""
        self._flying += flying * seconds
        self._waiting += waiting * seconds
        self._seconds += seconds
        self._lag_s = max(self._lag_s, lag_s)
        if t_s - self._closed_s >= self._every_s:
            self._close(t_s, counts())

    def found(self, t_s: float, counts: tuple[int, ...]) -> dict[str, Any]:
        """{"every_s", "columns", "rows"}, the interval that is not over included."""
        if self._seconds or counts != self._before:
            self._close(t_s, counts)
        return {"every_s": self._every_s, "columns": list(SERIES), "rows": [list(row) for row in self._rows]}

    def _close(self, t_s: float, counts: tuple[int, ...]) -> None:
        seconds = self._seconds or 1.0
        done = [now - before for now, before in zip(counts, self._before, strict=True)]
        row = [t_s, self._flying / seconds, self._waiting / seconds, *done, self._lag_s]
        self._rows.append([round(value, 4) for value in row])
        self._before, self._closed_s = counts, t_s
        self._flying = self._waiting = self._seconds = self._lag_s = 0.0
        if len(self._rows) == SERIES_ROWS:
            self._rows = [_merged(*pair) for pair in zip(self._rows[::2], self._rows[1::2], strict=True)]
            self._every_s *= 2


def _merged(a: list[float], b: list[float]) -> list[float]:
    return [
        b[0],
        (a[1] + b[1]) / 2,
        (a[2] + b[2]) / 2,
        *(x + y for x, y in zip(a[3:8], b[3:8], strict=True)),
        max(a[8], b[8]),
    ]
