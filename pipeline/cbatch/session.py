"""The types of one session of a run: what was asked for, what is going on, how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Changed = Literal["rerun", "keep"]


class OnTheWire(NamedTuple):
    """A request that was sent and is not answered yet; `sent` is of the run's clock."""

    prompt_id: str
    sent: float


@dataclass(slots=True, kw_only=True)
class Activity:
    """What is going on now, for whoever watches: counts of requests and the time lost by cause (s, summed)."""

    sent: int = 0
    retries: int = 0
    rate_limited: int = 0
    backing_off: int = 0
    pace_wait_s: float = 0.0
    backoff_s: float = 0.0
    hedged: int = 0  # asked a second time
    server_queue_s: float = 0.0  # as the server says, summed over answers
    on_the_wire: dict[asyncio.Task[Any], OnTheWire] = field(default_factory=dict)  # the oldest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How this invocation differs from the job file."""

    limit: int | None = None
    retry_failed: bool = False
    fresh: bool = False
    changed: Changed | None = None


@dataclass(slots=True, kw_only=True)
class Progress:
    """What is durable and what is going on; read by whoever watches, written by the engine."""

    total: int = 0  # prompts x models x samples
    stage: str = ""  # of a load run: what it is at
    done: int = 0
    failed: int = 0
    answered: int = 0  # this session: durable rows
    completion_tokens: int = 0  # this session
    cost_usd: float = 0.0  # all sessions
    unpriced: int = 0
    left_by_model: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)  # by kind: of this session, at its end of the whole run
    samples: dict[str, str] = field(default_factory=dict)  # one message per kind
    activity: Activity = field(default_factory=Activity)
    started_s: float = 0.0
    draining: bool = False
    waiting_for: Callable[[], tuple[str, float] | None] = lambda: None  # what for, and how long still (s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a session of a run ended. `exit_code` is that of the contract.

    Counts of prompts, tokens, cost and errors are of the whole run; `sent`, `answered`, `retries`,
    `rate_limited`, `elapsed_s`, `tokens_per_s`, the waits and `abandoned` are of this session.
    """

    name: str
    folder: str
    state: Literal["finished", "interrupted", "stopped"]
    total: int
    done: int
    failed: int
    left: int
    orphaned: int
    sent: int
    answered: int
    retries: int
    rate_limited: int
    elapsed_s: float
    tokens_per_s: float
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    unpriced: int
    paid_twice_at_most: int
    paid_twice_usd: float | None  # at most; None where a price is unknown
    abandoned: int  # requests cancelled on the wire
    simulated: bool
    workers: int
    pace_wait_s: float  # waiting for the rate limit, and in retries: summed over workers
    backoff_s: float
    time_lost_s: dict[str, float]  # in which prompts waited, by cause: of the wall time
    cpu_s: float  # of this process
    server_queue_s: float  # as the server says, summed over answers
    cuts: dict[str, int]  # of the requests in flight, by cause
    learned: dict[str, float]  # limits that refusals taught
    sizing: dict[str, int]  # what max_completion_tokens: auto did
    outages: int
    outage_s: float
    hedged: int
    errors: dict[str, int]
    samples: dict[str, str]
    exit_code: int
    error: str | None = None
    hint: str | None = None


def unfinished_session(live: dict[str, Any] | None, sessions: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    """The figures of a session that has not written its end: running, or killed.

    `live` is its last heartbeat, which may be older than its last row; `sessions` came before it, and
    `rows` are durable.
    """
    live = live or {}
    answered = max(rows - sum(session.get("answered", 0) for session in sessions), 0)
    return live | {"answered": answered, "sent": max(live.get("sent", 0), answered)}
