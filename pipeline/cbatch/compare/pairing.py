"""Two sides -> how B changed from A, by the design that the runs allow.

    interleaved   >= 3 pairs of blocks that took turns: what drifts, drifts in both        paired t
    apart         >= 3 blocks on either side, one run after the other                      Welch's t
    one run       fewer: each is cut into slices of time, and drift is allowed for         t over the slices

The unit is the block, never the request: requests of one minute have the minute's weather in common,
and 200 of them call every second pair of identical runs different. Where both runs asked the same
prompts, a prompt is compared with itself, so the length of prompts and answers is no noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cbatch.compare import stats
from cbatch.compare.metrics import Measure
from cbatch.compare.sides import Places, Side, in_order
from cbatch.compare.stats import Change, Floats

Kind = Literal["interleaved", "apart", "one run"]

PAIRS = 3  # blocks a side: Student's t of two has one degree of freedom and an interval of 13 standard errors
SLICES = (6, 12)
SLICE_ROWS = 50  # the median of fewer answers is noisier than six slices are few
LEAST = 12  # answers: two a slice
COMMON = 10  # prompts that two blocks must share to be compared prompt by prompt
# Two runs of the same thing, hours apart, differ by 3 % (standard deviation of one), so by up to 8.3 % of
# each other in 95 % of cases; with what the slices themselves cannot see, a tenth.
DRIFT_ALLOWANCE = 0.10
RESOLUTION_S = 1e-3  # of the server's queue clock: what is below is one millisecond


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """How two sides can be compared. `allowance` is the log ratio added to intervals of what a clock measured."""

    kind: Kind
    pairs: tuple[tuple[int, int], ...]  # of stretches
    same_prompts: bool
    common_prompts: int = 0
    allowance: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What was measured on both sides, and the change; None where it was not to be had, and `why`."""

    measure: Measure
    a: float | None
    b: float | None
    n: tuple[int, int]  # requests that have a value
    change: Change | None
    why: str = ""
    by_prompt: bool = False
    allowance: float = 0.0  # for drift: what the interval was widened by at either end


def design(a: Side, b: Side, *, turns: bool, same_prompts: bool, common_prompts: int = 0) -> Design:
    """The best design that the blocks allow; `turns` says whether they were run interleaved."""
    kind: Kind = "one run"
    pairs: tuple[tuple[int, int], ...] = ()
    if min(len(a.stretches), len(b.stretches)) >= PAIRS:
        kind = "apart"
    if turns:
        places = {stretch.repeat: place for place, stretch in enumerate(b.stretches)}
        pairs = tuple((n, places[s.repeat]) for n, s in enumerate(a.stretches) if s.repeat in places)
        kind = "interleaved" if len(pairs) >= PAIRS else kind
    return Design(
        kind=kind,
        pairs=pairs if kind == "interleaved" else (),
        same_prompts=same_prompts,
        common_prompts=common_prompts,
        allowance=math.log1p(DRIFT_ALLOWANCE) if kind == "one run" else 0.0,
    )


def difference(measure: Measure, a: Side, b: Side, design: Design) -> Difference:
    """How `measure` changed from A to B."""
    if measure.kind == "share":
        return _share(measure, a, b)
    if measure.statistic == "rate":
        return _rate(measure, a, b, design)
    first, second = Column(measure, a), Column(measure, b)
    sizes = (len(first.rows), len(second.rows))
    values = [first.all, second.all]
    if min(sizes) == 0:
        return Difference(measure=measure, a=values[0], b=values[1], n=sizes, change=None, why="not measured")
    if min(sizes) < measure.floor:
        why = f"{measure.statistic} needs {measure.floor:,} requests on each side; measured {min(sizes):,}"
        return Difference(measure=measure, a=values[0], b=values[1], n=sizes, change=None, why=why)
    change, by_prompt = None, False
    if design.same_prompts and measure.statistic in ("p50", "mean"):
        change, by_prompt = _by_prompt(first, second, design), True
    if change is None:
        change, by_prompt = _by_block(first, second, design), False
    if change is None:
        why = f"too few answers: {min(sizes):,}, and slices of time need {LEAST}"
        return Difference(measure=measure, a=values[0], b=values[1], n=sizes, change=None, why=why)
    # How many tokens an answer has is the model's doing: no clock, so nothing that drifts.
    by = design.allowance if measure.kind in ("time", "speed") else 0.0
    change = change.widened(by) if by else change
    return Difference(
        measure=measure, a=values[0], b=values[1], n=sizes, change=change, by_prompt=by_prompt, allowance=by
    )


