"""The simulator's quota arithmetic: no clock, time is an argument."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.sim.buckets import HEADER_SETS, Allowance, Reservation, rate_headers
from cbatch.sim.config import SimConfig
from cbatch.sim.models import MODELS, TIERS, Limits
from cbatch.sim.windows import WINDOWS, Bucket, FixedWindow, SlidingWindow


@pytest.mark.parametrize(
    ("taken", "elapsed_s", "available"),
    [
        pytest.param(0, 0, 60, id="a new bucket is full"),
        pytest.param(60, 0, 0, id="taking everything leaves nothing"),
        pytest.param(60, 1, 1, id="one second refills a sixtieth of a minute's limit"),
        pytest.param(60, 30, 30, id="half a window refills half, without a window boundary"),
        pytest.param(30, 3600, 60, id="it never holds more than its limit"),
        pytest.param(90, 10, -20, id="an overdrawn bucket owes before it fills"),
    ],
)
def test_refill(taken: float, elapsed_s: float, available: float) -> None:
    bucket = Bucket(60, 60.0, now=100.0)
    bucket.level -= taken
    assert bucket.available(100.0 + elapsed_s) == pytest.approx(available)


@pytest.mark.parametrize(
    ("elapsed_s", "available"),
    [
        pytest.param(0, 0, id="everything is taken"),
        pytest.param(19.9, 0, id="nothing comes back within the wall-clock minute"),
        pytest.param(20, 60, id="all comes back at its boundary"),
    ],
)
def test_a_fixed_window(elapsed_s: float, available: float) -> None:
    """Counted by the minute of the wall clock, here 40 s old at the start."""
    window = FixedWindow(60, 60.0, 100.0, offset_s=0.0)
    window.take(100.0, 60)
    assert window.available(100.0 + elapsed_s) == pytest.approx(available)


def test_a_fixed_window_forgets_reservations_of_the_last_one() -> None:
    """What is settled after the boundary neither fills the new window above its limit nor empties it."""
    window = FixedWindow(60, 60.0, 0.0)
    window.take(59.0, 50)
    window.give(59.5, 59.0, 30)
    assert window.available(59.5) == 40
    window.take(61.0, 10)
    window.give(61.0, 59.0, 20)
    assert window.available(61.0) == 50
    window.give(61.0, 59.0, -5)
    assert window.available(61.0) == 45
    assert window.full_s(61.0) == pytest.approx(59.0)
    assert window.full_s(120.0) == 0.0


def test_a_sliding_window() -> None:
    """Each amount comes back a window after it was taken, and settling changes what will come back."""
    window = SlidingWindow(60, 60.0, 0.0)
    window.take(0.0, 20)
    window.take(30.0, 40)
    assert window.available(59.0) == 0
    assert window.wait(59.0, 20) == pytest.approx(1.0, abs=0.02)
    assert window.wait(59.0, 21) == pytest.approx(31.0, abs=0.02)
    window.give(59.0, 30.0, 30)
    assert window.available(59.0) == 30
    assert window.available(60.02) == 50
    assert window.available(90.02) == 60
    window.give(95.0, 30.0, 10)
    assert window.available(95.0) == 60
    window.give(95.0, 30.0, -10)
    assert window.available(95.0) == 50
    assert window.full_s(95.0) == pytest.approx(60.0, abs=0.02)


def test_a_sliding_window_of_a_day_has_a_bounded_log() -> None:
    window = SlidingWindow(1e9, 86_400.0, 0.0)
    for number in range(50_000):
        window.take(number * 10.0, 1)
    assert len(window._log) <= 4_098
    assert window.available(500_000.0) == pytest.approx(1e9 - 8_640, abs=5)


@given(
    st.sampled_from(sorted(WINDOWS)),
    st.integers(1, 500),
    st.lists(st.tuples(st.floats(0, 40), st.integers(1, 60)), min_size=1, max_size=60),
)
def test_no_window_passes_more_than_its_reading_allows(
    kind: str, limit: int, arrivals: list[tuple[float, int]]
) -> None:
    """Sliding: the limit in any 60 s; fixed: in any wall-clock minute; bucket: the limit and what flows in."""
    allowance = Allowance(Limits(tpm=limit), 0.0, kind)
    now = 0.0
    passed: list[tuple[float, int]] = []
    for gap_s, tokens in arrivals:
        now += gap_s
        if allowance.admit(now, tokens) is None:
            passed.append((now, tokens))
    for start, _ in passed:
        any_minute = sum(tokens for at, tokens in passed if start <= at < start + 60)
        same_minute = sum(tokens for at, tokens in passed if at // 60 == start // 60)
        assert any_minute <= (limit if kind == "sliding" else 2 * limit)
        assert kind != "fixed" or same_minute <= limit


@pytest.mark.parametrize("kind", WINDOWS)
def test_waiting_exactly_as_long_as_told_is_enough(kind: str) -> None:
    """A caller that sleeps `wait_s` is admitted, whatever the rounding of floats."""
    for rpm in (5, 7, 13, 300, 997):
        allowance = Allowance(Limits(rpm=rpm), 0.1, kind, offset_s=1_795_132_811.3)
        now = 0.1
        for _ in range(3 * rpm):
            refusal = allowance.admit(now, 1)
            if refusal is not None:
                now += refusal.wait_s
                assert allowance.admit(now, 1) is None


@pytest.mark.parametrize(
    ("limits", "tokens", "kind", "period"),
    [
        pytest.param(Limits(rps=0 + 1, rpm=9), 1, "requests", "second", id="requests per second"),
        pytest.param(Limits(rpm=1), 1, "requests", "minute", id="requests per minute"),
        pytest.param(Limits(rph=1), 1, "requests", "hour", id="requests per hour"),
        pytest.param(Limits(rpd=1), 1, "requests", "day", id="requests per day"),
        pytest.param(Limits(tpm=10), 9, "tokens", "minute", id="uncached tokens per minute"),
        pytest.param(Limits(total_tpm=10), 9, "total tokens", "minute", id="total tokens per minute"),
        pytest.param(Limits(tph=10), 9, "tokens", "hour", id="tokens per hour"),
        pytest.param(Limits(tpd=10), 9, "tokens", "day", id="tokens per day"),
        pytest.param(Limits(rpm=1, tpm=10), 9, "requests", "minute", id="requests are looked at before tokens"),
    ],
)
def test_each_bucket_refuses_by_its_own_name(limits: Limits, tokens: int, kind: str, period: str) -> None:
    allowance = Allowance(limits, 0.0)
    assert allowance.admit(0.0, tokens) is None
    refusal = allowance.admit(0.0, tokens)
    assert refusal is not None
    assert (refusal.kind, refusal.period) == (kind, period)
    assert 0 < refusal.wait_s < math.inf


def test_a_refused_request_costs_nothing() -> None:
    """Refusals take neither a request nor tokens from any bucket."""
    allowance = Allowance(Limits(rpm=2, tpm=100), 0.0)
    for _ in range(10):
        assert allowance.admit(0.0, 101) is not None
    assert allowance.admit(0.0, 50) is None
    assert allowance.admit(0.0, 50) is None


def test_more_than_the_bucket_can_hold_is_never_admitted() -> None:
    """An estimate above the limit is refused even by a full bucket, and no wait is promised."""
    allowance = Allowance(Limits(tpm=30_000), 0.0)
    for now in (0.0, 60.0, 1e6):
        refusal = allowance.admit(now, 40_000)
        assert refusal is not None
        assert refusal.wait_s == math.inf


def test_no_limits_admit_everything() -> None:
    allowance = Allowance(Limits(), 0.0)
    assert all(allowance.admit(0.0, 10**12) is None for _ in range(1000))


def test_settlement_gives_back_what_was_not_used_once() -> None:
    """The reservation becomes the usage; cached tokens cost nothing in the uncached bucket but do in the total."""
    allowance = Allowance(Limits(tpm=1000, total_tpm=3000), 0.0)
    assert allowance.admit(0.0, 900) is None
    reservation = Reservation(allowance, 900, uncached=100, total=228, at=0.0)
    for _ in range(3):
        reservation.settle(0.0)
    assert allowance.shown["tokens", "minute"].available(0.0) == pytest.approx(900)
    assert allowance.shown["total tokens", "minute"].available(0.0) == pytest.approx(3000 - 228)


@given(
    st.integers(1, 500),
    st.lists(st.tuples(st.floats(0, 20), st.integers(1, 60)), min_size=1, max_size=80),
)
def test_no_window_passes_more_than_its_rate_plus_the_burst(limit: int, arrivals: list[tuple[float, int]]) -> None:
    """Whatever arrives when, tokens admitted between two moments never exceed refill plus one full bucket."""
    allowance = Allowance(Limits(tpm=limit), 0.0)
    now = 0.0
    passed: list[tuple[float, int]] = []
    for gap_s, tokens in arrivals:
        now += gap_s
        if allowance.admit(now, tokens) is None:
            passed.append((now, tokens))
    for first, (start, _) in enumerate(passed):
        total = 0
        for end, tokens in passed[first:]:
            total += tokens
            assert total <= limit + (end - start) * limit / 60 + 1e-3


def test_headers_are_in_the_seconds_of_whoever_reads_them() -> None:
    """A limits' clock that runs 60 times as fast ends a minute after a second."""
    allowance = Allowance(Limits(tpm=60_000), 0.0)
    assert allowance.admit(0.0, 30_000) is None
    for wall_s, reset_s in ((None, 0.5), (1_795_132_815.0, 0.75)):
        headers = rate_headers(allowance, 0.0, shown=HEADER_SETS["classic"], wall_s=wall_s, rate=60.0)
        assert float(headers["x-ratelimit-reset-tokens-minute"]) == pytest.approx(reset_s)


