"""Reply -> Completion | APIError: pure functions, so that every shape of answer is tested without a socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from cbatch.errors import (
    APIError,
    APIResponseError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from cbatch.schema import Completion, TimeInfo, Usage

MESSAGE_CHARS = 2_000  # of a server's message that a row keeps
EXCERPT = 200  # characters of an unexpected body that a message quotes

_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


@dataclass(slots=True)
class Reply:
    """One HTTP answer, unread. `reads`: after which byte of the body each socket read ended, and when (s)."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    reads: Sequence[tuple[int, float]] = ()


def read_completion(reply: Reply) -> Completion:
    """The completion in a reply to a chat request.

    Raises APIStatusError for an error status, APIResponseError for a 200 that is not a whole
    completion: HTML from a proxy, cut JSON, an error object, no choices.
    """
    if reply.status != 200:
        raise read_error(reply)
    try:
        answer = orjson.loads(reply.body)
    except orjson.JSONDecodeError as exc:
        raise _not_json(reply, exc) from None
    if not isinstance(answer, dict):
        raise APIResponseError(f"the answer is not a JSON object: {excerpt(reply.body)}", code="invalid_response")
    choices = answer.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        inner = answer.get("error")
        error = inner if isinstance(inner, dict) else answer
        raise APIResponseError(
            f"status 200 without choices: {text_of(error.get('message')) or excerpt(reply.body)}",
            code=text_of(error.get("code")) or "invalid_response",
        )
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise APIResponseError(f"a choice without a message: {excerpt(reply.body)}", code="invalid_response")
    calls = message.get("tool_calls")
    check_storable(calls)
    return Completion(
        text=text_of(message.get("content")),
        reasoning=text_of(message.get("reasoning")) or text_of(message.get("reasoning_content")) or None,
        tool_calls=calls if isinstance(calls, list) and calls else None,
        finish_reason=text_of(choice.get("finish_reason")),
        usage=read_usage(answer.get("usage")),
        time_info=read_time_info(answer.get("time_info")),
        request_id=text_of(answer.get("id")),
        served_model=text_of(answer.get("model")),
        system_fingerprint=text_of(answer.get("system_fingerprint")),
        headers=reply.headers,
    )


def read_error(reply: Reply) -> APIStatusError:
    """The typed error in a reply with an error status, whatever shape its body has.

    Shapes: flat JSON, JSON under `error`, `{"detail": …}`, an empty body, HTML or text from a proxy.
    """
    code = kind = param = None
    message: str | None = None
    try:
        body = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        body = None
    if isinstance(body, dict):
        inner = body.get("error")
        if isinstance(inner, dict):
            body = inner
        elif isinstance(inner, str):
            message = inner
        message = message or text_of(body.get("message")) or text_of(body.get("detail"))
        code, kind, param = text_of(body.get("code")), text_of(body.get("type")), text_of(body.get("param"))
    if not message:
        message = excerpt(reply.body) or "no body"
    message = message[:MESSAGE_CHARS]
    error_type = InternalServerError if reply.status >= 500 else _BY_STATUS.get(reply.status, APIStatusError)
    return error_type(
        f"HTTP {reply.status}: {message}",
        status=reply.status,
        code=code,
        type=kind,
        param=param,
        headers=reply.headers,
    )


def check_storable(calls: object) -> None:
    """Raise APIResponseError for tool calls that cannot be written again."""
    try:
        orjson.dumps(calls)  # reads 1,024 levels and writes 254: better one row failed than a run that cannot store it
    except TypeError:
        raise APIResponseError("tool calls nested too deeply to be stored", code="invalid_response") from None


def _not_json(reply: Reply, exc: orjson.JSONDecodeError) -> APIError:
    head = reply.body.lstrip()[:1]
    if not head:
        return APIResponseError("status 200 with an empty body", code="empty_body", truncated=True)
    if head == b"{":
        return APIResponseError(
            f"the JSON of the answer breaks off or is malformed after {len(reply.body):,} bytes: {exc.msg}",
            code="malformed_json",
            truncated=True,
        )
    return APIResponseError(f"status 200 with something else than JSON: {excerpt(reply.body)}", code="not_json")


def read_models(reply: Reply) -> list[dict[str, Any]]:
    """The models in a reply to a request for them. Raises APIError."""
    if reply.status != 200:
        raise read_error(reply)
    try:
        data = orjson.loads(reply.body)["data"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        data = None
    if not isinstance(data, list):
        raise APIResponseError(f"not a list of models: {excerpt(reply.body)}", code="invalid_response")
    return [item for item in data if isinstance(item, dict) and isinstance(item.get("id"), str)]


def read_usage(raw: object) -> Usage:
    """The token counts, each None where it is not a count."""
    if not isinstance(raw, dict):
        return Usage()
    prompt = raw.get("prompt_tokens_details")
    completion = raw.get("completion_tokens_details")
    return Usage(
        prompt_tokens=_count(raw.get("prompt_tokens")),
        cached_tokens=_count(prompt.get("cached_tokens")) if isinstance(prompt, dict) else None,
        completion_tokens=_count(raw.get("completion_tokens")),
        reasoning_tokens=_count(completion.get("reasoning_tokens")) if isinstance(completion, dict) else None,
        total_tokens=_count(raw.get("total_tokens")),
    )


def read_time_info(raw: object) -> TimeInfo:
    """The server's clock, each part None where it is not a number."""
    if not isinstance(raw, dict):
        return TimeInfo()
    return TimeInfo(
        queue_s=_seconds(raw.get("queue_time")),
        prompt_s=_seconds(raw.get("prompt_time")),
        completion_s=_seconds(raw.get("completion_time")),
        total_s=_seconds(raw.get("total_time")),
    )


def text_of(value: object) -> str | None:
    """The value if it is a text."""
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**63 else None


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def excerpt(body: bytes) -> str:
    """The beginning of a body in one line, for a message."""
    text = " ".join(body[: EXCERPT * 4].decode("utf-8", "replace").split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
