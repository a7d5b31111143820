"""One request and what became of it: what is counted, and what the log of exchanges keeps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from cbatch.gateway.faults import Problem
from cbatch.library import Answer
from cbatch.schema import Timeline

Outcome = Literal["ok", "failed", "cancelled"]
KEPT_BYTES = 1_000_000  # of chunks and events of one exchange: in memory they take several times as much
_KEPT = ("user-agent", "originator", "session-id", "session_id", "x-client-request-id")


@dataclass(slots=True, kw_only=True)
class Exchange:
    """Written by the routes; `keeps` says whether texts are kept for the log, or only counted."""

    id: str
    route: str
    client: str = ""
    is_codex: bool = False
    keeps: bool = False
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    timeline: Timeline = field(default_factory=lambda: Timeline(ready=time.perf_counter()))
    provider: str = ""
    model: str = ""  # asked for
    served: str = ""  # sent to
    status: int = 200
    outcome: Outcome = "ok"
    problem: Problem | None = None
    answer: Answer | None = None
    first_out: float | None = None  # perf_counter: the first byte to the client
    headers: dict[str, str] = field(default_factory=dict)
    request: Any = None
    size_bytes: int = 0  # of the request
    kept_bytes: int = 0  # of what came and what was told, as JSON
    left_out: int = 0  # chunks and events beyond KEPT_BYTES
    chat: Any = None
    upstream: list[Any] = field(default_factory=list)  # chunks, or the answer in one piece
    events: list[Any] = field(default_factory=list)  # told to the client

    def came_from(self, headers: Mapping[str, str]) -> None:
        """Take down who asks."""
        originator, agent = headers.get("originator", ""), headers.get("user-agent", "")
        self.client = originator or agent
        self.is_codex = "codex" in f"{originator} {agent}".lower()
        if self.keeps:
            self.headers = {name: headers[name] for name in _KEPT if name in headers}

    def keep(self, kept: list[Any], value: Any, size_bytes: int) -> None:
        """Keep a chunk or an event for the log, within a bound: hundreds of long streams must fit in memory."""
        if self.kept_bytes + size_bytes > KEPT_BYTES:
            self.left_out += 1
            return
        self.kept_bytes += size_bytes
        kept.append(value)

    def counted(self) -> dict[str, Any]:
        """The arguments of `Counters.observe`."""
        answer, line = self.answer, self.timeline
        usage = answer.usage if answer else None
        metrics = answer.metrics if answer else None
        return {
            "route": self.route,
            "model": self.served or self.model,
            "status": self.status,
            "outcome": self.outcome,
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "cached_tokens": usage.cached_tokens if usage else None,
            "completion_tokens": usage.completion_tokens if usage else None,
            "reasoning_tokens": usage.reasoning_tokens if usage else None,
            "cost_usd": answer.cost_usd if answer else None,
            "ttft_s": metrics.ttft_s if metrics else None,
            "latency_s": metrics.latency_s if metrics else None,
            "wait_s": line.first_sent - line.ready if line.first_sent is not None else None,
            "server_tokens_per_s": metrics.server_tokens_per_s if metrics else None,
            "attempts": line.attempts,
            "rate_limited": line.refusals,
            "error": self.problem.message if self.problem else None,
            "code": self.problem.code if self.problem else None,
        }

    def record(self) -> dict[str, Any]:
        """A line of the log."""
        answer, done = self.answer, time.perf_counter()
        metrics = answer.metrics if answer else None
        return {
            "id": self.id,
            "started_at": self.started_at.isoformat(timespec="milliseconds"),
            "route": self.route,
            "client": self.client,
            "headers": self.headers,
            "provider": self.provider,
            "model": self.model,
            "served_model": (answer.served_model if answer else None) or self.served,
            "status": self.status,
            "outcome": self.outcome,
            "error": self.problem.error() if self.problem else None,
            "timings": {
                "wait_s": self.counted()["wait_s"],
                "ttft_s": metrics.ttft_s if metrics else None,
                "latency_s": metrics.latency_s if metrics else None,
                "first_byte_out_s": self.first_out - self.timeline.ready if self.first_out is not None else None,
                "total_s": done - self.timeline.ready,
                "attempts": self.timeline.attempts,
            },
            "server_tokens_per_s": answer.server_tokens_per_s if answer else None,
            "tokens_per_s": answer.tokens_per_s if answer else None,
            "usage": _plain(answer.usage) if answer else None,
            "cost_usd": answer.cost_usd if answer else None,
            "request": self.request,
            "chat_request": self.chat,
            "upstream": self.upstream,
            "events": self.events,
            "left_out": self.left_out,
        }


def _plain(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
