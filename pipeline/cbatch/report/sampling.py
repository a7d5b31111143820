"""Many numbers -> few that draw the same picture: thinned dots, bins over time, shares, a fitted line.

All of it is arithmetic on arrays, and the same numbers give the same picture: nothing is drawn by lot.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

FIT_POINTS = 600  # 180,000 pairs: a slope from more of them moves in its third digit and takes seconds
_LEVELS = np.concatenate([[0, 0.001, 0.01], np.linspace(0.02, 0.98, 97), [0.99, 0.999, 1]])


class Line(NamedTuple):
    """y = base + slope * x, from `n` points."""

    base: float
    slope: float
    n: int


def thin(x: Floats, y: Floats, most: int) -> Places:
    """Places of at most `most` points, in order of x: of each slice of x its lowest and its highest, and others.

    The slices hold equally many points, so a crowd is not thinned to less than a desert. A sixth of the points
    are extremes, the others stand evenly between them: they say how dense it is.
    """
    order = np.argsort(x, kind="stable")
    if len(order) <= most:
        return order
    slices = max(1, most // 12)
    edges = np.linspace(0, len(order), slices + 1).astype(np.intp)[:-1]
    ranked = y[order]
    # Within a slice by value: its first and its last are the extremes.
    number = np.searchsorted(edges, np.arange(len(order)), side="right")
    by_value = np.lexsort((ranked, number))
    lows, highs = by_value[edges], by_value[np.append(edges[1:], len(order)) - 1]
    between = np.linspace(0, len(order) - 1, most - 2 * slices).astype(np.intp)
    return np.asarray(order[np.unique(np.concatenate([lows, highs, between]))])


def shares(groups: list[Floats]) -> tuple[Floats, list[Floats]]:
    """Points on one axis, and for each sorted group the share of it that is not above each of them.

    The points are quantiles of the groups, so each curve is exact where it bends; outside of a group they are NaN.
    """
    axis = np.unique(np.concatenate([np.quantile(group, _LEVELS, method="inverted_cdf") for group in groups]))
    curves = []
    for group in groups:
        curve = np.searchsorted(group, axis, side="right") / len(group)
        curves.append(np.where((axis < group[0]) | (axis > group[-1]), np.nan, curve))
    return axis, curves


def spread(t: Floats, y: Floats, edges: Floats, level: float, least: int) -> Floats:
    """The quantile of `y` in each interval of `t`; NaN where fewer than `least` values are."""
    place = np.searchsorted(edges, t, side="right") - 1
    order = np.lexsort((y, place))
    ranked, place = y[order], place[order]
    starts, ends = np.searchsorted(place, np.arange(len(edges) - 1)), np.searchsorted(place, np.arange(1, len(edges)))
    counts = ends - starts
    at = np.minimum(starts + np.floor(level * np.maximum(counts - 1, 0) + 0.5).astype(np.intp), len(ranked) - 1)
    return np.where(counts >= least, ranked[at], np.nan)


def flow(start: Floats, end: Floats, weight: Floats | None, edges: Floats) -> Floats:
    """The mean in each interval of what each span carries while it lasts: 1, or `weight` spread over its length.

    With weight 1 it is the mean number of spans that were open (in flight); with tokens, tokens per second.
    """
    if weight is None:
        each = np.ones_like(start)
    else:
        # What takes no time at all would be infinitely fast: it is spread over a millisecond.
        end = np.maximum(end, start + 1e-3)
        each = weight / (end - start)
    return np.asarray(np.diff(_passed(start, each, edges) - _passed(end, each, edges)) / np.diff(edges))


def _passed(moment: Floats, each: Floats, at: Floats) -> Floats:
    """The sum of each * (at - moment) over all moments before `at`, in one pass over sorted moments."""
    order = np.argsort(moment)
    moment, each = moment[order], each[order]
    count = np.searchsorted(moment, at)
    rate = np.concatenate([[0.0], np.cumsum(each)])[count]
    past = np.concatenate([[0.0], np.cumsum(each * moment)])[count]
    return np.asarray(rate * at - past)


def line(x: Floats, y: Floats) -> Line | None:
    """The Theil-Sen line: the median of the slopes of all pairs, which a third of wild points does not move.

    None where fewer than ten points or fewer than three values of x leave it open.
    """
    if len(x) < 10 or len(np.unique(x)) < 3:
        return None
    order = np.argsort(x, kind="stable")
    take = order[np.linspace(0, len(x) - 1, min(len(x), FIT_POINTS)).astype(np.intp)]
    xs, ys = x[take], y[take]
    first, second = np.triu_indices(len(take), k=1)
    dx = xs[second] - xs[first]
    apart = dx > 0
    slope = float(np.median((ys[second] - ys[first])[apart] / dx[apart]))
    return Line(base=float(np.median(y - slope * x)), slope=slope, n=len(x))


def rounded(values: Floats, digits: int = 4) -> list[Any]:
    """Numbers as JSON holds them: so many digits, whole ones without a point, None for what is not finite."""
    return [None if not math.isfinite(v) else _short(float(f"{v:.{digits}g}")) for v in values.tolist()]


def _short(value: float) -> float | int:
    return int(value) if value.is_integer() else value
