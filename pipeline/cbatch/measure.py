"""outcome, Timeline -> the measured columns: formulas, units and their sources, nothing else.

Every figure is None where it was not measured: an answer without `usage` has no tokens, an
answer without streaming has no time to first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cbatch.catalog import Price
from cbatch.schema import COLUMNS, Completion, Failure, Prompt, Record, Request, Timeline


def ratio(tokens: int | None, seconds: float | None) -> float | None:
    """Tokens per second; None where either is unknown or no time passed."""
    return tokens / seconds if tokens is not None and seconds is not None and seconds > 0 else None


def cost_usd(completion: Completion, price: Price | None) -> float | None:
    """USD of one answer; None where the price or the usage is unknown."""
    usage = completion.usage
    if price is None or usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    return price.cost_usd(usage.prompt_tokens, usage.completion_tokens)


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
    sent, done = timeline.sent, timeline.done
    # A re-asked prompt may end without an answer: then `done` is of the attempt before.
    latency_s = done - sent if answer and sent is not None and done is not None and done >= sent else None
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
        round(timeline.started_at.timestamp() * 1e6) if timeline.started_at else None,
        # Backoff is not waiting for the pacer: the first send ends the wait.
        timeline.first_sent - timeline.ready if timeline.first_sent is not None else None,
        timeline.backoff_s if timeline.attempts else None,
        latency_s,
        None,  # ttft_s, ttfa_s and tail_s need a stream
        None,
        None,
        timeline.attempts,
        ratio(completion_tokens, clock.completion_s if clock else None),
        None,  # client_tokens_per_s needs a decode window, so a stream
        ratio(completion_tokens, latency_s),
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
