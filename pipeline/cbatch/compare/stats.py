"""The arithmetic of comparisons: intervals, p-values, what a design can see. Pure.

Changes of times and speeds are logarithms of ratios: a halving and a doubling are as far from no change.
scipy is imported where it is used: it takes half a second, and no other command needs it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
POWER = 0.80
FLIPS_FROM, FLIPS_TO = 6, 17  # pairs: fewer cannot reach p = 0.05 (five: 0.0625), more are too many to try all
MOST_REPEATS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How B differs from A: an estimate with its 95 % interval.

    A log ratio, or for shares a difference. `p` is for "no change"; None where runs were not repeated.
    """

    point: float
    low: float
    high: float
    p: float | None
    p_sign_flip: float | None = None
    units: tuple[int, int] = (1, 1)  # blocks (or pairs of them, or requests of a share) on either side
    smallest: float | None = None  # the smallest change that is seen in 80 % of the cases
    noise: float | None = None  # standard deviation of one repeat's change

    def widened(self, by: float) -> Change:
        """The same with `by` added at either end, and so without a p-value."""
        smallest = None if self.smallest is None else self.smallest + by
        return replace(
            self, low=self.low - by, high=self.high + by, p=None, p_sign_flip=None, smallest=smallest, noise=None
        )


def paired(changes: Floats) -> Change:
    """From the changes of at least two pairs: Student's t.

    The point is their mean, the middle of the interval. A Hodges-Lehmann estimate would shrug off one odd
    pair, but an interval that does not, around a point that is not its middle, reads as an error.
    """
    n = len(changes)
    sd = float(np.std(changes, ddof=1))
    found = _student(float(np.mean(changes)), sd / math.sqrt(n), n - 1)
    return replace(found, p_sign_flip=sign_flip(changes), units=(n, n), noise=sd)


def welch(a: Floats, b: Floats) -> Change:
    """From the logarithms of blocks that do not come in pairs, at least two on either side: Welch's t."""
    parts = [float(np.var(side, ddof=1)) / len(side) for side in (a, b)]
    se = math.sqrt(sum(parts))
    weights = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (a, b), strict=True))
    df = se**4 / weights if weights else len(a) + len(b) - 2
    found = _student(float(np.mean(b) - np.mean(a)), se, df)
    return replace(found, units=(len(a), len(b)), noise=se * math.sqrt(2 / (1 / len(a) + 1 / len(b))))


def predicted(changes: Floats) -> Change:
    """From the changes of one run against each of many earlier ones: is it one more of them? A prediction interval."""
    n = len(changes)
    sd = float(np.std(changes, ddof=1))
    return replace(_student(float(np.mean(changes)), sd * math.sqrt(1 + 1 / n), n - 1), units=(n, 1))


def _student(point: float, se: float, df: float) -> Change:
    from scipy.stats import t

    if se < 1e-12:  # nothing varies: simulators do that
        return Change(point=point, low=point, high=point, p=float(abs(point) < 1e-12), smallest=0.0)
    half = float(t.ppf((1 + CONFIDENCE) / 2, df)) * se
    p = float(2 * t.sf(abs(point) / se, df))
    smallest = half + float(t.ppf(POWER, df)) * se
    return Change(point=point, low=point - half, high=point + half, p=p, smallest=smallest)


def run_allowance(changes: Floats) -> float:
    """How far two runs may be apart for no reason (95 %), from changes of one run against earlier ones."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, len(changes) - 1) * np.std(changes, ddof=1) * math.sqrt(2))


def sign_flip(changes: Floats) -> float | None:
    """The exact two-sided p of no change: how many of all choices of signs give so large a sum."""
    n = len(changes)
    if not FLIPS_FROM <= n <= FLIPS_TO:
        return None
    choices = np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1  # the first pair keeps its sign: the rest mirrors
    sums = np.abs((1 - 2 * choices) @ changes)
    return float(np.mean(sums >= abs(changes.sum()) * (1 - 1e-9)))


def shares(bad_a: int, n_a: int, bad_b: int, n_b: int) -> Change:
    """The difference of two shares: Newcombe's interval (method 10), Fisher's exact p."""
    from scipy.stats import fisher_exact, norm

    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    a, b = bad_a / n_a, bad_b / n_b
    (low_a, high_a), (low_b, high_b) = _wilson(bad_a, n_a, z), _wilson(bad_b, n_b, z)
    p = float(fisher_exact([[bad_a, n_a - bad_a], [bad_b, n_b - bad_b]]).pvalue)
    # For the smallest change that is seen, at least one failure is assumed: no share is known to be zero.
    base = max((bad_a + bad_b) / (n_a + n_b), 1 / (n_a + n_b))
    se = math.sqrt(base * (1 - base) * (1 / n_a + 1 / n_b)) if base < 1 else 0.0
    return Change(
        point=b - a,
        low=b - a - math.hypot(b - low_b, high_a - a),
        high=b - a + math.hypot(high_b - b, a - low_a),
        p=p,
        units=(n_a, n_b),
        smallest=(z + float(norm.ppf(POWER))) * se,
    )


def _wilson(bad: int, n: int, z: float) -> tuple[float, float]:
    share = bad / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values, adjusted for having looked at all of them (Holm); None stays None and does not count."""
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    out: list[float | None] = [None] * len(p_values)
    so_far = 0.0
    for rank, (p, place) in enumerate(order):
        so_far = max(so_far, min(1.0, p * (len(order) - rank)))
        out[place] = so_far
    return out


def repeats_needed(noise: float, distance: float) -> int | None:
    """How many pairs tell a change from a threshold `distance` away, in 80 % of the cases; None: too many."""
    from scipy.stats import t

    sizes = np.arange(2, MOST_REPEATS + 1)
    reach = (t.ppf((1 + CONFIDENCE) / 2, sizes - 1) + t.ppf(POWER, sizes - 1)) * noise / np.sqrt(sizes)
    enough = np.flatnonzero(reach <= abs(distance))
    return int(sizes[enough[0]]) if len(enough) else None


def requests_needed(a: float, b: float, distance: float) -> int | None:
    """How many requests a side tell a difference of shares from a threshold `distance` away; None: too many."""
    from scipy.stats import norm

    if distance == 0:
        return None
    variance = a * (1 - a) + b * (1 - b)
    z = float(norm.ppf((1 + CONFIDENCE) / 2) + norm.ppf(POWER))
    # Where no failure was seen, the interval is that of the rule of three: about z²/n wide.
    found = max(z * z * variance / distance**2, z * z / abs(distance))
    return math.ceil(found) if found < 1e8 else None
