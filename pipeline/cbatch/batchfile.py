"""The lines of a provider's batch API: request lines as OpenAI and Cerebras take them, and result lines as they give.

    request   {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}}
    OpenAI    {"id": …, "custom_id": "a", "response": {"status_code": 200, "request_id": …, "body": {…}}, "error": null}
    Cerebras  {"custom_id": "a", "status": "succeeded", "response": {…}}

Request lines are the same for both. Bodies of results are made again from the columns of a row: what a row
does not keep (logprobs, and of a failure the server's `type` and `param`) is null in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

Row = Mapping[str, Any]  # the columns of a result row by name; times in µs

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
ID, MODEL = "custom_id", "model"
KEYS = (ID, "method", "url", "body")

# What a failure is called in the errors of the API, by status; every other 4xx is an invalid request.
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# What a failure without a code of the server's is called in an error of a result line, by our own word for it.
_CODES = {
    "source": "invalid_request",
    "render": "invalid_request",
    "bad_request": "invalid_request",
    "context_length": "context_length_exceeded",
    "rate_limited": "rate_limit_exceeded",
    "connection": "connection_error",
    "server": "server_error",
    "truncated": "incomplete_response",
    "invalid_output": "invalid_response",
}


class LineError(ValueError):
    """This request line cannot be sent; the message says why."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a request line asks for, and of which endpoint."""

    endpoint: Literal["/v1/chat/completions", "/v1/responses"]
    body: dict[str, Any]


def is_line(fields: Mapping[str, Any]) -> bool:
    """Whether a row is meant as a request line: it has an id, an endpoint and a body."""
    return ID in fields and isinstance(fields.get("url"), str) and "body" in fields


def model_of(fields: Mapping[str, Any]) -> str | None:
    """The model that a request line names; None where it names none."""
    body = fields.get("body")
    model = body.get(MODEL) if isinstance(body, Mapping) else None
    return model if isinstance(model, str) and model else None


def why_no_model(fields: Mapping[str, Any]) -> str:
    """Why a line names no model: it is wrong before that, or the name is missing, or is none."""
    try:
        body = read_line(fields).body
    except LineError as exc:
        return str(exc)
    if body.get(MODEL) is None:
        return "body.model is missing, and so is `model` in job.yaml"
    return f"body.model: read {_shown(body[MODEL])}; accepted: a model's name"


def read_line(fields: Mapping[str, Any]) -> Line:
    """What a request line asks for. Raises LineError naming the key, what was read and what is accepted."""
    for key in ("url", "body"):
        if key not in fields:
            raise LineError(f"`{key}` is missing; a request line has {', '.join(KEYS)}")
    method, url, body = fields.get("method", "POST"), fields["url"], fields["body"]
    if not isinstance(method, str) or method.upper() != "POST":
        raise LineError(f"method: read {_shown(method)}; accepted: POST")
    if url not in (CHAT, RESPONSES):
        raise LineError(f"url: read {_shown(url)}; accepted: {CHAT}, {RESPONSES}")
    if not isinstance(body, dict) or not body:
        raise LineError(f"body: read {_shown(body)}; accepted: the request, a mapping of keys")
    if body.get("stream"):
        raise LineError("body.stream: the answers of a batch do not stream; take it out, or set params.stream")
    if body.get("n") not in (None, 1):
        raise LineError(f"body.n: read {_shown(body['n'])}; every answer needs its own row: use `samples: N`")
    if url == RESPONSES and body.get("background"):
        raise LineError("body.background: a line of a batch is no background request; take it out")
    if url == RESPONSES and body.get("previous_response_id") is not None:
        raise LineError("body.previous_response_id: nothing is kept between lines; put the whole history in `input`")
    return Line(url, body)


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)  # not orjson: it refuses numbers of more than 64 bits
    return text if len(text) <= 80 else f"{text[:79]}…"


# -- result lines -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How a row's custom_id is made: its id, and what tells it from the other rows of the same id."""

    models: bool = False  # whether every prompt went to several
    samples: bool = False
    lines: bool = False  # whether the prompts were request lines

    def __call__(self, row: Row) -> str | None:
        """The custom_id of a row: `id`, `id:model`, `id:sample` or `id:model:sample`; None for a line without one."""
        name = row["id"]
        if self.lines and row["error_kind"] == "source" and row["input"] is not None:
            name = _given_id(row)  # the row's own may be made of what is in the line
            if name is None:
                return None
        parts = [name]
        if self.models:
            parts.append(row["model"])
        if self.samples:
            parts.append(str(row["sample"]))
        return ":".join(parts)


def _given_id(row: Row) -> str | None:
    """The custom_id of the line that a row was made from; None where it has none that can be one."""
    fields = _json(row["input"])
    given = fields.get(ID) if isinstance(fields, dict) else None
    return str(given) or None if isinstance(given, str | int | float) and not isinstance(given, bool) else None


