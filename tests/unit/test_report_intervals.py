"""How sure a figure is: against the binomial distribution, and against what is known of made data."""

from __future__ import annotations

import random
from itertools import accumulate
from math import comb

import numpy as np
import pytest

from cbatch.report.intervals import certified, floor_of, median_interval, quantile, rank_below, t_interval, trend


@pytest.mark.parametrize(("tail", "requests"), [(0.1, 64), (0.05, 130), (0.01, 662), (0.001, 6_636)])
def test_the_floors_are_those_of_mlperf(tail: float, requests: int) -> None:
    assert floor_of(tail) == requests


@pytest.mark.parametrize(("n", "share", "risk"), [(6, 0.5, 0.025), (100, 0.5, 0.025), (700, 0.01, 0.01)])
def test_a_rank_is_the_last_one_within_the_risk(n: int, share: float, risk: float) -> None:
    terms = (comb(n, j) * share**j * (1 - share) ** (n - j) for j in range(n + 1))
    exact = sum(total <= risk for total in accumulate(terms)) - 1
    assert rank_below(n, share, risk) == exact


def test_large_and_small_counts_meet_where_the_binomial_becomes_normal() -> None:
    """The normal approximation is at most one rank off, and on the careful side."""
    below, above = rank_below(3_999, 0.5, 0.025), rank_below(4_003, 0.5, 0.025)
    assert 0 <= above - below <= 3


def test_below_its_floor_a_percentile_is_not_certified() -> None:
    values = np.arange(661.0)
    assert certified(values, 0.01, upper=True) is None
    assert certified(np.arange(662.0), 0.01, upper=True) == 660  # one value lies beyond it
    assert certified(np.arange(662.0), 0.01, upper=False) == 1


def test_a_certified_bound_is_wrong_once_in_a_hundred_runs() -> None:
    rng = np.random.default_rng(3)
    bounds = [certified(np.sort(rng.random(800)), 0.01, upper=True) for _ in range(2_000)]
    wrong = sum(bound is not None and bound < 0.99 for bound in bounds)
    assert wrong <= 0.015 * 2_000


def test_a_median_is_in_its_interval_19_times_of_20() -> None:
    rng = np.random.default_rng(4)
    intervals = [median_interval(np.sort(rng.random(50))) for _ in range(1_000)]
    missed = sum(found is not None and not found[0] <= 0.5 <= found[1] for found in intervals)
    assert 0.02 * 1_000 < missed < 0.07 * 1_000
    assert median_interval(np.arange(5.0)) is None


def test_the_interval_over_blocks_is_students() -> None:
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))


def test_a_quantile_is_linear_between_neighbours() -> None:
    assert quantile(np.array([1.0, 2.0, 3.0, 4.0]), 0.5) == 2.5
    assert quantile(np.array([7.0]), 0.99) == 7.0


def test_a_trend_is_found_and_its_size() -> None:
    p, change = trend([100.0 - n for n in range(12)])
    assert p < 0.001
    assert change == pytest.approx(-0.116, abs=0.01)


def test_noise_is_seldom_taken_for_a_trend() -> None:
    rng = random.Random(5)
    found = [trend([rng.gauss(100, 1) for _ in range(12)])[0] < 0.05 for _ in range(500)]
    assert sum(found) < 0.07 * 500


def test_equal_values_have_no_trend() -> None:
    assert trend([3.0] * 12) == (1.0, 0.0)
