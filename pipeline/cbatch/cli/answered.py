"""What is told of one answer: its figures as a line and as an object, and its text where it is safe to print."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cbatch.cli.words import duration, money, plural, rate
from cbatch.errors import RunStopped

if TYPE_CHECKING:
    from cbatch.library import Answer
    from cbatch.schema import Usage

LONG_WAIT_S = 0.5  # for the account's limits: worth a word

SOURCES = {"server": "server", "client": "client", "e2e": "whole request"}  # whose clock a speed is by

# What moves the cursor, rings the bell or renames the window, as a picture of itself; line ends and tabs stay.
_PICTURES = {i: 0x2400 + i for i in range(32)} | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_PICTURES |= {ord("\n"): ord("\n"), ord("\t"): ord("\t"), ord("\r"): None}  # type: ignore[dict-item]


def harmless(text: str) -> str:
    """What a model says, as it may be written to a terminal; several lines stay several."""
    return text.translate(_PICTURES)


def write(text: str) -> None:
    """Write to stdout at once. Raises RunStopped where it cannot be written, BrokenPipeError where nobody reads."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python's flush at exit fails once more, with exit code 120
        raise RunStopped(f"stdout cannot be written: {exc.strerror}") from None


def speed(tokens_per_s: float | None, source: str | None) -> str:
    """Tokens per second and whose clock says so; empty where nothing does."""
    if tokens_per_s is None:
        return ""
    return f"{rate(tokens_per_s)} tokens/s" + (f" ({SOURCES.get(source, source)})" if source else "")


def figures(
    *,
    tokens_per_s: float | None,
    source: str | None,
    ttft_s: float | None,
    latency_s: float | None,
    usage: Usage,
    cost_usd: float | None,
    attempts: int | None = None,
    wait_s: float | None = None,
) -> str:
    """One line: speed, times, tokens, cost; what was not measured is left out."""
    parts = [speed(tokens_per_s, source)]
    times = [f"first token {duration(ttft_s)}"] if ttft_s is not None else []
    if latency_s is not None:
        times.append(f"all {duration(latency_s)}")
    parts.append(", ".join(times))
    if usage.completion_tokens is not None:
        parts.append(f"{usage.prompt_tokens or 0:,} in, {usage.completion_tokens:,} out")
    if cost_usd is not None:
        parts.append(money(cost_usd))
    if wait_s is not None and wait_s >= LONG_WAIT_S:
        parts.append(f"waited {duration(wait_s)} for the limits")
    if attempts is not None and attempts > 1:
        parts.append(plural(attempts, "attempt"))
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
