"""error, attempt, headers -> RetryAfter | GiveUp | StopRun: a pure decision, and the words for it.

*Rate limited* means slow everyone down: the whole account waits. *Transient* means try this one
again: only the prompt waits. A 429 is not counted against a prompt's attempts where other prompts
get through, because it says nothing about the prompt.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cbatch.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    RateLimitError,
)
from cbatch.ratelimits import stated_wait_s
from cbatch.schema import ErrorKind

FIRST_BACKOFF_S = 0.5  # the official SDK's first delay
REFUSALS = 50  # of one prompt, while others get through: it alone does not fit
MAX_BACKOFF_S = 30.0  # past this, waiting longer no longer helps the server
JITTER = 0.25  # of the delay, downwards, so that a crowd does not come back as one


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Try again in `seconds`; `counts` uses up an attempt."""

    seconds: float
    because: str
    counts: bool = True


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The prompt has failed."""

    because: str


@dataclass(frozen=True, slots=True)
class StopRun:
    """Every other prompt would fail too; `hint` says what to do."""

    because: str
    hint: str


Decision = RetryAfter | GiveUp | StopRun

STOP_HINTS = {
    401: "the key was refused; check CEREBRAS_API_KEY or --api-key-file, then run the same line again",
    402: "add a payment method or credit in the billing tab, then run the same line again",
    403: "no key was sent, or it may not use this; check CEREBRAS_API_KEY, then run the same line again",
}


def decide(
    error: APIError,
    *,
    counted: int,
    refusals: int = 0,
    attempts: int,
    max_wait_s: float,
    others_succeed: bool,
    now: datetime,
    rng: random.Random,
) -> Decision:
    """What to do after `error`.

    `counted` attempts, this one included, were used of `attempts`; `refusals` is how often the prompt
    met a 429, and `others_succeed` whether any prompt of this model was answered in this session. A
    server that asks for a longer wait than `max_wait_s` ends the prompt, or, if it is about the
    account, the run. `now` is wall time, for a Retry-After that is a date.
    """
    headers: Mapping[str, str] = error.headers if isinstance(error, APIStatusError) else {}
    status = error.status if isinstance(error, APIStatusError) else None
    if status in STOP_HINTS:
        return StopRun(str(error), STOP_HINTS[status])
    should = headers.get("x-should-retry", "").strip().lower()
    if should == "false" or (should != "true" and not _is_transient(error)):
        return GiveUp("the server says that a retry cannot help" if should == "false" else "a retry cannot help")
    limited = isinstance(error, RateLimitError)
    quota = isinstance(error, RateLimitError) and error.code != "queue_exceeded"
    # Others get through: the limit is the account's, and says nothing about this prompt.
    counts = not (limited and others_succeed)
    stated = stated_wait_s(headers, now)
    asks = f"the server asks to wait {stated or 0:,.0f} s, more than retry.max_wait_s ({max_wait_s:g})"
    too_long = stated is not None and stated > max_wait_s
    if quota and too_long:  # not this prompt's fault, and no other's: failing them one by one would help nobody
        return StopRun(f"{error}; {asks}", "run the same line again later, or raise retry.max_wait_s")
    if counts and counted >= attempts:
        return GiveUp("failed once" if counted == 1 else f"failed {counted} times")
    if not counts and refusals >= REFUSALS:
        return GiveUp(f"refused {refusals} times while other prompts got through")
    if too_long:
        return GiveUp(asks)
    if quota:  # how long the account is held is arithmetic, and the pacer's
        return RetryAfter(stated or 0.0, _reason(error), counts=counts)
    tries = counted if counts else refusals
    backoff = min(FIRST_BACKOFF_S * 2 ** min(max(tries, 1) - 1, 16), MAX_BACKOFF_S) * (1 - JITTER * rng.random())
    # A wait of 0 is one that was rounded down: obeyed, all attempts would be used up within the same second.
    return RetryAfter(stated or min(backoff, max_wait_s), _reason(error), counts=counts)


def _is_transient(error: APIError) -> bool:
    if isinstance(error, APIStatusError):
        return error.status in (408, 409, 429) or error.status >= 500
    return True  # no answer, or an unusable one: the prompt itself was never judged


def kind_of(error: APIError) -> ErrorKind:
    """The `error_kind` column for an error."""
    if isinstance(error, APITimeoutError):
        return "timeout"
    if isinstance(error, APIConnectionError):
        return "connection"
    if isinstance(error, APIResponseError):
        return "truncated" if error.truncated else "server"
    if isinstance(error, APIStatusError):
        if error.status == 429:
            return "overloaded" if error.code == "queue_exceeded" else "rate_limited"
        if error.code == "context_length_exceeded":
            return "context_length"
        by_status: dict[int, ErrorKind] = {
            401: "auth",
            402: "payment",
            403: "auth",
            404: "not_found",
            408: "timeout",
        }
        if error.status >= 500 or error.status in (409,) or error.status < 400:
            return "server"
        return by_status.get(error.status, "bad_request")
    return "server"


def _reason(error: APIError) -> str:
    kind = kind_of(error)
    return f"{kind} (HTTP {error.status})" if isinstance(error, APIStatusError) else kind
