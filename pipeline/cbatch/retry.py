"""error, attempt, headers -> RetryAfter | GiveUp | StopRun: a pure decision, and the words for it.

*Rate limited* means slow everyone down: the whole account waits. *Transient* means try this one
again: only the prompt waits. A 429 while other prompts get through is not counted against a
prompt's attempts, because it says nothing about the prompt.
"""

from __future__ import annotations

import email.utils
import math
import random
import re
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
from cbatch.schema import ErrorKind

FIRST_BACKOFF_S = 0.5  # the official SDK's first delay
FIRST_QUOTA_BACKOFF_S = 3.0  # 3 + 6 + 12 + 24 + 48 s, less jitter: longer than a minute's window
MAX_BACKOFF_S = 30.0  # past this, waiting longer no longer helps the server
JITTER = 0.25  # of the delay, downwards, so that a crowd does not come back as one


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Try again in `seconds`; `hold` makes the whole account wait, `counts` uses up an attempt."""

    seconds: float
    because: str
    hold: bool = False
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
    attempts: int,
    max_wait_s: float,
    others_succeed: bool,
    now: datetime,
    rng: random.Random,
) -> Decision:
    """What to do after `error`.

    `counted` attempts, this one included, were used of `attempts`; `others_succeed` is whether any
    prompt of this model was answered since this one was sent. A server that asks for a longer wait
    than `max_wait_s` ends the prompt. `now` is wall time, for a Retry-After that is a date.
    """
    headers: Mapping[str, str] = error.headers if isinstance(error, APIStatusError) else {}
    status = error.status if isinstance(error, APIStatusError) else None
    if status in STOP_HINTS:
        return StopRun(str(error), STOP_HINTS[status])
    should = headers.get("x-should-retry", "").strip().lower()
    if should == "false" or (should != "true" and not _is_transient(error)):
        return GiveUp("the server says that a retry cannot help" if should == "false" else "a retry cannot help")
    quota = isinstance(error, RateLimitError) and error.code != "queue_exceeded"
    counts = not (quota and others_succeed)
    if counts and counted >= attempts:
        return GiveUp("failed once" if counted == 1 else f"failed {counted} times")
    # Nobody gets through: the account's minute is used up, and six attempts must outlast it.
    first, longest = (FIRST_QUOTA_BACKOFF_S, 60.0) if quota and counts else (FIRST_BACKOFF_S, MAX_BACKOFF_S)
    backoff = min(first * 2 ** min(counted - 1, 16), longest) * (1 - JITTER * rng.random())
    stated = stated_wait_s(headers, now)
    if stated is not None and stated > max_wait_s:
        return GiveUp(f"the server asks to wait {stated:,.0f} s, more than retry.max_wait_s ({max_wait_s:g})")
    # Reset headers are an upper bound (they count down to the wall-clock minute): never wait longer than they say.
    # A wait of 0 is one that was rounded down: obeyed, all attempts would be used up within the same second.
    bounds = (backoff, max_wait_s, (reset_s(headers) if quota else None) or math.inf)
    return RetryAfter(stated or min(bounds), _reason(error), hold=quota, counts=counts)


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


def stated_wait_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds the server asks to wait: retry-after-ms, then retry-after as seconds or as a date; None if neither."""
    if (ms := _number(headers.get("retry-after-ms"))) is not None:
        return ms / 1000
    text = headers.get("retry-after")
    if (seconds := _number(text)) is not None:
        return seconds
    if text:
        try:
            return max(0.0, (email.utils.parsedate_to_datetime(text) - now).total_seconds())
        except (TypeError, ValueError, OverflowError):
            return None
    return None


def reset_s(headers: Mapping[str, str]) -> float | None:
    """The shortest wait after which some exhausted bucket is refilled, from the x-ratelimit headers; None if unsaid."""
    waits: list[float] = []
    for what in ("requests", "tokens"):
        for window in ("-minute", "-hour", "-day", ""):
            remaining = _number(headers.get(f"x-ratelimit-remaining-{what}{window}"))
            reset = _duration_s(headers.get(f"x-ratelimit-reset-{what}{window}"))
            if reset is not None and (window in ("-minute", "") or (remaining is not None and remaining < 1)):
                waits.append(reset)
    return min(waits) if waits else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) and value >= 0 else None


_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


def _duration_s(text: str | None) -> float | None:
    """Seconds in "11.38" or in "1m2.5s"."""
    if (plain := _number(text)) is not None:
        return plain
    if text and (match := _DURATION.fullmatch(text)) and any(match.groups()):
        hours, minutes, seconds, ms = (float(g) if g else 0.0 for g in match.groups())
        return hours * 3600 + minutes * 60 + seconds + ms / 1000
    return None
