"""What went wrong -> what a client is told: a status with a body, or an event inside the stream.

Codex reads the message of few statuses, and repeats a request of its own accord after most; what it
understands inside a stream is in `event_of`. The table behind it was measured with four versions of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import orjson

from cbatch import ratelimits
from cbatch.errors import APIError, APIStatusError, APITimeoutError
from cbatch.schema import Failure

LIMITED = "rate_limit_exceeded"
TOO_LONG = "context_length_exceeded"
FINAL = "invalid_prompt"
SLEEP_S = 600.0  # Codex sleeps as long as it is told to: for a limit of the day it must not
AGAIN_S = 5.0  # what a refusal without a time says: the pacer has waited before

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 402: "insufficient_quota", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error as an OpenAI client knows it; `retry_after_s` is when to try again, if anyone knows."""

    status: int
    message: str
    type: str | None = None
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None

    def body(self) -> bytes:
        """The JSON that every OpenAI client reads."""
        return orjson.dumps({"error": self.error()})

    def error(self) -> dict[str, Any]:
        """The object under `error`."""
        kind = self.type or _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    def headers(self) -> dict[str, str]:
        """Of the answer; `retry-after` in whole seconds, as the SDKs read it."""
        headers = {"Content-Type": "application/json"}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after_s + 0.49)))
        return headers


class Refused(Exception):
    """A request ends with this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem_of(error: APIError, now: datetime) -> Problem:
    """What the upstream's error is for the client: its own status and words, where it has them."""
    if isinstance(error, APIStatusError):
        wait_s = ratelimits.stated_wait_s(error.headers, now)
        if wait_s is None and error.status == 429:
            wait_s = ratelimits.reset_s(error.headers)
        message = str(error).removeprefix(f"HTTP {error.status}: ")
        if error.code is None and error.type is None:  # not the API's own: a page of a proxy, or nothing
            message = f"the upstream answered with status {error.status}: {message}"
        elif error.status in (401, 403):  # the client's key is not what is meant
            message = f"the upstream refuses the gateway's key: {message}"
        return Problem(
            status=error.status,
            message=message,
            type=error.type,
            code=error.code,
            param=error.param,
            retry_after_s=wait_s,
        )
    if isinstance(error, APITimeoutError):
        return Problem(status=504, message=f"upstream: {error}", code="upstream_timeout")
    return Problem(status=502, message=f"upstream: {error}", code=getattr(error, "code", None) or "upstream_error")


def failed(failure: Failure, now: datetime) -> Problem:
    """What a request that was tried to its end is for the client."""
    if isinstance(failure.error, APIError):
        return problem_of(failure.error, now)
    if failure.code == "never_fits":  # waiting would not help, so it is no 429
        message = failure.message.partition("; lower ")[0]  # what follows is about jobs
        message += "; shorten the conversation, or ask for fewer output tokens"
        return Problem(status=400, message=message, code="request_exceeds_rate_limit")
    return Problem(status=502, message=failure.message, code=failure.code or failure.kind)


def waited(what: str, left_s: float, waited_s: float) -> Problem:
    """The account's limits let nothing through for longer than a client should wait."""
    message = f"the account's limit ({what}) is used up"
    if waited_s >= 1:
        message += f", also after a wait of {waited_s:.0f} s"
    return Problem(
        status=429, message=message, code=LIMITED, retry_after_s=max(left_s, 1.0) if left_s < math.inf else AGAIN_S
    )


def event_of(problem: Problem) -> tuple[str, str]:
    """(code, message) of `response.failed`, so that Codex waits, gives up or repeats as it should.

    FINAL is the one code after which it shows our words and does not ask again.
    """
    message = problem.message or f"HTTP {problem.status}"
    if problem.status == 429:
        again_s = AGAIN_S if problem.retry_after_s is None else max(problem.retry_after_s, 0.1)
        if again_s > SLEEP_S:
            return FINAL, f"{message.rstrip('. ')}. There is room again in {_duration(again_s)}."
        return LIMITED, f"{message.rstrip('. ')}. Please try again in {again_s:.1f}s."
    if problem.code == TOO_LONG:
        return TOO_LONG, message
    if problem.status < 500 and problem.status not in (408, 409):
        return FINAL, message
    return "server_error", message


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def as_overflow(problem: Problem) -> Problem:
    """The same with the code that clients look for, where the upstream says in other words that it is too long."""
    if problem.status in (400, 413, 422) and problem.code != TOO_LONG and "context length" in problem.message.lower():
        return replace(problem, code=TOO_LONG)
    return problem