def test_wall_clock_resets_count_to_the_next_minute_and_midnight() -> None:
    """As recorded: the two resets differ by whole minutes, whatever the buckets hold."""
    allowance = Allowance(Limits(rpd=14_400, tpm=60_000), 0.0)
    wall_s = 1_795_132_800.0 + 20 * 3600 + 44 * 60 + 33.75  # 20:44:33.75 UTC
    headers = rate_headers(allowance, 0.0, shown=HEADER_SETS["classic"], wall_s=wall_s)
    assert float(headers["x-ratelimit-reset-tokens-minute"]) == pytest.approx(26.25)
    assert float(headers["x-ratelimit-reset-requests-day"]) == pytest.approx(26.25 + 195 * 60)


def test_refill_resets_count_to_the_full_bucket() -> None:
    allowance = Allowance(Limits(tpm=60_000), 0.0)
    assert allowance.admit(0.0, 30_000) is None
    headers = rate_headers(allowance, 0.0, shown=HEADER_SETS["classic"], wall_s=None)
    assert headers["x-ratelimit-limit-tokens-minute"] == "60000"
    assert headers["x-ratelimit-remaining-tokens-minute"] == "30000"
    assert float(headers["x-ratelimit-reset-tokens-minute"]) == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("style", "count"),
    [
        pytest.param("none", 0, id="none"),
        pytest.param("classic", 6, id="classic: requests per day, tokens per minute"),
        pytest.param("extended", 18, id="extended: minutes, hours and days of both"),
    ],
)
def test_header_sets(style: str, count: int) -> None:
    headers = rate_headers(Allowance(Limits(), 0.0), 0.0, shown=HEADER_SETS[style], wall_s=None)
    assert len(headers) == count
    assert all(float(value) >= 0 for value in headers.values())


