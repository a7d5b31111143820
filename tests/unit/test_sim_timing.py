"""When the tokens of a simulated answer exist."""

import itertools
import math

import pytest

from cbatch.sim.timing import due_count, event_count, plan


def test_the_parts_have_the_recorded_magnitudes() -> None:
    """gpt-oss-120b: queue 4-7 ms, prompt 2-7 ms, about 1800 tokens per second, 2-10 ms on top."""
    for chance in range(0, 2**32, 2**32 // 200):
        timing = plan(1800.0, 120, 180, chance, 1.0)
        assert 0.003 < timing.queue_s < 0.007
        assert 0.002 < timing.prompt_s < 0.007
        assert 1400 < 180 / timing.completion_s < 2400
        parts = timing.queue_s + timing.prompt_s + timing.completion_s
        assert 0.002 <= timing.total_s - parts <= 0.010
        assert timing.first_s == timing.queue_s + timing.prompt_s


def test_the_same_chance_gives_the_same_times() -> None:
    assert plan(1800.0, 10, 20, 12345, 1.0) == plan(1800.0, 10, 20, 12345, 1.0)
    assert plan(1800.0, 10, 20, 12345, 1.0) != plan(1800.0, 10, 20, 54321, 1.0)


def test_speed_divides_every_delay() -> None:
    slow, fast = plan(1800.0, 900, 300, 77, 1.0), plan(1800.0, 900, 300, 77, 10.0)
    assert fast.queue_s == pytest.approx(slow.queue_s / 10)
    assert fast.prompt_s == pytest.approx(slow.prompt_s / 10)
    assert fast.completion_s == pytest.approx(slow.completion_s / 10)
    assert fast.total_s == pytest.approx(slow.total_s / 10)


def test_infinite_speed_waits_for_nothing_and_reports_no_zero() -> None:
    """A client may divide by the reported times."""
    timing = plan(1800.0, 900, 300, 77, math.inf)
    assert timing.instant
    assert timing.completion_s > 0
    assert timing.total_s < 1e-4


def test_cached_tokens_need_no_time() -> None:
    assert plan(1800.0, 0, 10, 5, 1.0).prompt_s < plan(1800.0, 30_000, 10, 5, 1.0).prompt_s / 100


@pytest.mark.parametrize(
    ("tokens", "rate", "events"),
    [
        pytest.param(0, 1800.0, 0, id="no tokens, no events"),
        pytest.param(1, 1800.0, 1, id="one token is one event"),
        pytest.param(180, 1800.0, 18, id="ten tokens per event at 1800 tokens per second"),
        pytest.param(110, 1000.0, 20, id="five and a half at 1000 tokens per second"),
    ],
)
def test_event_count(tokens: int, rate: float, events: int) -> None:
    assert event_count(tokens, rate) == events


def test_no_more_than_200_events_per_second() -> None:
    for tokens, rate in itertools.product((5, 50, 500, 5000), (550.0, 1000.0, 1850.0, 3000.0)):
        assert event_count(tokens, rate) <= max(1, 200 * tokens / rate)


@pytest.mark.parametrize(
    ("elapsed_s", "due"),
    [
        pytest.param(0.0, 1, id="the first is due at once"),
        pytest.param(0.0049, 1, id="the second not before its time"),
        pytest.param(0.005, 2, id="but at it"),
        pytest.param(0.023, 5, id="a late sender catches up in one go"),
        pytest.param(9.0, 10, id="there are only so many"),
    ],
)
def test_due_count(elapsed_s: float, due: int) -> None:
    assert due_count(elapsed_s, 0.005, 10) == due


def test_everything_is_due_at_infinite_speed() -> None:
    assert due_count(0.0, 0.0, 10) == 10
