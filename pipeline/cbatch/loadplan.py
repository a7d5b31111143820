"""Load -> stages, arrivals and verdicts: what a load run does next. Pure; `load.py` does it."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cbatch import gates
from cbatch.gates import Gate
from cbatch.job import Load

SEARCH_S = 10.0  # of a trial, where the job says nothing
SEARCH_STEP = 1.1  # the search ends when what passed and what failed are this near
UNDELIVERED = 0.05  # of a load: more, and it was another load
FIXED_CONCURRENCY = 8  # in flight, where a closed loop is not told

Unit = Literal["in flight", "requests/s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One block to be run: `level` requests in flight, or a second."""

    model: str
    level: float
    unit: Unit
    repeat: int = 0


Stages = Generator[Stage, str | None, None]


def stages(load: Load, models: Sequence[str]) -> Stages:
    """The blocks in their order; what is sent in after each is why it did not pass, None if it did.

    Repeats go round all levels, so that what changes in the meantime changes for all of them alike.
    """
    if load.mode == "search":
        for model in models:
            yield from _search(load, model)
        return
    unit: Unit = "requests/s" if load.mode in ("open", "replay") else "in flight"
    levels: Sequence[float] = load.rate or [load.speed] if unit == "requests/s" else load.concurrency or []
    for repeat in range(load.repeats):
        for level in levels:
            for model in models:
                yield Stage(model=model, level=float(level), unit=unit, repeat=repeat)


def _search(load: Load, model: str) -> Stages:
    """Double until a level fails, then halve the gap, as a ratio."""
    unit: Unit = "requests/s" if load.rate else "in flight"
    bounds = load.rate or load.concurrency or (1, 256)
    low, high = float(bounds[0]), float(bounds[1])
    whole = unit == "in flight"
    best = failed = None
    level = low
    while True:
        why = yield Stage(model=model, level=level, unit=unit)
        if why is None:
            best = level
        else:
            failed = level
        if best is None or (failed is None and level >= high):
            return
        level = min(best * 2, high) if failed is None else math.sqrt(best * failed)
        if whole:
            level = float(round(level))
        if failed is not None and (failed / best <= SEARCH_STEP or level in (best, failed)):
            return


def arrivals(load: Load, level: float, repeat: int) -> Iterator[float]:
    """When an open loop sends, in seconds from the start of the block; without an end.

    Seeded, so that a block that is run again, the other model and the other job of a comparison see the same.
    """
    if load.arrival == "constant":
        number = 0
        while True:
            yield number / level
            number += 1
    rng = random.Random(f"{load.seed}:{level}:{repeat}")
    at = 0.0
    while True:
        yield at
        at += rng.expovariate(level)


def end_of(times: Iterator[float], warmup_s: float, count: int) -> float:
    """When the window of `count` arrivals after the warm-up ends: when the next would be due, so each has its gap."""
    seen = 0
    for at in times:
        if at >= warmup_s:
            if seen == count:
                return at
            seen += 1
    raise ValueError("arrivals have no end")


def span(times: Sequence[float]) -> float:
    """The seconds that the arrivals of a replay take, the mean gap after the last one included."""
    last = times[-1] if times else 0.0
    return last * len(times) / (len(times) - 1) if last > 0 else 1.0


def gates_of(load: Load) -> list[Gate]:
    """What a level of a search must meet."""
    return [gates.parse(text) for text in load.slo]


def judge(
    demands: Sequence[Gate],
    values: Mapping[str, array[float]],
    *,
    requests: int,
    failed: int,
    rate_limited: int,
    per_s: tuple[float, float],
    held: float = 0.0,
    late: float = 0.0,
) -> str | None:
    """Why a block does not pass; None if it does.

    `values` are of its answers, by column; `per_s` is how many ended in a second, and their tokens.

    A 429 is a no, whatever is demanded: that load is not the account's. So is a load that was not delivered:
    `held` is the share of the requests' time in which they waited for the account's limits, `late` the share
    of an open loop's requests that were sent after its end.
    """
    if rate_limited:
        return f"{rate_limited} answered with 429"
    if not requests or failed == requests:
        return "nothing was answered"
    if held > UNDELIVERED:
        return f"{100 * held:.0f} % of the time requests waited for the account's limits"
    if late > UNDELIVERED:
        return f"{100 * late:.0f} % of the requests were not sent in time"
    run = {
        "errors": float(failed),
        "rate_limited": float(rate_limited),
        "cost_usd": math.fsum(values.get("cost_usd", ())),
        "completed_per_s": per_s[0],
        "output_tokens_per_s": per_s[1],
    }
    for gate in demands:
        if gate.metric in run:
            value = run[gate.metric] / requests if gate.is_share else run[gate.metric]
        else:
            found = values.get(gate.metric) or array("d")
            if not found:
                return f"{gate.metric} was not measured" + (
                    "; it needs params.stream: true" if "tt" in gate.metric else ""
                )
            if gate.per_request:
                met = sum(map(gate.holds, found)) / requests
                assert gate.share is not None
                if met < gate.share:
                    return f"{gate.text}: {100 * met:.1f} % of the requests"
                continue
            value = _statistic(gate, sorted(found))
        if not gate.holds(value):
            return f"{gate.text}: {value:.4g}"
    return None


def _statistic(gate: Gate, ordered: Sequence[float]) -> float:
    if gate.quantile is not None:
        place = gate.quantile * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])
    total = math.fsum(ordered)
    return {"mean": total / len(ordered), "min": ordered[0], "max": ordered[-1], "sum": total}[gate.statistic or "mean"]
