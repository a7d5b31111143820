"""The distribution of one measure over the answers of a group, with its certainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbatch.report.evidence import Evidence, Floats
from cbatch.report.intervals import certified, median_interval, quantile, t_interval
from cbatch.report.windows import Group

# What is measured per answer: column -> words. Speeds are read at p10 (the bad tail), times at p90 and p99.
MEASURES = {
    "server_tokens_per_s": "server speed, tokens/s",
    "client_tokens_per_s": "client speed, tokens/s",
    "e2e_tokens_per_s": "end to end, tokens/s",
    "ttft_s": "time to first token, s",
    "ttfa_s": "time to first answer, s",
    "latency_s": "latency, s",
    "response_s": "from schedule, s",
    "server_queue_s": "  server queue, s",
    "server_prompt_s": "  server prompt, s",
    "server_completion_s": "  server completion, s",
    "server_other_s": "  server other, s",
    "net_s": "  network, s",
    "tail_s": "  after the last token, s",
    "server_prefill_tokens_per_s": "prefill speed, tokens/s",
    "sched_lag_s": "behind schedule, s",
    "wait_s": "waited to be sent, s",
    "prompt_tokens": "prompt tokens",
    "completion_tokens": "completion tokens",
}
TAILS = {"p90": 0.1, "p95": 0.05, "p99": 0.01, "p99.9": 0.001}
LOW_TAILS = {"p10": 0.1, "p5": 0.05, "p1": 0.01, "p0.1": 0.001}
MIN_BLOCKS = 3  # from here the block is the unit of the interval: requests of one block share its conditions


def is_speed(name: str) -> bool:
    """Whether less of it is worse."""
    return name.endswith("_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One measure over the `n` answers that have it; seconds, tokens/s or counts.

    `low` and `high` hold the median with 95 % confidence, by `unit`: requests (order statistics) or blocks
    (Student's t on their medians). `certified` is the MLPerf bound at 99 % confidence of each bad-tail
    percentile: at most for times, at least for speeds; null below its floor of requests.
    """

    n: int
    undefined: int  # answers that do not have it
    mean: float
    min: float
    max: float
    p1: float
    p5: float
    p10: float
    p50: float
    p90: float
    p95: float
    p99: float
    low: float | None
    high: float | None
    half_width: float | None  # of that interval, as a share of the median
    unit: str
    certified: dict[str, float | None]


def spreads(evidence: Evidence, parts: list[Group]) -> list[dict[str, Spread]]:
    """The spreads of each group. A column is read once for all groups: it is what costs time in a large run."""
    blocks = evidence.numbers("load_block") if any(len(part.blocks) >= MIN_BLOCKS for part in parts) else None
    out: list[dict[str, Spread]] = [{} for _ in parts]
    for name in MEASURES:
        column = evidence.numbers(name)
        for part, spreads in zip(parts, out, strict=True):
            values = column[part.answered]
            known = ~np.isnan(values)
            if known.any():
                by_block = []
                if blocks is not None and len(part.blocks) >= MIN_BLOCKS:
                    block = blocks[part.answered][known]
                    by_block = [found for b in part.blocks if len(found := values[known][block == b.number])]
                values = values[known]
                values.sort()
                spreads[name] = _spread(name, values, len(known) - len(values), by_block)
    return out


def _spread(name: str, ordered: Floats, undefined: int, by_block: list[Floats]) -> Spread:
    unit = "requests"
    interval = median_interval(ordered)
    if len(by_block) >= MIN_BLOCKS:
        unit, interval = "blocks", t_interval([float(np.median(block)) for block in by_block])
    p50 = quantile(ordered, 0.5)
    low, high = interval or (None, None)
    return Spread(
        n=len(ordered),
        undefined=undefined,
        mean=float(ordered.mean()),
        min=float(ordered[0]),
        max=float(ordered[-1]),
        p1=quantile(ordered, 0.01),
        p5=quantile(ordered, 0.05),
        p10=quantile(ordered, 0.10),
        p50=p50,
        p90=quantile(ordered, 0.90),
        p95=quantile(ordered, 0.95),
        p99=quantile(ordered, 0.99),
        low=low,
        high=high,
        half_width=(high - low) / 2 / abs(p50) if low is not None and high is not None and p50 else None,
        unit=unit,
        certified={
            level: certified(ordered, tail, upper=not is_speed(name))
            for level, tail in (LOW_TAILS if is_speed(name) else TAILS).items()
        },
    )


__all__ = ["MEASURES", "Spread", "is_speed", "spreads"]
