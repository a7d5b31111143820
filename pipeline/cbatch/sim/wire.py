"""Bodies of refusals, byte for byte as the service sends them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

__all__ = [
    "BAD_GATEWAY_HTML",
    "BAD_KEY",
    "NO_AUTH",
    "PAYMENT_REQUIRED",
    "QUEUE_EXCEEDED",
    "SERVER_ERROR",
    "TIMEOUT",
    "TOO_LARGE",
    "UNAVAILABLE",
    "ErrorAnswer",
    "Refused",
    "bad_value",
    "context_exceeded",
    "model_not_found",
    "quota_exceeded",
    "unsupported",
]


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """HTTP status, body, extra headers; `code` is set for a 429, which is counted by it."""

    status: int
    body: bytes
    headers: Mapping[str, str] | None = None
    code: str = ""


class Refused(Exception):
    """Carries an ErrorAnswer out of a check.

    The answers below are values and not exceptions: an exception that is raised again and again keeps every
    traceback it ever had.
    """

    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(answer.status, answer.body)
        self.answer = answer


def _flat(message: str, kind: str, param: str, code: str) -> bytes:
    return orjson.dumps({"message": message, "type": kind, "param": param, "code": code})


NO_AUTH = ErrorAnswer(403, b'{"detail":"Not authenticated"}')
BAD_KEY = ErrorAnswer(401, _flat("Wrong API Key", "invalid_request_error", "api_key", "wrong_api_key"))
PAYMENT_REQUIRED = ErrorAnswer(
    402,
    _flat(
        "Payment required to access this resource. Visit your billing tab.",
        "payment_required_error",
        "quota",
        "payment_required",
    ),
    {"x-should-retry": "false"},
)
QUEUE_EXCEEDED = ErrorAnswer(
    429,
    _flat(
        "We're experiencing high traffic right now! Please try again soon.",
        "too_many_requests_error",
        "queue",
        "queue_exceeded",
    ),
    code="queue_exceeded",
)
# The next four bodies were never recorded; the envelope is the documented one.
TIMEOUT = ErrorAnswer(408, _flat("Request timed out.", "timeout_error", "request", "request_timeout"))
TOO_LARGE = ErrorAnswer(
    413, _flat("Total request size exceeds maximum", "invalid_request_error", "messages", "request_too_large")
)
SERVER_ERROR = ErrorAnswer(
    500, _flat("Encountered a server error, please try again.", "server_error", "", "internal_server_error")
)
UNAVAILABLE = ErrorAnswer(503, _flat("Service is temporarily unavailable.", "server_error", "", "service_unavailable"))
BAD_GATEWAY_HTML = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
    b"<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
)


def bad_value(param: str, message: str, status: int = 400) -> ErrorAnswer:
    """A property whose value is wrong."""
    return ErrorAnswer(status, _flat(message, "invalid_request_error", param, "wrong_api_format"))


def unsupported(paths: list[str]) -> ErrorAnswer:
    """Properties that do not exist, one line each."""
    lines = "\n".join(f"{path}: property '{path}' is unsupported" for path in paths)
    return bad_value("validation_error", lines)


def model_not_found(model: str) -> ErrorAnswer:
    """A model this account does not see."""
    message = f"Model {model} does not exist or you do not have access to it."
    return ErrorAnswer(404, _flat(message, "not_found_error", "model", "model_not_found"))


def context_exceeded(length: int, limit: int) -> ErrorAnswer:
    """A prompt longer than the context; the only body with an (empty) id."""
    body = {
        "message": "Please reduce the length of the messages or completion. "
        f"Current length is {length} while limit is {limit}",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
        "id": "",
    }
    return ErrorAnswer(400, orjson.dumps(body))


def quota_exceeded(kind: str, period: str) -> ErrorAnswer:
    """A bucket that ran dry. `kind` is requests, tokens or total tokens.

    The text for the total-token bucket was never recorded; the real one also says which bucket it was.
    """
    if kind == "requests":
        message = f"Requests per {period} limit exceeded - too many requests sent."
        body = _flat(message, "too_many_requests_error", "quota", "request_quota_exceeded")
        return ErrorAnswer(429, body, code="request_quota_exceeded")
    message = f"{kind.capitalize()} per {period} limit exceeded - too many tokens processed."
    body = _flat(message, "too_many_tokens_error", "quota", "token_quota_exceeded")
    return ErrorAnswer(429, body, code="token_quota_exceeded")
