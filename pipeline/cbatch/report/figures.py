"""Evidence -> Figures: counts, percentiles with their certainty, rates, tokens, cost, errors by kind.

What is pooled is what is alike: one model at one level of load. A batch is one level per model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbatch.parquet import tally, total
from cbatch.report.evidence import Block, Evidence, Floats, pending_rows
from cbatch.report.intervals import certified, median_interval, quantile, t_interval, trend
from cbatch.report.windows import Group, cells, flight, groups, share_within, slices

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
# The columns that the figures are made of.
READ = (
    *MEASURES,
    *("status", "model", "finish_reason", "http_status", "attempts", "block"),
    *("cached_tokens", "reasoning_tokens", "cost_usd", "started_at", "attempts_s", "tainted"),
)
TAILS = {"p90": 0.1, "p95": 0.05, "p99": 0.01, "p99.9": 0.001}
LOW_TAILS = {"p10": 0.1, "p5": 0.05, "p1": 0.01, "p0.1": 0.001}
MIN_BLOCKS = 3  # from here the block is the unit of the interval: requests of one block share its conditions
SLICES = 12  # of time, for drift and sparklines
MIN_PER_SLICE = 5  # rows, or the median of a slice is noise


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


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """All requests together: in the steady window, and over the whole run with its start and end."""

    steady_s: float
    whole_s: float
    output_tokens_per_s: float | None  # steady
    output_tokens_per_s_whole: float | None
    completed_per_s: float | None  # steady
    completed_per_s_whole: float | None
    in_flight: float | None  # true, the integral over time: steady
    in_flight_whole: float | None
    steady_from_s: float | None = None  # since the first request; None where it is the measured time of blocks
    steady_until_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Whether a measure moved over the run: p of Mann-Kendall, and the change from first to last as a share."""

    measure: str
    p: float  # corrected for the number of measures looked at
    change: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What says whether the client or the conditions spoilt a level's figures; None: not known."""

    loop_lag_p99_s: float | None
    overhead_p50_s: float | None  # of the calibration
    overhead_p99_s: float | None
    cpu_share: float | None  # of one core
    delivered: float | None  # the load that was there, as a share of what was asked
    starved_share: float | None  # of the measured time: less was in flight than asked although prompts were due
    speed_ratio: float | None  # client's speed / server's, the median
    tainted_share: float | None
    cut_share: float | None  # answers that ended by length, or by a filter
    sched_lag_p99_s: float | None
    drifts: list[Drift]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One model at one level of load. `spreads` is None where the client was the bottleneck; `reason` says so."""

    model: str
    level: float | None  # None: a batch
    unit: str | None
    blocks: int
    requests: int
    ok: int
    failed: int
    system: System
    health: Health
    spreads: dict[str, Spread] | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorClass:
    """One kind of failure: how many, and one message."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything the reports say, of measured rows. Money in USD, None where no price is known.

    `spreads` pools all models of one level of load; it is {} for a ladder, whose levels are not alike, and
    None where the client was the bottleneck.
    """

    rows: int
    ok: int
    failed: int
    warmup_rows: int
    incomplete_rows: int
    incomplete_blocks: int
    models: dict[str, int]
    finish_reasons: dict[str, int]
    retried: int
    sent: int  # requests, retries included
    rate_limited: int  # answers with 429
    repeated_cached: int  # rows served from the cache because the same request was sent before
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_usd: float | None
    unpriced: int
    usd_per_1k_requests: float | None
    system: System
    spreads: dict[str, Spread] | None
    by_model: dict[str, dict[str, Spread]]  # where there are several: a pooled percentile means little
    levels: list[Level]
    errors: list[ErrorClass]
    sparklines: dict[str, list[float | None]]  # 12 equal parts of the run: median speed and ttft, mean in flight
    reason: str | None = None

    @property
    def is_ladder(self) -> bool:
        """Whether one model was asked at several levels of load."""
        return len({level.level for level in self.levels}) > 1


def figures(evidence: Evidence) -> Figures:
    """The figures of a run."""
    rows = evidence.rows
    ok = evidence.is_("status", "ok")
    sent, ended = evidence.sent_at(), evidence.ended_at()
    found = flight(sent, ended)
    parts = groups(evidence, ok)
    spreads = _spreads(evidence, parts)
    systems = [_system(evidence, part, sent, ended) for part in parts]
    levels = [
        Level(
            model=part.model,
            level=part.level,
            unit=part.unit,
            blocks=len(part.blocks),
            requests=len(part.rows),
            ok=len(part.answered),
            failed=len(part.rows) - len(part.answered),
            system=system,
            health=_health(evidence, part, sent, spread, len(parts), system),
            spreads=spread,
        )
        for part, spread, system in zip(parts, spreads, systems, strict=True)
    ]
    is_ladder = len({level.level for level in levels}) > 1
    everything = Group(model="", level=None, unit=None, blocks=(), rows=np.arange(len(ok)), answered=np.flatnonzero(ok))
    pooled = spreads if len(parts) == 1 else [{}] if is_ladder else _spreads(evidence, [everything])
    models, attempts = tally(rows.column("model")), evidence.numbers("attempts")
    costs = evidence.values("cost_usd", ok)
    answered = int(ok.sum())
    return Figures(
        rows=len(ok),
        ok=answered,
        failed=len(ok) - answered,
        warmup_rows=evidence.warmup_rows,
        incomplete_rows=evidence.incomplete_rows,
        incomplete_blocks=len(evidence.blocks) - len(evidence.measured),
        models=models,
        finish_reasons=evidence.tally("finish_reason", ok),
        retried=int((attempts > 1).sum()),
        sent=int(np.nansum(attempts)),
        rate_limited=_rate_limited(evidence),
        repeated_cached=evidence.repeated_cached,
        prompt_tokens=int(total(rows.column("prompt_tokens"))),
        cached_tokens=int(total(rows.column("cached_tokens"))),
        completion_tokens=int(total(rows.column("completion_tokens"))),
        reasoning_tokens=int(total(rows.column("reasoning_tokens"))),
        cost_usd=total(rows.column("cost_usd")) if len(costs) or not answered else None,
        unpriced=answered - len(costs),
        usd_per_1k_requests=1_000 * float(costs.mean()) if len(costs) else None,
        system=levels[0].system if len(levels) == 1 else _system(evidence, everything, sent, ended),
        spreads=pooled[0] if pooled else {},
        by_model={level.model: level.spreads or {} for level in levels} if len(models) > 1 and not is_ladder else {},
        levels=levels,
        errors=[ErrorClass(kind=k, count=count, example=text) for k, (count, text) in evidence.failures.items()],
        sparklines=cells(evidence, ok, found, SLICES),
    )


def _rate_limited(evidence: Evidence) -> int:
    """Answers with status 429, retried ones included where somebody counted them."""
    rows = int(evidence.is_("http_status", 429).sum())
    if evidence.load is not None:
        return max(rows, sum(block.rate_limited for block in evidence.measured))
    return max(rows, sum(session.get("rate_limited") or 0 for session in evidence.sessions))


def _spreads(evidence: Evidence, parts: list[Group]) -> list[dict[str, Spread]]:
    """The spreads of each group. A column is read once for all groups: it is what costs time in a large run."""
    blocks = evidence.numbers("block") if any(len(part.blocks) >= MIN_BLOCKS for part in parts) else None
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
                spreads[name] = _spread(name, np.sort(values[known]), int((~known).sum()), by_block)
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


def _system(evidence: Evidence, part: Group, sent: Floats, ended: Floats) -> System:
    """The rates of a group; of the whole run where the group has no blocks."""
    sent, ended = sent[part.answered], ended[part.answered]
    tokens = np.nan_to_num(evidence.numbers("completion_tokens")[part.answered])
    found = flight(sent, ended)
    span = found.span or (0.0, 0.0)
    blocks = part.blocks or (evidence.measured if evidence.load is not None else ())
    if blocks:
        return _system_of_blocks(part, blocks, sent, ended, tokens)
    window = found.steady(_asked(evidence)) or span
    counted = share_within(sent, ended, window)
    counted = np.nan_to_num(counted)
    steady_s, whole_s = window[1] - window[0], span[1] - span[0]
    return System(
        steady_s=steady_s,
        whole_s=whole_s,
        output_tokens_per_s=_per(float((tokens * counted).sum()), steady_s),
        output_tokens_per_s_whole=_per(float(tokens.sum()), whole_s),
        completed_per_s=_per(float(counted.sum()), steady_s),
        completed_per_s_whole=_per(len(sent), whole_s),
        in_flight=found.mean(*window),
        in_flight_whole=found.mean(*span),
        steady_from_s=window[0] - span[0] if steady_s else None,
        steady_until_s=window[1] - span[0] if steady_s else None,
    )


def _system_of_blocks(part: Group, blocks: tuple[Block, ...], sent: Floats, ended: Floats, tokens: Floats) -> System:
    """The rates in the measured windows of blocks; the whole includes their warm-ups and what lies between them."""
    steady_s = sum(block.measured_s for block in blocks)
    begin = min(block.started_at.timestamp() for block in blocks)
    end = max(block.measured_from + block.measured_s for block in blocks)
    # With a warm-up as many requests are on the wire when the window opens as when it closes, so those sent
    # in it are as many as those that ended in it. Without one it opens with nothing on the wire.
    counted = np.ones(len(sent), dtype=bool)
    for block in blocks:
        if not block.warmup_s:
            window_end = block.measured_from + block.measured_s
            counted &= ~((sent >= block.measured_from) & (sent < window_end) & (ended > window_end + 1e-3))
    in_flight = [(block.in_flight, block.measured_s) for block in blocks if block.in_flight is not None]
    weight = sum(seconds for _, seconds in in_flight)
    return System(
        steady_s=steady_s,
        whole_s=end - begin,
        output_tokens_per_s=_per(float(tokens[counted].sum()), steady_s),
        output_tokens_per_s_whole=_per(float(tokens.sum()), end - begin),
        completed_per_s=_per(int(counted.sum()), steady_s),
        completed_per_s_whole=_per(len(sent), end - begin),
        in_flight=sum(count * seconds for count, seconds in in_flight) / weight if weight else None,
        in_flight_whole=flight(sent, ended).mean(begin, end),
    )


def _per(count: float, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _asked(evidence: Evidence) -> float | None:
    """The concurrency that the job asks for; None where it is left to the program."""
    asked = ((evidence.info.get("job") or {}).get("limits") or {}).get("concurrency")
    return float(asked) if isinstance(asked, int | float) else None


def _health(
    evidence: Evidence, part: Group, sent: Floats, spreads: dict[str, Spread], tests: int, window: System
) -> Health:
    blocks = part.blocks
    lags = [b.loop_lag.p99 for b in blocks if b.loop_lag is not None]
    overheads = [b.overhead for b in blocks if b.overhead is not None]
    cpu = [b.cpu_s / b.measured_s for b in blocks if b.cpu_s is not None and b.measured_s > 0]
    if not blocks:
        lags = [s["loop_lag_s"]["p99"] for s in evidence.sessions if (s.get("loop_lag_s") or {}).get("p99") is not None]
        seconds = sum(session.get("elapsed_s") or 0.0 for session in evidence.sessions)
        cpu = [sum(session.get("cpu_s") or 0.0 for session in evidence.sessions) / seconds] if seconds else []
    measured_s = sum(block.measured_s for block in blocks)
    client, server = spreads.get("client_tokens_per_s"), spreads.get("server_tokens_per_s")
    lag = spreads.get("sched_lag_s")
    tainted = evidence.numbers("tainted")[part.answered]
    tainted = tainted[~np.isnan(tainted)]
    cut = evidence.is_("finish_reason", "length", "content_filter")[part.answered]
    return Health(
        loop_lag_p99_s=max(lags, default=None),
        overhead_p50_s=max((found.p50 for found in overheads), default=None),
        overhead_p99_s=max((found.p99 for found in overheads), default=None),
        cpu_share=max(cpu, default=None),
        delivered=_delivered(part, window),
        starved_share=sum(block.starved_s for block in blocks) / measured_s if measured_s else None,
        speed_ratio=_speed_ratio(evidence, part) if client and server else None,
        tainted_share=float(tainted.mean()) if len(tainted) else None,
        cut_share=float(cut.mean()) if len(cut) else None,
        sched_lag_p99_s=lag.p99 if lag else None,
        drifts=_drifts(evidence, part, sent, spreads, tests),
    )


def _delivered(part: Group, system: System) -> float | None:
    """The load that was there as a share of the one asked for; None for a batch, which asks for none."""
    if not part.level:
        return None
    if part.unit == "in flight":
        return system.in_flight / part.level if system.in_flight is not None else None
    seconds = sum(block.measured_s for block in part.blocks)
    # Arrivals are random: what chance alone takes away (three standard deviations) is not missing.
    due = part.level * seconds
    return min(1.0, (len(part.rows) + 3 * due**0.5) / due) if due else None


def _speed_ratio(evidence: Evidence, part: Group) -> float | None:
    """Client's speed through server's, of the answers that have both: their median."""
    ratio = (evidence.numbers("client_tokens_per_s") / evidence.numbers("server_tokens_per_s"))[part.answered]
    ratio = ratio[~np.isnan(ratio)]
    return float(np.median(ratio)) if len(ratio) else None


def _drifts(evidence: Evidence, part: Group, sent: Floats, spreads: dict[str, Spread], tests: int) -> list[Drift]:
    speed = next((n for n in ("server_tokens_per_s", "client_tokens_per_s", "e2e_tokens_per_s") if n in spreads), None)
    measures = [name for name in (speed, "ttft_s") if name in spreads and name is not None]
    out = []
    for name in measures:
        medians = slices(sent[part.answered], evidence.numbers(name)[part.answered], SLICES, MIN_PER_SLICE)
        if medians:
            p, change = trend(medians)
            out.append(Drift(measure=name, p=min(1.0, p * len(measures) * tests), change=change))
    return out


__all__ = [
    "MEASURES",
    "READ",
    "Drift",
    "ErrorClass",
    "Figures",
    "Health",
    "Level",
    "Spread",
    "System",
    "figures",
    "is_speed",
    "pending_rows",
]
