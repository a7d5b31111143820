"""How late the event loop is, and what is in flight: on a loop whose time is only arithmetic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.meter import EVERY_S, KEPT, SERIES, SERIES_ROWS, TIMER_S, Lags, Meter

Virtual = Callable[[Any], Any]


class Clock:
    """A clock that says what it is told; the loop's, plus what a test makes it late."""

    def __init__(self) -> None:
        self.late_s = 0.0
        self._loop = asyncio.get_running_loop()

    def __call__(self) -> float:
        return self._loop.time() + self.late_s


# -- the histogram ----------------------------------------------------------------------------------


def test_nothing_sampled_is_nothing_found() -> None:
    assert Lags().found() is None


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_at_most_9_percent_too_high(values: list[float], level: float) -> None:
    lags = Lags()
    for value in values:
        lags.add(value)
    exact = sorted(values)[max(0, -int(-level * len(values) // 1) - 1)]
    found = lags.quantile(level)
    assert found <= max(values)
    if exact > 0.0001:
        assert exact * 0.999 <= found <= exact * 1.091
    else:
        assert found <= 0.0001
    assert lags.found() == {"p50": lags.quantile(0.5), "p99": lags.quantile(0.99), "max": max(values), "n": len(values)}


def test_a_million_samples_are_a_few_counters() -> None:
    lags = Lags()
    for n in range(100_000):
        lags.add(n * 1e-5)
    assert len(lags._counts) < 120


# -- lags -------------------------------------------------------------------------------------------


def test_a_loop_on_time_has_no_lag(virtual: Virtual) -> None:
    async def main() -> None:
        meter = Meter(Clock())
        await asyncio.sleep(1)
        meter.stop()
        assert meter.lags.max_s == 0
        assert 95 <= meter.lags.n <= 101

    virtual(main())


def test_a_late_tick_is_seen_around_the_stamps_it_delayed(virtual: Virtual) -> None:
    """Not before, not after; and less a timer's own millisecond."""

    async def main() -> None:
        clock = Clock()
        meter = Meter(clock)
        await asyncio.sleep(0.5)
        before = clock() - 2 * EVERY_S
        clock.late_s += 0.25  # as if a callback had taken so long
        during = clock()
        assert meter.around(during) == pytest.approx(0.25 - TIMER_S, abs=EVERY_S)  # the tick has not come yet
        await asyncio.sleep(0.5)
        assert meter.around(during - 0.1) == pytest.approx(0.25 - TIMER_S, abs=EVERY_S)
        assert meter.around(before) == 0
        assert meter.around(clock() - 0.2) == 0
        assert meter.lags.max_s == pytest.approx(0.25 - TIMER_S, abs=EVERY_S)
        meter.stop()

    virtual(main())


def test_a_millisecond_is_the_timers_own(virtual: Virtual) -> None:
    async def main() -> None:
        clock = Clock()
        meter = Meter(clock)
        await asyncio.sleep(0.1)
        clock.late_s += TIMER_S * 0.9
        await asyncio.sleep(0.1)
        meter.stop()
        assert meter.lags.max_s == 0

    virtual(main())


def test_late_ticks_are_not_kept_for_ever(virtual: Virtual) -> None:
    async def main() -> None:
        clock = Clock()
        meter = Meter(clock)
        for _ in range(KEPT + 200):
            clock.late_s += 0.005
            await asyncio.sleep(EVERY_S)
        meter.stop()
        assert len(meter._late) == KEPT

    virtual(main())


def test_a_stretch_has_its_own_histogram(virtual: Virtual) -> None:
    async def main() -> None:
        clock = Clock()
        meter = Meter(clock)
        clock.late_s += 0.5
        await asyncio.sleep(0.2)
        meter.stretch = stretch = Lags()
        await asyncio.sleep(0.5)
        meter.stretch = None
        await asyncio.sleep(0.5)
        meter.stop()
        assert 45 <= stretch.n <= 51
        assert stretch.max_s == 0 < meter.lags.max_s

    virtual(main())


# -- starving ---------------------------------------------------------------------------------------


def test_starved_is_the_time_with_less_in_flight_than_wanted(virtual: Virtual) -> None:
    async def main() -> None:
        flying = 8
        meter = Meter(Clock(), in_flight=lambda: flying)
        flying = 2
        await asyncio.sleep(0.5)
        assert meter.starved_s == 0  # nobody wanted more
        meter.wanted = 7.6
        await asyncio.sleep(0.3)
        flying = 8
        await asyncio.sleep(0.5)
        meter.stop()
        assert meter.starved_s == pytest.approx(0.3, abs=2 * EVERY_S)

    virtual(main())


# -- the time series --------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.004, 0.1, 1.0, 30.0, 151.0, 700.0])
def test_a_series_counts_everything_once_in_at_most_600_rows(virtual: Virtual, seconds: float) -> None:
    """What happened after the last sample, too; means are means of the time."""

    async def main() -> None:
        counts = [0, 0, 0, 0, 0]
        meter = Meter(Clock(), in_flight=lambda: 5, waiting=lambda: 2, counts=lambda: tuple(counts))
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            counts[:] = [n + k for k, n in enumerate(counts, 1)]
            await asyncio.sleep(min(0.03, seconds / 3))
        meter.stop()
        counts[0] += 7
        found = meter.series()
        assert found["columns"] == list(SERIES)
        rows = found["rows"]
        assert 1 <= len(rows) <= SERIES_ROWS
        assert [round(sum(row[place] for row in rows)) for place in range(3, 8)] == counts
        times = [row[0] for row in rows]
        assert times == sorted(times)
        assert times[-1] == pytest.approx(seconds, abs=0.1)
        assert all(row[1:3] == [5, 2] for row in rows if row[1])
        if seconds > 200:
            assert found["every_s"] > 0.25
            assert len(rows) > SERIES_ROWS / 2 - 5

    virtual(main())


def test_the_series_has_the_worst_lag_of_each_interval(virtual: Virtual) -> None:
    async def main() -> None:
        clock = Clock()
        meter = Meter(clock)
        await asyncio.sleep(1.0)
        clock.late_s += 0.1
        await asyncio.sleep(1.0)
        meter.stop()
        lags = [row[8] for row in meter.series()["rows"]]
        assert max(lags) == pytest.approx(0.1 - TIMER_S, abs=EVERY_S)
        assert sum(lag > 0 for lag in lags) == 1

    virtual(main())


def test_a_series_begins_where_it_is_told(virtual: Virtual) -> None:
    async def main() -> None:
        clock = Clock()
        zero = clock()
        await asyncio.sleep(3)
        meter = Meter(clock, zero=zero)
        await asyncio.sleep(0.5)
        meter.stop()
        assert meter.series()["rows"][0][0] == pytest.approx(3.25, abs=2 * EVERY_S)

    virtual(main())