def log_ratio(measure: Measure, a: Side, b: Side, *, same_prompts: bool) -> float | None:
    """The change from A to B as one number, each run being one unit: what a history is made of."""
    columns = [Column(measure, one) for one in (a, b)]
    if min(len(column.rows) for column in columns) < max(LEAST, measure.floor):
        return None
    if same_prompts and measure.statistic in ("p50", "mean"):
        found = _prompt_ratio(measure, *(column.by_prompt(column.rows) for column in columns))
        if found is not None:
            return found
    first, second = (column.log_of(column.rows) for column in columns)
    return second - first if math.isfinite(second - first) else None


class Column:
    """One measure of one side: its values, and the rows that have one."""

    def __init__(self, measure: Measure, side: Side) -> None:
        self.measure = measure
        self.side = side
        values = side.numbers(measure.name)
        self.values = values
        # A queue of 0 s has no logarithm, and the difference to 0.2 ms says nothing.
        floor = RESOLUTION_S if measure.name == "server_queue_s" else 1.0 if measure.kind == "count" else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            self.logs = np.log(np.maximum(values, floor))
        self.stretches = [s.answered[np.isfinite(self.logs[s.answered])] for s in side.stretches]
        self.rows = np.concatenate(self.stretches) if self.stretches else np.zeros(0, np.int64)

    @property
    def all(self) -> float | None:
        """The statistic as people read it: of medians, that of the blocks; else of all requests."""
        groups = [rows for rows in self.stretches if len(rows)]
        if not groups:
            return None
        if self.measure.statistic == "p50":
            return float(np.median([self._value(rows) for rows in groups]))
        return self._value(self.rows)

    def _value(self, rows: Places) -> float:
        values = self.values[rows]
        tail = self.measure.percentile
        return float(np.mean(values) if tail is None else np.percentile(values, tail))

    def log_of(self, rows: Places) -> float:
        """The logarithm of the statistic of these rows."""
        tail = self.measure.percentile
        if tail is None:
            with np.errstate(divide="ignore"):
                return float(np.log(np.mean(self.values[rows])))
        return float(np.percentile(self.logs[rows], tail))

    def by_prompt(self, rows: Places) -> Floats:
        """One value for each prompt, NaN where it has none: the mean of its answers (of logarithms for a median)."""
        rows = rows[self.side.codes[rows] >= 0]
        codes = self.side.codes[rows]
        values = self.values if self.measure.statistic == "mean" else self.logs
        counts = np.bincount(codes, minlength=self.side.prompts)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.bincount(codes, values[rows], self.side.prompts) / counts)


def _prompt_ratio(measure: Measure, a: Floats, b: Floats) -> float | None:
    """The change over the prompts that both have; None where these are few, or few of those of either."""
    has_a, has_b = ~np.isnan(a), ~np.isnan(b)
    both = has_a & has_b
    common = int(both.sum())
    if common < COMMON or 2 * common < min(int(has_a.sum()), int(has_b.sum())):
        return None
    if measure.statistic == "mean":
        means = float(np.mean(a[both])), float(np.mean(b[both]))
        return math.log(means[1] / means[0]) if min(means) > 0 else None
    return float(np.median(b[both] - a[both]))


