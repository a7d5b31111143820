"""Evidence -> Figures: counts, percentiles with their certainty, rates, tokens, cost, errors by kind.

What is pooled is what is alike: one model at one level of load. A batch is one level per model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbatch.parquet import total
from cbatch.report.clock import Clock, run_clock
from cbatch.report.conditions import SLICES, Drift, Health, health
from cbatch.report.evidence import Block, Evidence, Floats, pending_rows
from cbatch.report.spreads import MEASURES, Spread, is_speed, spreads
from cbatch.report.windows import Group, cells, flight, groups, share_within

# The columns that the figures are made of.
READ = (
    *MEASURES,
    *("status", "model", "finish_reason", "http_status", "attempts", "load_block"),
    *("cached_tokens", "reasoning_tokens", "cost_usd", "started_at", "attempts_s", "tainted"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """All requests together: in the steady window, and over the whole run with its start and end.

    The time of a batch is that of its sessions, without the pauses between them. Steady is the measured time in a
    load run; its whole has warm-ups, whose requests are in no figure, so there are no rates of it.
    """

    steady_s: float
    whole_s: float
    output_tokens_per_s: float | None  # steady
    output_tokens_per_s_whole: float | None
    completed_per_s: float | None  # steady
    completed_per_s_whole: float | None
    in_flight: float | None  # true, the integral over time: steady
    in_flight_whole: float | None
    steady_from_s: float | None = None  # since its first answered send; None where it is the time of blocks
    steady_until_s: float | None = None


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
    warmup_usd: float  # what they cost, in no other sum of money; nor is the next
    incomplete_rows: int
    incomplete_usd: float
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
    parts = groups(evidence, ok)
    found_spreads = spreads(evidence, parts)
    clock = run_clock(evidence)
    systems = [_system(evidence, part, clock, sent, ended) for part in parts]
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
            health=health(evidence, part, sent, spread, len(parts), system.in_flight),
            spreads=spread,
        )
        for part, spread, system in zip(parts, found_spreads, systems, strict=True)
    ]
    is_ladder = len({level.level for level in levels}) > 1
    if len(parts) == 1:
        pooled, system = found_spreads[0], systems[0]
    else:
        everything = Group(
            model="", level=None, unit=None, blocks=(), rows=np.arange(len(ok)), answered=np.flatnonzero(ok)
        )
        pooled = {} if is_ladder else spreads(evidence, [everything])[0]
        system = _system(evidence, everything, clock, sent, ended)
    models, attempts = evidence.tally("model", np.ones(len(ok), dtype=bool)), evidence.numbers("attempts")
    costs = evidence.values("cost_usd", ok)
    answered = int(ok.sum())
    return Figures(
        rows=len(ok),
        ok=answered,
        failed=len(ok) - answered,
        warmup_rows=evidence.warmup_rows,
        warmup_usd=evidence.warmup_usd,
        incomplete_rows=evidence.incomplete_rows,
        incomplete_usd=evidence.incomplete_usd,
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
        system=system,
        spreads=pooled,
        by_model={level.model: level.spreads or {} for level in levels} if len(models) > 1 and not is_ladder else {},
        levels=levels,
        errors=[ErrorClass(kind=k, count=count, example=text) for k, (count, text) in evidence.failures.items()],
        sparklines=cells(evidence, ok, clock, SLICES),
    )


def _rate_limited(evidence: Evidence) -> int:
    """Answers with status 429, retried ones included where somebody counted them."""
    rows = int(evidence.is_("http_status", 429).sum())
    if evidence.load is not None:
        return max(rows, sum(block.rate_limited for block in evidence.measured))
    return max(rows, sum(session.get("rate_limited") or 0 for session in evidence.sessions))


def _system(evidence: Evidence, part: Group, clock: Clock, sent: Floats, ended: Floats) -> System:
    """The rates of a group; of the whole run where the group has no blocks. Pauses between sessions do not count."""
    sent, ended = sent[part.answered], ended[part.answered]
    tokens = evidence.numbers("completion_tokens")[part.answered]
    np.nan_to_num(tokens, copy=False)
    blocks = part.blocks or (evidence.measured if evidence.load is not None else ())
    if blocks:
        return _system_of_blocks(blocks, sent, ended, tokens)
    sent, ended = clock(sent), clock(ended)
    found = flight(sent, ended)
    span = found.span or (0.0, 0.0)
    window = found.steady(_asked(evidence)) or span
    counted = np.nan_to_num(share_within(sent, ended, window), copy=False)
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


def _system_of_blocks(blocks: tuple[Block, ...], sent: Floats, ended: Floats, tokens: Floats) -> System:
    """The rates in the measured windows of blocks. There is no whole: other blocks and sessions lie between them."""
    steady_s = sum(block.measured_s for block in blocks)
    completed, out = _completed(blocks, sent, ended, tokens)
    in_flight = [(block.in_flight, block.measured_s) for block in blocks if block.in_flight is not None]
    weight = sum(seconds for _, seconds in in_flight)
    return System(
        steady_s=steady_s,
        whole_s=sum(block.warmup_s + block.measured_s for block in blocks),
        output_tokens_per_s=_per(out, steady_s),
        output_tokens_per_s_whole=None,
        completed_per_s=_per(completed, steady_s),
        completed_per_s_whole=None,
        in_flight=sum(count * seconds for count, seconds in in_flight) / weight if weight else None,
        in_flight_whole=None,
    )


def _completed(blocks: tuple[Block, ...], sent: Floats, ended: Floats, tokens: Floats) -> tuple[float, float]:
    """How many answers, and tokens of answers, ended in the measured windows of blocks."""
    known = [(b.completed, b.completed_tokens) for b in blocks if None not in (b.completed, b.completed_tokens)]
    if len(known) == len(blocks):
        return float(sum(n or 0 for n, _ in known)), float(sum(n or 0 for _, n in known))
    # Nobody counted, and rows of the warm-up are not here. With one, as many requests are on the wire when the
    # window opens as when it closes: those sent in it stand for those that ended in it. Not without one.
    counted = np.zeros(len(sent), dtype=bool)
    for block in blocks:
        window_end = block.measured_from + block.measured_s
        last = sent if block.warmup_s else ended
        counted |= (sent >= block.measured_from - 1e-3) & (last <= window_end + 1e-3)
    return float(counted.sum()), float(tokens[counted].sum())


def _per(count: float, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _asked(evidence: Evidence) -> float | None:
    """The concurrency that the job asks for; None where it is left to the program."""
    asked = ((evidence.info.get("job") or {}).get("limits") or {}).get("concurrency")
    return float(asked) if isinstance(asked, int | float) else None


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
