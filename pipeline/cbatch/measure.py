"""outcome, Timeline -> the measured columns: formulas, units and their sources, nothing else.

The server's clock (`time_info`) is the headline, the client's the check. A stream is measured by
socket reads, never by chunks: chunks carry several tokens, and several chunks come in one read.

Every figure is None where it was not measured: an answer without `usage` has no tokens, an
answer without streaming has no time to first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cbatch.catalog import Price
from cbatch.schema import COLUMNS, Completion, Failure, Prompt, Record, Request, StreamMarks, Timeline

METRICS_VERSION = 1  # of what the columns mean: runs of different versions are not compared
JITTER_S = 0.0002  # of a stamp when the event loop is idle; uvloop's timers cannot see less than 1 ms
MIN_READS = 3  # that carried tokens: fewer make no window
MIN_WINDOW = 10.0  # times the jitter
TAINTED_S, TAINTED_SHARE = 0.001, 0.05  # a loop later than both, the second of ttft_s, makes a row doubtful


def ratio(tokens: int | None, seconds: float | None) -> float | None:
    """Tokens per second; None where either is unknown or no time passed."""
    return tokens / seconds if tokens is not None and seconds is not None and seconds > 0 else None


def cost_usd(completion: Completion, price: Price | None) -> float | None:
    """USD of one answer; None where the price or the usage is unknown."""
    usage = completion.usage
    if price is None or usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    return price.cost_usd(usage.prompt_tokens, usage.completion_tokens)


def client_speed(marks: StreamMarks, completion_tokens: int | None, lag_s: float | None) -> float | None:
    """Tokens per second after the first read; None where the window is too short to mean anything.

    The tokens of the first read took no time that anybody saw, so they do not count: taking off one
    token instead reads 3,966 for 2,000 where the first read bundles half of the answer.
    """
    window_s = marks.last - marks.first
    jitter_s = max(JITTER_S, lag_s or 0.0)
    if completion_tokens is None or marks.n_reads < MIN_READS or window_s < MIN_WINDOW * jitter_s:
        return None
    return completion_tokens * (1 - marks.first_share) / window_s


def _between(start: float | None, end: float | None) -> float | None:
    return end - start if start is not None and end is not None else None


def _without(total: float | None, *parts: float | None) -> float | None:
    """What is left of a time without these parts; None where one of them is unknown."""
    for part in parts:
        if total is None or part is None:
            return None
        total -= part
    return total


def _is_tainted(lag_s: float, measured_s: float | None) -> bool:
    return lag_s > max(TAINTED_S, TAINTED_SHARE * (measured_s or 0.0))


def record(
    *,
    key: bytes,
    prompt: Prompt,
    request: Request | None,
    outcome: Completion | Failure,
    timeline: Timeline,
    cost: float | None,
    paid: Sequence[Completion] = (),
    tool_calls: str | None,
    parsed: str | None,
    input_json: str | None,
    carried: list[Any],
) -> Record:
    """The row for `outcome`: the values of COLUMNS in order, then the carried ones.

    `cost` is of all answers that were `paid` for this prompt, cut and re-asked ones included. `tool_calls`,
    `parsed` and `input_json` are JSON text.
    """
    failure = outcome if isinstance(outcome, Failure) else None
    answer = failure.completion if failure else outcome
    assert answer is None or isinstance(answer, Completion)
    usage = answer.usage if answer else None
    clock = answer.time_info if answer else None
    marks = answer.stream if answer else None
    sent, first_sent, scheduled = timeline.sent, timeline.first_sent, timeline.scheduled
    done = marks.last if marks else timeline.done if answer else None
    if sent is None or (done is not None and done < sent):
        # A re-asked prompt may end without an answer: then its last one is of the attempt before.
        marks = done = None
    latency_s = _between(sent, done)
    ttft_s = _between(sent, marks.first) if marks else None
    lag_s = timeline.loop_lag_s
    uncached = usage.prompt_tokens - (usage.cached_tokens or 0) if usage and usage.prompt_tokens is not None else None
    completion_tokens = usage.completion_tokens if usage else None
    digest = request.digest if request else b""
    row = [
        prompt.id,
        prompt.index,
        prompt.sample,
        prompt.model,
        digest.hex() or None,
        "error" if failure else "ok",
        answer.text if answer else None,
        answer.reasoning if answer else None,
        tool_calls,
        answer.finish_reason if answer else None,
        parsed,
        answer.valid if answer else None,
        failure.kind if failure else None,
        failure.code if failure else None,
        failure.message if failure else None,
        failure.http_status if failure else (200 if answer else None),
        failure.retry_after_s if failure else None,
        usage.prompt_tokens if usage else None,
        usage.cached_tokens if usage else None,
        completion_tokens,
        usage.reasoning_tokens if usage else None,
        usage.total_tokens if usage else None,
        timeline.reserved_tokens or request.reserve_tokens if request else None,
        cost,
        clock.queue_s if clock else None,
        clock.prompt_s if clock else None,
        clock.completion_s if clock else None,
        clock.total_s if clock else None,
        _without(clock.total_s, clock.queue_s, clock.prompt_s, clock.completion_s) if clock else None,
        round(timeline.started_at.timestamp() * 1e6) if timeline.started_at else None,
        # Backoff is not waiting for the pacer: the first send ends the wait.
        _between(timeline.ready, first_sent),
        timeline.backoff_s if timeline.attempts else None,
        _between(first_sent, sent),
        latency_s,
        ttft_s,
        _between(sent, marks.first_answer) if marks else None,
        marks.end - marks.last if marks else None,
        _between(timeline.ready if scheduled is None else scheduled, done),
        _between(scheduled, first_sent),
        _without(ttft_s, clock.queue_s, clock.prompt_s) if clock else None,
        timeline.attempts,
        ratio(completion_tokens, clock.completion_s if clock else None),
        ratio(uncached, clock.prompt_s if clock else None),
        client_speed(marks, completion_tokens, lag_s) if marks else None,
        ratio(completion_tokens, latency_s),
        marks.n_chunks if marks else None,
        marks.n_reads if marks else None,
        marks.first_share * completion_tokens if marks and completion_tokens is not None else None,
        marks.max_gap_s if marks else None,
        lag_s * 1e3 if lag_s is not None else None,
        _is_tainted(lag_s, ttft_s or latency_s) if lag_s is not None else None,
        timeline.block,
        timeline.level,
        timeline.phase,
        answer.request_id if answer else None,
        answer.served_model if answer else None,
        answer.system_fingerprint if answer else None,
        input_json,
        *carried,
    ]
    assert len(row) == len(COLUMNS) + len(carried)
    return Record(
        key=key,
        sample=prompt.sample,
        digest=digest,
        ok=failure is None,
        attempts=timeline.attempts,
        row=row,
        paid_tokens=(
            sum(one.usage.prompt_tokens or 0 for one in paid),
            sum(one.usage.completion_tokens or 0 for one in paid),
        )
        if len(paid) > 1
        else None,
    )
