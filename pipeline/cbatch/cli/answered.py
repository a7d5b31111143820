"""What is told of one answer: its figures as a line and as an object, and its text where it is safe to print."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cbatch.cli.words import duration, money, plural, rate

if TYPE_CHECKING:
    from cbatch.library import Answer

SOURCES = {
    "server": "by the server's clock",
    "client": "by this client's clock",
    "e2e": "from request to end",
}

# What moves the cursor, rings the bell or renames the window, as a picture of itself; line ends and tabs stay.
_PICTURES = {i: 0x2400 + i for i in range(32)} | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_PICTURES |= {ord("\n"): ord("\n"), ord("\t"): ord("\t"), ord("\r"): None}  # type: ignore[dict-item]


def harmless(text: str) -> str:
    """What a model says, as it may be written to a terminal; several lines stay several."""
    return text.translate(_PICTURES)


def speed(answer: Answer) -> str:
    """Tokens per second and whose clock says so; empty where nothing does."""
    if answer.tokens_per_s is None:
        return ""
    return f"{rate(answer.tokens_per_s)} tokens/s {SOURCES.get(answer.tokens_per_s_source or '', '')}".rstrip()


def figures(answer: Answer) -> str:
    """One line: speed, times, tokens, cost; what was not measured is left out."""
    metrics, usage = answer.metrics, answer.usage
    parts = [speed(answer)]
    if metrics.ttft_s is not None:
        parts.append(f"first token {duration(metrics.ttft_s)}")
    parts.append(f"{duration(metrics.latency_s)} in all")
    if usage.completion_tokens is not None:
        parts.append(f"{usage.prompt_tokens or 0:,} + {usage.completion_tokens:,} tokens")
    if answer.cost_usd is not None:
        parts.append(money(answer.cost_usd))
    if metrics.wait_s and metrics.wait_s >= 0.5:
        parts.append(f"waited {duration(metrics.wait_s)} for the limits")
    if metrics.attempts and metrics.attempts > 1:
        parts.append(plural(metrics.attempts, "attempt"))
    return " · ".join(part for part in parts if part)


def as_object(answer: Answer) -> dict[str, Any]:
    """The answer for --json."""
    return {
        "text": answer.text,
        "reasoning": answer.reasoning,
        "tool_calls": answer.tool_calls,
        "finish_reason": answer.finish_reason,
        "model": answer.model,
        "served_model": answer.served_model,
        "usage": asdict(answer.usage),
        "time_info": asdict(answer.time_info),
        "metrics": asdict(answer.metrics),
        "tokens_per_s": answer.tokens_per_s,
        "tokens_per_s_source": answer.tokens_per_s_source,
        "server_tokens_per_s": answer.server_tokens_per_s,
        "client_tokens_per_s": answer.client_tokens_per_s,
        "cost_usd": answer.cost_usd,
        "request_id": answer.request_id,
        "system_fingerprint": answer.system_fingerprint,
    }
