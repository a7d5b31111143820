"""How sure a figure is: order statistics, intervals and a test for drift. Arithmetic on sorted numbers only.

A percentile is certified at 99 % confidence, or there is none: the rule of MLPerf. The bound is an order
statistic, so nothing is assumed about the distribution. At least one value must lie beyond the bound, which
gives its floors: 64 requests for p90, 130 for p95, 662 for p99, 6,636 for p99.9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist, mean, median, stdev

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.99
EXACT_UP_TO = 2_000.0  # expected count from which the binomial is taken as normal: then 1 rank in 1,000 off at most

# Two-sided 95 % of Student's t for 1, 2, … degrees of freedom; beyond, 1.96 + 2.4/df is right to 0.01.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@cache
def rank_below(n: int, share: float, risk: float) -> int:
    """The largest j with P(Binomial(n, share) <= j) <= risk; -1 where even j = 0 is likelier than that."""
    expected = n * share
    if expected > EXACT_UP_TO:
        z = NormalDist().inv_cdf(risk)
        return math.floor(expected + z * math.sqrt(expected * (1 - share)) - 0.5)
    log_odds = math.log(share) - math.log1p(-share)
    log_term = n * math.log1p(-share)
    total = 0.0
    for j in range(n + 1):
        total += math.exp(log_term)
        if total > risk:
            return j - 1
        log_term += math.log((n - j) / (j + 1)) + log_odds if j < n else 0.0
    return n


@cache
def floor_of(tail: float) -> int:
    """How many requests it takes to certify the percentile with this share beyond it: 662 for 0.01."""
    n = 2
    while rank_below(n, tail, 1 - CONFIDENCE) < 1:
        n += 1
    return n


def certified(ordered: Floats, tail: float, *, upper: bool) -> float | None:
    """What the percentile with `tail` beyond it is at most (`upper`), or at least, with 99 % confidence.

    None below its floor: a bound with no value beyond it is the largest value seen, whatever that is.
    """
    rank = rank_below(len(ordered), tail, 1 - CONFIDENCE)
    if rank < 1:
        return None
    return float(ordered[len(ordered) - 1 - rank] if upper else ordered[rank])


def quantile(ordered: Floats, share: float) -> float:
    """The quantile of sorted values, linear between neighbours."""
    place = (len(ordered) - 1) * share
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (place - low))


def median_interval(ordered: Floats) -> tuple[float, float] | None:
    """Where the median is with 95 % confidence, each value being one observation; None below 6 values."""
    rank = rank_below(len(ordered), 0.5, 0.025)
    if rank < 0:
        return None
    return float(ordered[rank]), float(ordered[len(ordered) - 1 - rank])


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the mean of what these values are samples of is with 95 % confidence; needs two."""
    df = len(values) - 1
    t = _T95[df - 1] if df <= len(_T95) else 1.96 + 2.4 / df
    half = t * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def trend(values: Sequence[float]) -> tuple[float, float]:
    """Whether values in order of time rise or fall: p (Mann-Kendall), and the change from first to last as a share.

    The change is Theil and Sen's slope over the whole length, so one odd value moves neither.
    """
    n = len(values)
    pairs = [(values[j] - values[i], j - i) for i in range(n) for j in range(i + 1, n)]
    score = sum((rise > 0) - (rise < 0) for rise, _ in pairs)
    sd = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    z = max(0, abs(score) - 1) / sd if sd else 0.0
    middle = median(values)
    change = median(rise / run for rise, run in pairs) * (n - 1) / middle if middle else 0.0
    return 2 * NormalDist().cdf(-z), change
