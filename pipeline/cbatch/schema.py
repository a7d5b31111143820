"""The types that flow: Prompt -> Request -> Completion | Failure -> Record.

Standard library only. Inside the program every value is one of these; a bare dict never
travels past an edge. Times end in `_s` (seconds, float), counts in `_tokens` or a plural.
None means "not measured", 0 means zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

ErrorKind = Literal[
    "rate_limited",  # 429 of the account's quota
    "overloaded",  # 429 queue_exceeded: the server is busy
    "timeout",
    "connection",
    "server",  # 5xx, HTML where JSON was due, an answer that is no completion
    "bad_request",
    "auth",
    "payment",
    "not_found",
    "context_length",
    "truncated",  # the answer stopped before its end
    "invalid_output",  # the answer does not fit params.response_format
    "render",  # the template could not be filled from this row
    "source",  # the row itself is broken
    "budget",
]


@dataclass(slots=True, kw_only=True)
class Prompt:
    """One input row for one model and one sample: what to ask, and where it came from.

    `fields` is None where the row could not be read, and `problem` then says why.
    """

    id: str
    index: int
    sample: int
    model: str
    fields: Mapping[str, Any] | None
    raw: bytes  # the row as JSON
    origin: str  # "prompts.jsonl:42"
    problem: str | None = None


@dataclass(slots=True, kw_only=True)
class Request:
    """Exactly what will be sent; `digest` is the sha-256 of the canonical body, transport excluded."""

    model: str
    body: bytes
    digest: bytes
    prompt_tokens_estimate: int
    reserve_tokens: int  # the estimate plus max_completion_tokens: what the server will charge at admission


@dataclass(slots=True, kw_only=True)
class Usage:
    """Token counts as the server reported them; `completion_tokens` includes reasoning."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    total_tokens: int | None = None


@dataclass(slots=True, kw_only=True)
class TimeInfo:
    """The server's own clock, verbatim, in seconds."""

    queue_s: float | None = None
    prompt_s: float | None = None
    completion_s: float | None = None
    total_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Completion:
    """The answer."""

    text: str | None
    reasoning: str | None
    tool_calls: list[Any] | None
    finish_reason: str | None
    usage: Usage
    time_info: TimeInfo
    request_id: str | None
    served_model: str | None
    system_fingerprint: str | None
    parsed: Any = None
    valid: bool | None = None  # None: no response_format was asked for


@dataclass(slots=True, kw_only=True)
class Failure:
    """The answer's sad twin: a failed prompt is data, not an exception."""

    kind: ErrorKind
    message: str
    code: str | None = None
    http_status: int | None = None
    completion: Completion | None = None  # an answer that was paid for and did not fit


@dataclass(slots=True, kw_only=True)
class Timeline:
    """Marks of one prompt, in seconds of a monotonic clock; written by `send`, read by `measure`."""

    ready: float
    first_sent: float | None = None
    sent: float | None = None  # of the last attempt
    done: float | None = None  # last byte of the last attempt
    backoff_s: float = 0.0
    attempts: int = 0
    started_at: datetime | None = None  # wall clock at the first send, aware, UTC


@dataclass(slots=True, kw_only=True)
class Record:
    """One journal row, which becomes one Parquet row: the values of COLUMNS, then the carried ones."""

    key: bytes
    sample: int
    digest: bytes
    ok: bool
    attempts: int
    row: list[Any]


# Name and type of every result column, in file order. Source: the project's contract, section 5.
COLUMNS: tuple[tuple[str, str], ...] = (
    ("id", "string"),
    ("index", "int64"),
    ("sample", "int32"),
    ("model", "string"),
    ("digest", "string"),
    ("status", "string"),
    ("text", "string"),
    ("reasoning", "string"),
    ("tool_calls", "string"),
    ("finish_reason", "string"),
    ("parsed", "string"),
    ("valid", "bool"),
    ("error_kind", "string"),
    ("error_code", "string"),
    ("error_message", "string"),
    ("http_status", "int64"),
    ("prompt_tokens", "int64"),
    ("cached_tokens", "int64"),
    ("completion_tokens", "int64"),
    ("reasoning_tokens", "int64"),
    ("total_tokens", "int64"),
    ("reserved_tokens", "int64"),
    ("cost_usd", "float64"),
    ("server_queue_s", "float64"),
    ("server_prompt_s", "float64"),
    ("server_completion_s", "float64"),
    ("server_total_s", "float64"),
    ("started_at", "timestamp"),  # UTC, µs
    ("wait_s", "float64"),
    ("backoff_s", "float64"),
    ("latency_s", "float64"),
    ("ttft_s", "float64"),
    ("ttfa_s", "float64"),
    ("tail_s", "float64"),
    ("attempts", "int64"),
    ("server_tokens_per_s", "float64"),
    ("client_tokens_per_s", "float64"),
    ("e2e_tokens_per_s", "float64"),
    ("request_id", "string"),
    ("served_model", "string"),
    ("system_fingerprint", "string"),
    ("input", "string"),
)
COLUMN_INDEX = {name: position for position, (name, _) in enumerate(COLUMNS)}
