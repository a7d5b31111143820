"""What a user demands of a run, as text -> Gate: `ttft_s p95 < 500ms`, `errors < 1%`, `ttft_s < 500ms for 99%`.

    METRIC [STATISTIC] < | <= | > | >= NUMBER[UNIT] [for SHARE%]

METRIC is a result column that is a number, or one figure of the whole run (RUN_METRICS). With a STATISTIC
(p50, p99.9, median, mean, min, max, sum) the gate is about that figure of all answers. Without one it is about
each request: so many of them must meet it as `for 99%` says, all of them where nothing is said; a
request that failed meets nothing.

Parsing only: what a run did is looked up in `report.gates`, and by the search for the highest load.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Literal

from cbatch.schema import COLUMNS

# One figure of the whole run, and how it is read: a share or count of requests, a sum, a rate.
RUN_METRICS = {
    "errors": "requests that failed: a share with %, else a count",
    "rate_limited": "answers with status 429: a share with %, else a count",
    "cost_usd": "USD of all answers",
    "completed_per_s": "answers a second",
    "output_tokens_per_s": "completion tokens a second, of all requests together",
}
_SHARES = ("errors", "rate_limited")
COLUMN_METRICS = tuple(
    name
    for name, kind, _ in COLUMNS
    if kind in ("int64", "float64") and name not in ("index", "http_status", "load_level", *RUN_METRICS)
)
_STATISTICS = ("median", "mean", "min", "max", "sum")

_UNITS_OF_TIME = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_FACTORS = {"K": 1e3, "k": 1e3, "M": 1e6}
_EXAMPLES = "'ttft_s p95 < 0.5', 'ttft_s < 500ms for 99%', 'server_tokens_per_s p50 > 1800' or 'errors < 1%'"

_SHAPE = re.compile(
    r"\s*(?P<metric>[A-Za-z_]\w*)(?:\s+(?P<stat>[A-Za-z][\w.]*))?\s*(?P<op><=|>=|<|>)\s*"
    r"(?P<number>[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<unit>[A-Za-zµ%/]*)"
    r"(?:\s+for\s+(?P<share>\d+(?:\.\d+)?)\s*%)?\s*"
)

Op = Literal["<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One demand. `threshold` is in the unit of the metric: seconds, tokens/s, USD, or a share from 0 to 1."""

    text: str
    metric: str
    statistic: str | None  # "p95", "mean", …; None: of a run metric, or per request
    quantile: float | None  # 0.95 of "p95"; None where the statistic is none
    op: Op
    threshold: float
    is_share: bool  # whether the threshold is a share of the requests (errors < 1%)
    share: float | None  # how many requests must meet it, 0 to 1; None where it is not about each request

    @property
    def per_request(self) -> bool:
        """Whether each request meets it or not; its share is the attainment."""
        return self.share is not None

    def holds(self, value: float) -> bool:
        """Whether a figure meets the demand; NaN never does."""
        match self.op:
            case "<":
                return value < self.threshold
            case "<=":
                return value <= self.threshold
            case ">":
                return value > self.threshold
            case _:
                return value >= self.threshold


def parse(text: str) -> Gate:
    """The gate that `text` describes. Raises ValueError with what was read and what is accepted."""
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a demand like {_EXAMPLES}")
    metric, stat, unit = found["metric"], found["stat"], found["unit"]
    _check_metric(text, metric)
    statistic, quantile = _statistic(text, metric, stat)
    threshold, is_share = _threshold(text, metric, float(found["number"].replace("_", "")), unit)
    share = None
    if statistic is None and metric not in RUN_METRICS:
        share = float(found["share"] or 100) / 100
        if share > 1:
            raise ValueError(f"{text!r}: {found['share']} % of the requests; accepted: up to 100 %")
    elif found["share"]:
        raise ValueError(
            f"{text!r}: 'for {found['share']}%' counts requests; accepted: without a statistic, "
            "as in 'ttft_s < 500ms for 99%'"
        )
    return Gate(
        text=" ".join(text.split()),
        metric=metric,
        statistic=statistic,
        quantile=quantile,
        op=found["op"],  # type: ignore[arg-type]
        threshold=threshold,
        is_share=is_share,
        share=share,
    )


def _check_metric(text: str, metric: str) -> None:
    if metric in RUN_METRICS or metric in COLUMN_METRICS:
        return
    known = [*RUN_METRICS, *COLUMN_METRICS]
    near = difflib.get_close_matches(metric.lower(), known, n=1) or [n for n in known if n.startswith(metric.lower())]
    guess = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(RUN_METRICS)}, or a result column of numbers"
    raise ValueError(f"{text!r}: {metric} is no figure of a run; {guess}")


def _statistic(text: str, metric: str, stat: str | None) -> tuple[str | None, float | None]:
    if stat is None or (metric == "cost_usd" and stat == "sum"):
        return None, None
    if metric in RUN_METRICS:
        raise ValueError(f"{text!r}: {metric} is one figure of the run; accepted: without {stat!r}")
    if stat == "median":
        return "p50", 0.5
    if stat in _STATISTICS:
        return stat, None
    percent = re.fullmatch(r"p(\d{1,2}(?:\.\d+)?)", stat)
    if percent is None or float(percent[1]) <= 0:
        raise ValueError(f"{text!r}: {stat!r} is no statistic; accepted: p50, p95, p99.9, {', '.join(_STATISTICS)}")
    return stat, float(percent[1]) / 100


def _threshold(text: str, metric: str, number: float, unit: str) -> tuple[float, bool]:
    if not math.isfinite(number):
        raise ValueError(f"{text!r}: {number:g} is not a finite number")
    if metric in _SHARES:
        if unit not in ("", "%"):
            raise ValueError(f"{text!r}: unit {unit!r}; accepted: % for a share of the requests, nothing for a count")
        return (number / 100, True) if unit else (number, False)
    if not unit:
        return number, False
    if metric.endswith("_per_s"):
        bare = unit.removesuffix("/s").removesuffix("tok").removesuffix("tokens") if unit.endswith("/s") else unit
        if bare in ("", *_FACTORS):
            return number * _FACTORS.get(bare, 1.0), False
        raise ValueError(f"{text!r}: unit {unit!r}; accepted for {metric}: K or M, or nothing")
    if metric.endswith(("_s", "_ms")):
        if unit in _UNITS_OF_TIME:
            return number * _UNITS_OF_TIME[unit] * (1e3 if metric.endswith("_ms") else 1.0), False
        raise ValueError(f"{text!r}: unit {unit!r}; accepted for {metric}: {', '.join(_UNITS_OF_TIME)}")
    if unit in _FACTORS:
        return number * _FACTORS[unit], False
    raise ValueError(f"{text!r}: unit {unit!r}; accepted for {metric}: K or M, or nothing")


__all__ = ["COLUMN_METRICS", "RUN_METRICS", "Gate", "Op", "parse"]
