"""The pacer is arithmetic: these tests are tables and laws, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.pace import MAKE_UP_S, Pacer


def test_no_limit_never_waits() -> None:
    pacer = Pacer(None, None, now=5.0)
    for _ in range(1000):
        assert pacer.ready_at(5.0, 10**9) <= 5.0
        pacer.take(5.0, 10**9)


def test_requests_are_spread_over_the_minute_from_the_first_on() -> None:
    """The bucket starts empty: a minute's allowance does not go out at once."""
    pacer = Pacer(60, None, now=0.0)
    sent = []
    now = 0.0
    for _ in range(5):
        now = max(now, pacer.ready_at(now, 0))
        pacer.take(now, 0)
        sent.append(now)
    assert sent == pytest.approx([0, 1, 2, 3, 4], rel=0.003)


@given(
    rpm=st.integers(1, 30_000),
    late=st.lists(st.floats(0, 3), min_size=2, max_size=60),
)
def test_no_window_passes_more_than_its_rate_and_what_may_be_made_up(rpm: int, late: list[float]) -> None:
    """In any window of w seconds at most rate x (w + 20 ms) + 1 requests go out, however late the callers are."""
    pacer = Pacer(rpm, None, now=0.0)
    now, sent = 0.0, []
    for delay in late:
        now = max(now, pacer.ready_at(now, 0)) + delay
        pacer.take(now, 0)
        sent.append(now)
    rate = rpm / 60
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            window = sent[last] - sent[first]
            assert last - first + 1 <= rate * (window + MAKE_UP_S) + 1 + 1e-6


def test_a_request_larger_than_a_minute_can_never_fit() -> None:
    with pytest.raises(ValueError, match=r"40,000 tokens at once, and the limit is 30,000"):
        Pacer(None, 30_000, now=0.0).ready_at(0.0, 40_000)


def test_reservations_in_flight_stay_below_half_of_the_minute() -> None:
    """The server's bucket must have room for the next reservation."""
    pacer = Pacer(None, 100_000, now=0.0)
    charged = [pacer.take(0.0, 20_000) for _ in range(2)]
    assert pacer.ready_at(1e6, 20_000) == float("inf")
    pacer.settle(20_000, charged[0], 100)
    assert pacer.ready_at(1e6, 20_000) < 1e6


def test_one_large_reservation_may_go_alone() -> None:
    pacer = Pacer(None, 30_000, now=0.0)
    assert pacer.ready_at(0.0, 25_000) <= 0.0


def test_short_answers_are_paced_by_what_they_use_not_by_what_they_reserve() -> None:
    """With 1M tokens/min, 16,384 reserved and 300 used, thousands of requests a minute go out, not 60."""
    pacer = Pacer(None, 1_000_000, now=0.0)
    now, sent = 0.0, 0
    while now < 60:
        now = max(now, pacer.ready_at(now, 16_384))
        charged = pacer.take(now, 16_384)
        pacer.settle(16_384, charged, 300)
        sent += 1
    assert 3_000 < sent <= 1_000_000 * 61 / 60 / 300


@given(st.lists(st.tuples(st.integers(1, 5_000), st.integers(0, 5_000)), min_size=1, max_size=200))
def test_used_tokens_never_exceed_the_limit_for_long(requests: list[tuple[int, int]]) -> None:
    """Whatever is reserved and used, the tokens used by time t stay under rate x t plus one request."""
    tpm = 60_000
    pacer = Pacer(None, tpm, now=0.0)
    now, used_total, largest = 0.0, 0, 0
    for reserve, used in requests:
        used = min(used, reserve)
        now = max(now, pacer.ready_at(now, reserve))
        charged = pacer.take(now, reserve)
        pacer.settle(reserve, charged, used)
        used_total += used
        largest = max(largest, used)
        assert used_total <= tpm / 60 * (now + MAKE_UP_S) + largest + 1


def test_a_hold_counts_for_everyone_and_only_grows() -> None:
    """A 429 delays every prompt, not only the one that met it."""
    pacer = Pacer(None, None, now=0.0)
    pacer.hold(10.0)
    pacer.hold(5.0)
    assert pacer.ready_at(1.0, 1) == 10.0


def test_unknown_usage_keeps_the_charge() -> None:
    pacer = Pacer(None, 60_000, now=0.0)
    charged = pacer.take(0.0, 6_000)
    before = pacer.ready_at(0.0, 1)
    pacer.settle(6_000, charged, None)
    assert pacer.ready_at(0.0, 1) == before
