"""Gate and Evidence -> what came out: looked up for each group of rows that may be pooled.

A gate holds where it holds at every level of load and for every model; in a search, at the level it found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cbatch.gates import Gate
from cbatch.report.evidence import Evidence, Floats, Mask
from cbatch.report.figures import Figures, Level, is_speed
from cbatch.report.intervals import floor_of, quantile
from cbatch.report.windows import Group, groups

OF_THE_RUN = ("errors", "rate_limited", "cost_usd")
NEEDS_STREAM = {"ttft_s", "ttfa_s", "tail_s", "net_s", "client_tokens_per_s", "max_gap_s", "n_chunks", "n_reads"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a gate came to. `value` is in the unit of its metric, for a gate per request its attainment (0 to 1).

    `passed` is None where nothing was measured that could be judged: that is no pass.
    """

    gate: str
    passed: bool | None
    value: float | None
    n: int
    at: str  # the worst group, where there are several: "64 in flight", a model
    note: str  # "p99 of n<662: not certified", "not measured"
    per_request: bool
    goodput_per_s: float | None  # requests that met it, a second; of gates per request


def evaluate(gates: Sequence[Gate], evidence: Evidence, figures: Figures) -> list[Outcome]:
    """The outcome of each gate."""
    if not gates:
        return []
    ok = evidence.is_("status", "ok")
    parts = groups(evidence, ok)
    best = ((evidence.load or {}).get("search") or {}).get("best")
    if best is not None:
        parts = [part for part in parts if part.level == best] or parts
    return [_evaluate(gate, evidence, figures, parts) for gate in gates]


def unjudged(outcome: Outcome, gate: Gate) -> Outcome:
    """The outcome in a run whose client was the bottleneck: counts and cost stay, times and rates are the client's."""
    if gate.metric in OF_THE_RUN:
        return outcome
    return replace(outcome, passed=None, value=None, goodput_per_s=None, note="the client was the bottleneck")


def attained(gate: Gate, values: Floats) -> Mask:
    """Which of these requests meet a gate per request; one that was not measured does not."""
    with np.errstate(invalid="ignore"):
        match gate.op:
            case "<":
                return values < gate.threshold
            case "<=":
                return values <= gate.threshold
            case ">":
                return values > gate.threshold
            case _:
                return values >= gate.threshold


def _evaluate(gate: Gate, evidence: Evidence, figures: Figures, parts: list[Group]) -> Outcome:
    if gate.metric in OF_THE_RUN:
        return _of_the_run(gate, figures)
    judged: list[tuple[float, Group, int, float | None]] = []
    for part in parts:
        figure, count, goodput = _of_a_group(gate, evidence, figures, part)
        if figure is not None:
            judged.append((figure, part, count, goodput))
    if not judged:
        why = "not measured" + (": needs params.stream" if gate.metric in NEEDS_STREAM else "")
        return _outcome(gate, None, None, 0, "", why)
    worst = min if gate.per_request or gate.op in (">", ">=") else max
    value, part, n, goodput = worst(judged, key=lambda entry: entry[0])
    passed = value >= (gate.share or 0.0) if gate.per_request else gate.holds(value)
    at = ""
    if len(parts) > 1:
        level = "" if part.level is None else f"{part.level:g} {part.unit}"
        models = {one.model for one in parts}
        at = ", ".join(filter(None, (part.model if len(models) > 1 else "", level)))
    if len(judged) < len(parts):
        return _outcome(gate, None if passed else False, value, n, at, "not measured everywhere", goodput)
    return _outcome(gate, passed, value, n, at, _certainty(gate, n), goodput)


def _of_the_run(gate: Gate, figures: Figures) -> Outcome:
    counts = {"errors": (figures.failed, figures.rows), "rate_limited": (figures.rate_limited, figures.sent)}
    if gate.metric == "cost_usd":
        if figures.cost_usd is None or figures.unpriced:
            # An unknown price can only add: too much is known all the same.
            spent = figures.cost_usd or 0.0
            missed = False if not gate.holds(spent) and gate.op in ("<", "<=") else None
            return _outcome(gate, missed, figures.cost_usd, figures.rows, "", "of some answers the price is unknown")
        return _outcome(gate, gate.holds(figures.cost_usd), figures.cost_usd, figures.rows, "", "")
    count, of = counts[gate.metric]
    if not of:
        return _outcome(gate, None, None, 0, "", "not measured")
    value = count / of if gate.is_share else float(count)
    return _outcome(gate, gate.holds(value), value, of, "", "")


def _of_a_group(
    gate: Gate, evidence: Evidence, figures: Figures, part: Group
) -> tuple[float | None, int, float | None]:
    """The figure of one group, of how many requests it is, and the goodput of a gate per request."""
    level = _level_of(figures, part)
    if gate.metric == "completed_per_s":
        return level.system.completed_per_s, level.ok, None
    if gate.metric == "output_tokens_per_s":
        return level.system.output_tokens_per_s, level.ok, None
    values = evidence.numbers(gate.metric)[part.answered]
    values = values[~np.isnan(values)]
    if not len(values) and (len(part.answered) or not gate.per_request):
        return None, 0, None
    if gate.per_request:
        met = int(attained(gate, values).sum())
        asked = len(values) + len(part.rows) - len(part.answered)
        if not asked:
            return None, 0, None
        rate = level.system.completed_per_s
        return met / asked, asked, rate * met / len(values) if rate is not None and met else None
    values.sort()
    return _figure(gate, values), len(values), None


def _figure(gate: Gate, ordered: Floats) -> float:
    if gate.quantile is not None:
        return quantile(ordered, gate.quantile)
    match gate.statistic:
        case "mean":
            return float(ordered.mean())
        case "min":
            return float(ordered[0])
        case "max":
            return float(ordered[-1])
        case _:
            return float(ordered.sum())


def _certainty(gate: Gate, n: int) -> str:
    """What is to be said of a percentile of too few requests."""
    if gate.quantile is None:
        return ""
    tail = gate.quantile if is_speed(gate.metric) else 1 - gate.quantile
    if not 0 < tail <= 0.1:
        return ""
    least = floor_of(round(tail, 6))
    return f"n<{least:,}: not certified" if n < least else ""


def _level_of(figures: Figures, part: Group) -> Level:
    return next(
        level
        for level in figures.levels
        if (level.model, level.level, level.unit) == (part.model, part.level, part.unit)
    )


def _outcome(
    gate: Gate, passed: bool | None, value: float | None, n: int, at: str, note: str, goodput: float | None = None
) -> Outcome:
    return Outcome(
        gate=gate.text,
        passed=passed,
        value=value,
        n=n,
        at=at,
        note=note,
        per_request=gate.per_request,
        goodput_per_s=goodput,
    )


__all__ = ["Outcome", "attained", "evaluate", "unjudged"]
