"""Parts of a run -> Figures: counts, percentiles, tokens, cost, errors by kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cbatch.errors import JournalError
from cbatch.journal import PLANNED, Journal
from cbatch.parquet import failures, quantiles, table, tally, total, where
from cbatch.rundir import RunDir

LEVELS = (0.10, 0.50, 0.90, 0.99)

# What is measured per answer: column -> words. Speeds are read at p10 (the bad tail), times at p90 and p99.
MEASURES = {
    "server_tokens_per_s": "server speed, tokens/s",
    "e2e_tokens_per_s": "end to end, tokens/s",
    "latency_s": "latency, s",
    "server_queue_s": "  server queue, s",
    "server_prompt_s": "  server prompt, s",
    "server_completion_s": "  server completion, s",
    "wait_s": "waited to be sent, s",
    "prompt_tokens": "prompt tokens",
    "completion_tokens": "completion tokens",
}
_COUNTED = ("status", "model", "finish_reason", "error_kind", "error_message", "attempts", "cost_usd")
_SUMMED = ("cached_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The percentiles of one measure over the `n` answers that have it; seconds or counts."""

    n: int
    p10: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorClass:
    """One kind of failure: how many, and one message."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything the text and JSON reports say. Money in USD, None where no price is known."""

    rows: int
    ok: int
    failed: int
    models: dict[str, int]
    finish_reasons: dict[str, int]
    retried: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_usd: float | None
    unpriced: int
    spreads: dict[str, Spread]
    by_model: dict[str, dict[str, Spread]]  # where there are several: a pooled percentile means little
    errors: list[ErrorClass]


def figures(folder: RunDir) -> Figures:
    """The figures of a run, those of rows that are still in the journal included. Raises JournalError."""
    names = [*_COUNTED, *_SUMMED, *MEASURES]
    try:
        rows = table(folder.parts, pending_rows(folder), names)
    except OSError as exc:
        raise JournalError(f"{folder.results}: {exc}", hint="`cbatch verify` says which part is damaged") from None
    ok, errors = where(rows, "status", "ok"), where(rows, "status", "error")
    models = tally(rows.column("model"))
    priced = ok.num_rows - ok.column("cost_usd").null_count
    return Figures(
        rows=rows.num_rows,
        ok=ok.num_rows,
        failed=errors.num_rows,
        models=models,
        finish_reasons=tally(ok.column("finish_reason")),
        retried=sum(count for attempts, count in tally(rows.column("attempts")).items() if int(attempts) > 1),
        prompt_tokens=int(total(rows.column("prompt_tokens"))),
        cached_tokens=int(total(rows.column("cached_tokens"))),
        completion_tokens=int(total(rows.column("completion_tokens"))),
        reasoning_tokens=int(total(rows.column("reasoning_tokens"))),
        cost_usd=total(rows.column("cost_usd")) if priced or not ok.num_rows else None,
        unpriced=ok.num_rows - priced,
        spreads=_spreads(ok),
        by_model={m: _spreads(where(ok, "model", m)) for m in tally(ok.column("model"))} if len(models) > 1 else {},
        errors=[ErrorClass(kind=k, count=count, example=text) for k, (count, text) in failures(errors).items()],
    )


def pending_rows(folder: RunDir) -> list[list[Any]]:
    """The rows that are safe in the journal and not in a part yet."""
    if not folder.journal.exists():
        return []
    journal = Journal(folder.journal)
    try:
        # A part that was planned when the run was killed has a file only if it came as far as the rename.
        planned = (part for part in journal.parts() if part.state == PLANNED)
        ranges = [(p.first_seq, p.last_seq) for p in planned if not (folder.results / p.name).exists()]
        return [row for first, last in (*ranges, journal.unplaced()) for _, row in journal.bodies(first, last)]
    finally:
        journal.close()


def _spreads(rows: Any) -> dict[str, Spread]:
    return {name: spread for name in MEASURES if (spread := _spread(rows.column(name))) is not None}


def _spread(column: Any) -> Spread | None:
    found = quantiles(column, LEVELS)
    if found is None:
        return None
    p10, p50, p90, p99 = found
    return Spread(n=len(column) - column.null_count, p10=p10, p50=p50, p90=p90, p99=p99)