def _by_prompt(a: Column, b: Column, design: Design) -> Change | None:
    if design.kind == "interleaved":
        ratios = [
            _prompt_ratio(a.measure, a.by_prompt(a.stretches[i]), b.by_prompt(b.stretches[j])) for i, j in design.pairs
        ]
        known = [ratio for ratio in ratios if ratio is not None]
        return stats.paired(np.array(known)) if len(known) == len(ratios) else None
    if design.kind == "apart":
        # Every block against the mean of all of A's, prompt by prompt: Welch's t then sees no lengths.
        base = a.by_prompt(a.rows)
        sides = [
            [_prompt_ratio(a.measure, base, column.by_prompt(rows)) for rows in column.stretches] for column in (a, b)
        ]
        known_a, known_b = ([ratio for ratio in ratios if ratio is not None] for ratios in sides)
        if len(known_a) < len(sides[0]) or len(known_b) < len(sides[1]):
            return None
        return stats.welch(np.array(known_a), np.array(known_b))
    # One run: slices of A's time, and in B the same prompts, wherever they were.
    first, second = a.by_prompt(a.rows), b.by_prompt(b.rows)
    rows = in_order(a.side, a.rows[a.side.codes[a.rows] >= 0])
    order, at = np.unique(a.side.codes[rows], return_index=True)
    order = order[np.argsort(at)]  # prompts by their first answer
    both = order[~np.isnan(first[order]) & ~np.isnan(second[order])]
    if len(both) < LEAST or 2 * len(both) < min(len(order), int((~np.isnan(second)).sum())):
        return None
    means = a.measure.statistic == "mean"
    changes = []
    for prompts in np.array_split(both, _slices(len(both))):
        if means:
            with np.errstate(divide="ignore", invalid="ignore"):
                changes.append(float(np.log(np.mean(second[prompts]) / np.mean(first[prompts]))))
        else:
            changes.append(float(np.median(second[prompts] - first[prompts])))
    return stats.paired(np.array(changes)) if np.isfinite(changes).all() else None


def _by_block(a: Column, b: Column, design: Design) -> Change | None:
    if design.kind == "one run":
        if min(len(a.rows), len(b.rows)) < LEAST:
            return None
        groups = [np.array_split(in_order(column.side, column.rows), _slices(len(column.rows))) for column in (a, b)]
    else:
        groups = [a.stretches, b.stretches]
        if design.kind == "interleaved":
            groups = [[a.stretches[i] for i, _ in design.pairs], [b.stretches[j] for _, j in design.pairs]]
    if any(len(rows) == 0 for group in groups for rows in group):
        return None
    first, second = (np.array([c.log_of(rows) for rows in group]) for c, group in zip((a, b), groups, strict=True))
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return None
    return stats.paired(second - first) if design.kind == "interleaved" else stats.welch(first, second)


def _slices(rows: int) -> int:
    return min(max(SLICES[0], rows // SLICE_ROWS), SLICES[1])


def _share(measure: Measure, a: Side, b: Side) -> Difference:
    return share(measure, a.counts.get(measure.name, (0, 0)), b.counts.get(measure.name, (0, 0)))


def share(measure: Measure, a: tuple[int, int], b: tuple[int, int]) -> Difference:
    """From (how many, of how many) of two sides: a failure is counted and not estimated, so the request is the unit."""
    sizes = (a[1], b[1])
    if min(sizes) == 0:
        return Difference(measure=measure, a=None, b=None, n=sizes, change=None, why="no requests")
    return Difference(measure=measure, a=a[0] / a[1], b=b[0] / b[1], n=sizes, change=stats.shares(*a, *b))


def _rate(measure: Measure, a: Side, b: Side, design: Design) -> Difference:
    """What a block as a whole got done in a second, which only blocks of a load run can say."""
    sizes = (len(a.answered), len(b.answered))
    rates = []
    for side in (a, b):
        is_count = measure.name == "completed_per_s"
        each = np.ones(len(side.codes)) if is_count else side.numbers("completion_tokens")
        per_s = []
        for s in side.stretches:
            counted = s.completed if is_count else s.completed_tokens
            done = float(np.nansum(each[s.answered])) if counted is None else counted
            per_s.append(done / max(s.ended_s - s.begun_s, 1e-9))
        rates.append(np.array(per_s))
    values = [float(np.median(one)) for one in rates]
    change = None
    if design.kind != "one run" and all((one > 0).all() for one in rates):
        first, second = np.log(rates[0]), np.log(rates[1])
        if design.kind == "interleaved":
            change = stats.paired(np.array([second[j] - first[i] for i, j in design.pairs]))
        else:
            change = stats.welch(first, second)
    why = "" if change else f"needs {PAIRS} blocks on each side"
    return Difference(measure=measure, a=values[0], b=values[1], n=sizes, change=change, why=why)