def test_no_limit_is_shown_as_a_billion() -> None:
    headers = rate_headers(Allowance(Limits(), 0.0), 0.0, shown=HEADER_SETS["classic"], wall_s=None)
    assert headers["x-ratelimit-limit-requests-day"] == "1000000000"


@pytest.mark.parametrize(
    ("tier", "model", "expected"),
    [
        pytest.param("free-trial", "gpt-oss-120b", (5, 30_000, 90_000, 1_000_000, 1_000_000), id="trial"),
        pytest.param("free-trial", "qwen-3.8-27b", (5, 30_000, 90_000, 1_000_000, 1_000_000), id="trial, qwen"),
        pytest.param("developer", "gpt-oss-120b", (1000, 1_000_000, 3_000_000, None, None), id="developer"),
        pytest.param("developer", "qwen-3.8-27b", (300, 150_000, 750_000, None, None), id="qwen's total is 5x"),
        pytest.param("unlimited", "gpt-oss-120b", (None, None, None, None, None), id="unlimited"),
    ],
)
def test_tiers(tier: str, model: str, expected: tuple[int | None, ...]) -> None:
    limits = SimConfig(tier=tier).limits(model)
    assert (limits.rpm, limits.tpm, limits.total_tpm, limits.tph, limits.tpd) == expected


def test_own_limits_replace_the_tiers() -> None:
    """`tpm` brings its total bucket along, three times as large."""
    limits = SimConfig(tier="free-trial", rpm=60, tpm=1000).limits("gpt-oss-120b")
    assert (limits.rpm, limits.tpm, limits.total_tpm, limits.tph) == (60, 1000, 3000, 1_000_000)


def test_the_total_limit_can_be_given() -> None:
    assert SimConfig(tpm=1000, total_tpm=1500).limits("gpt-oss-120b").total_tpm == 1500
    assert SimConfig(total_tpm=1500).limits("gpt-oss-120b").tpm == 1_000_000


@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_knows_every_model(tier: str) -> None:
    assert TIERS[tier].keys() == MODELS.keys()


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        pytest.param({"tier": "gold"}, "free-trial, developer, unlimited", id="an unknown tier lists the tiers"),
        pytest.param({"headers": "all"}, "none, classic, extended", id="an unknown header set lists them"),
        pytest.param({"reset_style": "x"}, "wall-clock, refill", id="an unknown reset style lists them"),
        pytest.param({"rpm": 0}, "rpm is 0", id="a limit of zero is refused"),
        pytest.param({"speed": 0}, "speed is 0", id="a speed of zero is refused"),
        pytest.param({"quota_window": "x"}, "bucket, fixed, sliding", id="an unknown window lists them"),
        pytest.param({"outage_kind": "x"}, "refuse, 503", id="an unknown kind of outage lists them"),
        pytest.param({"clock_rate": 0}, "clock_rate is 0", id="a clock that stands still is refused"),
        pytest.param({"max_in_flight": 0}, "max_in_flight is 0", id="a server that serves nobody is refused"),
        pytest.param({"stall_s": -1}, "stall_s is -1", id="a negative silence is refused"),
        pytest.param({"faults": {"503": 2.0}}, "from 0 to 1", id="a probability above one is refused"),
    ],
)
def test_a_wrong_setting_names_what_is_accepted(wrong: dict[str, object], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        SimConfig(**wrong)  # type: ignore[arg-type]