def openai_line(row: Row, custom_id: str | None, body: Mapping[str, Any] | None) -> dict[str, Any]:
    """The result line as OpenAI writes it; `body` is the answer, None where the row is an error.

    As there, either `response` or `error` is null: `response` has a failure's status and message where the
    server answered with one, `error` is for everything else.
    """
    response = error = None
    status = row["http_status"]
    if body is not None:
        response = {"status_code": 200, "request_id": row["request_id"], "body": body}
    elif status is not None and status >= 400:
        response = {"status_code": status, "request_id": row["request_id"], "body": {"error": _error(row, status)}}
    else:
        error = _problem(row)
    return {"id": f"batch_req_{_token(row)}", "custom_id": custom_id, "response": response, "error": error}


def cerebras_line(row: Row, custom_id: str | None, body: Mapping[str, Any] | None) -> dict[str, Any]:
    """The result line as Cerebras writes it: the answer, or what went wrong."""
    if body is not None:
        return {"custom_id": custom_id, "status": "succeeded", "response": body}
    return {"custom_id": custom_id, "status": "failed", "error": _problem(row)}


def completion(row: Row) -> dict[str, Any]:
    """The chat.completion object that a row's answer came in."""
    message: dict[str, Any] = {"role": "assistant", "content": row["text"], "refusal": None}
    if row["reasoning"] is not None:
        message["reasoning"] = row["reasoning"]
    if calls := _json(row["tool_calls"]):
        message["tool_calls"] = [_call(call, place, row) for place, call in enumerate(calls)]
    body: dict[str, Any] = {
        "id": row["request_id"] or f"chatcmpl-{_token(row)}",
        "object": "chat.completion",
        "created": created(row),
        "model": row["served_model"] or row["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": row["finish_reason"]}],
    }
    if (usage := _usage(row)) is not None:
        body["usage"] = usage
    if row["system_fingerprint"] is not None:
        body["system_fingerprint"] = row["system_fingerprint"]
    if (clock := _time_info(row)) is not None:
        body["time_info"] = clock
    return body


def created(row: Row) -> int:
    """When the answer was asked for, in seconds since 1970; 0 where that is not known."""
    return int(row["started_at"] // 1_000_000) if row["started_at"] is not None else 0


def response_id(row: Row) -> str:
    """The id of a Response object: the same for the same row."""
    return f"resp_{_token(row)}"


def request_of(row: Row) -> dict[str, Any] | None:
    """The Responses request that a row was made from; None where its line, if it has one, asks for a completion."""
    fields = _json(row["input"])
    if not isinstance(fields, dict) or fields.get("url") != RESPONSES:
        return None
    body = fields.get("body")
    return body if isinstance(body, dict) else None


def _token(row: Row) -> str:
    """32 hex digits that are the same whenever this row is exported."""
    identity = f"{row['id']}\0{row['model']}\0{row['sample']}\0{row['digest']}"
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _error(row: Row, status: int) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    return {
        "message": row["error_message"] or row["error_kind"],
        "type": kind,
        "param": None,
        "code": row["error_code"],
    }


def _problem(row: Row) -> dict[str, Any]:
    kind = row["error_kind"]
    return {"code": row["error_code"] or _CODES.get(kind, kind), "message": row["error_message"]}


def _call(call: object, place: int, row: Row) -> object:
    """A tool call with the id and the type that clients insist on, and a server may have left out."""
    if not isinstance(call, dict):
        return call
    return {**call, "id": call.get("id") or f"call_{_token(row)[:24]}_{place}", "type": call.get("type") or "function"}


def _usage(row: Row) -> dict[str, Any] | None:
    """The usage object; None where a count that must be in it was not measured: half of one is worse than none."""
    prompt, answer, total = row["prompt_tokens"], row["completion_tokens"], row["total_tokens"]
    if prompt is None or answer is None:
        return None
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer if total is None else total,
    }
    if row["cached_tokens"] is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": row["cached_tokens"]}
    if row["reasoning_tokens"] is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": row["reasoning_tokens"]}
    return usage


def _time_info(row: Row) -> dict[str, Any] | None:
    names = {
        "queue_time": "server_queue_s",
        "prompt_time": "server_prompt_s",
        "completion_time": "server_completion_s",
        "total_time": "server_total_s",
    }
    found = {name: row[column] for name, column in names.items() if row[column] is not None}
    return found or None


def _json(text: str | None) -> Any:
    try:
        return orjson.loads(text) if text else None
    except orjson.JSONDecodeError:
        return None


def several(job: Mapping[str, Any], *, load: bool) -> Naming:
    """How the rows of a job are told apart; a load run asks every prompt again and again."""
    models: Sequence[str] = job.get("model") or ()
    lines = (job.get("input") or {}).get("format") == "openai-batch"
    return Naming(models=len(models) > 1, samples=load or (job.get("samples") or 1) > 1, lines=lines)
