"""The arithmetic of comparisons, against tables, published examples and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.compare import stats

CHANGES = np.array([-0.05, -0.03, -0.06, -0.04, -0.02, -0.04])


def test_a_paired_change_is_students_t() -> None:
    """Mean -0.04, standard error 0.0141/sqrt(6), t(0.975, 5) = 2.5706."""
    found = stats.paired(CHANGES)
    half = 2.5706 * math.sqrt(0.0002) / math.sqrt(6)
    assert found.point == pytest.approx(-0.04)
    assert found.low == pytest.approx(-0.04 - half, rel=1e-3)
    assert found.high == pytest.approx(-0.04 + half, rel=1e-3)
    assert found.p == pytest.approx(0.00097, rel=0.02)
    assert found.units == (6, 6)


def test_six_pairs_of_one_sign_have_the_smallest_exact_p_and_five_have_none() -> None:
    """2/64 with six; five could not go below 0.0625, so nothing is said."""
    assert stats.paired(CHANGES).p_sign_flip == 2 / 64
    assert stats.paired(CHANGES[:5]).p_sign_flip is None
    assert stats.paired(np.linspace(0.01, 0.02, 18)).p_sign_flip is None


def test_one_pair_against_the_others_doubles_the_exact_p() -> None:
    """The smallest of six turned over: it and its mirror image are as extreme."""
    assert stats.sign_flip(np.array([0.5, 0.5, 0.5, 0.5, 0.5, -0.01])) == 4 / 64


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=10))
def test_the_exact_p_is_a_share_of_all_choices_of_signs(changes: list[float]) -> None:
    p = stats.sign_flip(np.array(changes))
    assert p is not None
    assert 2 / 2 ** len(changes) <= p <= 1
    assert (p * 2 ** (len(changes) - 1)).is_integer()


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=12), st.floats(0, 0.3))
def test_an_interval_holds_its_point_and_widening_keeps_it(changes: list[float], by: float) -> None:
    found = stats.paired(np.array(changes))
    assert found.low <= found.point <= found.high
    wide = found.widened(by)
    assert wide.low <= found.low
    assert wide.high >= found.high
    assert wide.p is None  # a wider interval belongs to no test of "no change"


def test_what_never_varies_has_an_interval_of_no_width() -> None:
    """A simulator answers twice in the same time: no division by zero, and no change."""
    assert stats.paired(np.zeros(6)).p == 1.0
    found = stats.paired(np.full(6, 0.1))
    assert found.low == found.point == found.high == pytest.approx(0.1)
    assert found.p == 0.0
    assert stats.welch(np.zeros(3), np.zeros(3)).p == 1.0


def test_welch_agrees_with_scipy() -> None:
    from scipy.stats import ttest_ind

    a, b = np.array([0.0, 0.1, 0.05, 0.02]), np.array([0.2, 0.4, 0.1])
    reference = ttest_ind(b, a, equal_var=False)
    found = stats.welch(a, b)
    assert found.p == pytest.approx(reference.pvalue)
    interval = reference.confidence_interval()
    assert found.low == pytest.approx(interval.low)
    assert found.high == pytest.approx(interval.high)


@pytest.mark.parametrize(
    ("b", "a", "low", "high"),
    [
        pytest.param((56, 70), (48, 80), 0.0524, 0.3339, id="Newcombe 1998, table II, case a"),
        pytest.param((9, 10), (3, 10), 0.1705, 0.8090, id="case b"),
        pytest.param((5, 56), (0, 29), -0.0381, 0.1926, id="case d: none on one side"),
        pytest.param((0, 10), (0, 10), -0.2775, 0.2775, id="case f: none on either side"),
        pytest.param((10, 10), (0, 10), 0.6075, 1.0, id="case h: all and none"),
    ],
)
def test_the_interval_of_two_shares_is_newcombes(
    b: tuple[int, int], a: tuple[int, int], low: float, high: float
) -> None:
    found = stats.shares(*a, *b)
    assert found.low == pytest.approx(low, abs=6e-5)
    assert found.high == pytest.approx(high, abs=6e-5)


def test_failing_entirely_has_no_zero_division() -> None:
    found = stats.shares(10, 10, 10, 10)
    assert (found.point, found.p, found.smallest) == (0.0, 1.0, 0.0)


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert stats.holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_so_many_repeats_as_are_said_to_be_needed_do_decide() -> None:
    """In 80 % of simulated comparisons the interval then excludes the threshold (76 to 88 % of 400)."""
    noise, distance = 0.04, 0.03
    needed = stats.repeats_needed(noise, distance)
    assert needed is not None
    rng = np.random.default_rng(3)
    seen = sum(stats.paired(rng.normal(distance, noise, needed)).low > 0 for _ in range(400))
    assert 304 <= seen <= 352
    assert stats.repeats_needed(noise, 0.0) is None


def test_the_smallest_change_is_seen_in_four_of_five_comparisons() -> None:
    rng = np.random.default_rng(4)
    smallest = np.mean([stats.paired(rng.normal(0, 0.03, 6)).smallest or 0.0 for _ in range(300)])
    seen = sum(stats.paired(rng.normal(smallest, 0.03, 6)).low > 0 for _ in range(400))
    assert 288 <= seen <= 360


def test_a_history_predicts_the_next_run_95_times_in_100() -> None:
    """Runs of one noise: the interval from ten of them leaves out 5 % of the eleventh."""
    rng = np.random.default_rng(5)
    out = 0
    for _ in range(600):
        runs = rng.normal(0, 0.03, 11)
        found = stats.predicted(runs[10] - runs[:10])
        out += not found.low <= 0 <= found.high
    assert 15 <= out <= 47


def test_intervals_of_a_history_are_wider_than_its_spread() -> None:
    """One more run: sd x sqrt(1 + 1/n). Two runs of it against each other: sd x sqrt(2). t(0.975, 9) = 2.2622."""
    changes = np.linspace(-0.03, 0.03, 10)
    sd = float(np.std(changes, ddof=1))
    found = stats.predicted(changes)
    assert found.high - found.point == pytest.approx(2.2622 * sd * math.sqrt(1.1), rel=1e-4)
    assert stats.run_allowance(changes) == pytest.approx(2.2622 * sd * math.sqrt(2), rel=1e-4)


@pytest.mark.parametrize(("a", "b", "distance"), [(0.0, 0.0, -0.01), (0.02, 0.03, 0.01)])
def test_so_many_requests_as_are_said_to_be_needed_do_decide(a: float, b: float, distance: float) -> None:
    """With the shares as they were seen, the interval then excludes the threshold."""
    n = stats.requests_needed(a, b, distance)
    assert n is not None
    found = stats.shares(round(a * n), n, round(b * n), n)
    threshold = (b - a) - distance
    assert not found.low <= threshold <= found.high
