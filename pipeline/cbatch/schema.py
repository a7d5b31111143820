"""The types that flow: Prompt -> Request -> Completion | Failure -> Record.

Standard library only. Inside the program every value is one of these; a bare dict never
travels past an edge. Times end in `_s` (seconds, float), counts in `_tokens` or a plural.
None means "not measured", 0 means zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    limit_tokens: int | None = None  # max_completion_tokens, where the job or the row gives it
    prompt_id: str = ""

    def with_limit(self, tokens: int, body: bytes | None = None) -> bytes:
        """The body (or another one for the same prompt) with max_completion_tokens, which is not in it."""
        return b'{"max_completion_tokens":%d,' % tokens + (body or self.body)[1:]


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
class StreamMarks:
    """When the tokens of a stream came: stamps of socket reads, in seconds of a monotonic clock."""

    first: float  # text, reasoning or a tool call
    first_answer: float | None  # text or a tool call; None where all was reasoning
    last: float
    end: float  # of the body: [DONE], and usage where it has its own chunk
    n_chunks: int  # events that carried tokens
    n_reads: int  # socket reads that did
    first_share: float  # of all characters, in the first of these reads
    max_gap_s: float | None  # between two of these reads; None where there is one


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
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    stream: StreamMarks | None = None  # None: it came in one piece


@dataclass(slots=True, kw_only=True)
class Failure:
    """The answer's sad twin: a failed prompt is data, not an exception."""

    kind: ErrorKind
    message: str
    code: str | None = None
    http_status: int | None = None
    completion: Completion | None = None  # an answer that was paid for and did not fit
    retry_after_s: float | None = None  # what the refusal asked for
    error: Exception | None = None  # the last one


@dataclass(slots=True, kw_only=True)
class Timeline:
    """Marks of one prompt, in seconds of a monotonic clock; written by `send`, read by `measure`."""

    ready: float
    first_sent: float | None = None
    sent: float | None = None  # of the last attempt
    done: float | None = None  # last byte of the last attempt
    backoff_s: float = 0.0
    attempts: int = 0
    refusals: int = 0  # attempts that ended with 429
    reserved_tokens: int | None = None  # of the last attempt
    started_at: datetime | None = None  # wall clock at the first send, aware, UTC
    scheduled: float | None = None  # when an open loop meant to send it
    loop_lag_s: float | None = None  # of the client's event loop, around the first token
    block: int | None = None  # of a load run
    level: float | None = None
    phase: Literal["warmup", "measure"] | None = None


@dataclass(slots=True, kw_only=True)
class Record:
    """One journal row, which becomes one Parquet row: the values of COLUMNS, then the carried ones."""

    key: bytes
    sample: int
    digest: bytes
    ok: bool
    attempts: int
    row: list[Any]
    paid_tokens: tuple[int, int] | None = None  # (prompt, completion) of all answers; None: of the row's alone


# Name, type and meaning of every result column, in file order; seconds end in _s.
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("id", "string", "the row's id column, else a hash of the row"),
    ("index", "int64", "row number in the input, from 0"),
    ("sample", "int32", "which answer to the prompt, from 0"),
    ("model", "string", "model asked"),
    ("digest", "string", "sha-256 of the request body"),
    ("status", "string", "ok or error"),
    ("text", "string", "the answer"),
    ("reasoning", "string", "the model's reasoning, where it shows it"),
    ("tool_calls", "string", "JSON"),
    ("finish_reason", "string", "stop, length, tool_calls or content_filter"),
    ("parsed", "string", "JSON: the answer as response_format asked for it"),
    ("valid", "bool", "whether the answer fits response_format; null without one"),
    ("error_kind", "string", "what kind of failure"),
    ("error_code", "string", "the server's code"),
    ("error_message", "string", "what happened"),
    ("http_status", "int64", "of the last answer"),
    ("retry_after_s", "float64", "how long the server asked to wait, where the last answer was a refusal"),
    ("prompt_tokens", "int64", "as the server counted"),
    ("cached_tokens", "int64", "prompt tokens served from the cache"),
    ("completion_tokens", "int64", "reasoning included"),
    ("reasoning_tokens", "int64", "part of completion_tokens"),
    ("total_tokens", "int64", "as the server counted"),
    ("reserved_tokens", "int64", "estimate the rate limit is charged at admission"),
    ("cost_usd", "float64", "of all answers to this prompt, re-asked ones included; null where no price is known"),
    ("server_queue_s", "float64", "server's clock: waiting in its queue"),
    ("server_prompt_s", "float64", "server's clock: reading the prompt"),
    ("server_completion_s", "float64", "server's clock: writing the answer"),
    ("server_total_s", "float64", "server's clock: all of it"),
    ("server_other_s", "float64", "server's clock: the total without queue, prompt and completion"),
    ("started_at", "timestamp", "first send, UTC"),
    ("wait_s", "float64", "ready until first send: pacing"),
    ("backoff_s", "float64", "waiting between retries"),
    ("attempts_s", "float64", "first send until last send: failed attempts and the waits between them"),
    ("latency_s", "float64", "last attempt: send until last token, without a stream until last byte"),
    ("ttft_s", "float64", "send until first token; needs a stream"),
    ("ttfa_s", "float64", "send until first answer token; needs a stream"),
    ("tail_s", "float64", "last token until end; needs a stream"),
    ("response_s", "float64", "ready, or due by the schedule of an open loop, until last token"),
    ("sched_lag_s", "float64", "due by the schedule until first send; open loop only"),
    ("net_s", "float64", "ttft_s without the server's queue and prompt time: network and client"),
    ("attempts", "int64", "requests sent for this prompt"),
    ("server_tokens_per_s", "float64", "completion_tokens / server_completion_s"),
    ("server_prefill_tokens_per_s", "float64", "prompt tokens not from the cache / server_prompt_s"),
    ("client_tokens_per_s", "float64", "by the client's clock, after the first read; null where the window is short"),
    ("e2e_tokens_per_s", "float64", "completion_tokens / latency_s"),
    ("n_chunks", "int64", "events of the stream that carried text, reasoning or tool calls"),
    ("n_reads", "int64", "socket reads that carried them"),
    ("n1_est", "float64", "tokens in the first of these reads, by its share of the characters"),
    ("max_gap_s", "float64", "longest time between two of these reads"),
    ("loop_lag_ms", "float64", "how late the client's event loop was around the first token"),
    ("tainted", "bool", "whether that is too late for ttft_s to be trusted"),
    ("load_block", "int32", "block of a load run, from 0; null in a batch"),
    ("load_level", "float64", "load of the block: requests in flight, or requests/s"),
    ("load_phase", "string", "warmup or measure; null in a batch"),
    ("request_id", "string", "the server's id of the answer"),
    ("served_model", "string", "model that answered"),
    ("system_fingerprint", "string", "the server's configuration"),
    ("input", "string", "the input row as JSON"),
)
COLUMN_INDEX = {name: position for position, (name, _, _) in enumerate(COLUMNS)}
