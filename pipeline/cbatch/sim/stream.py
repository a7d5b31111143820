"""Answers as bytes: one JSON body, or the events of a stream, keys in the order of the wire."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import orjson

from .answers import Answer, ToolCall
from .models import Model
from .timing import Timing, event_count
from .validate import Chat

__all__ = ["DONE", "USUAL", "Head", "Shape", "body", "error_event", "events"]

DONE = b"data: [DONE]\n\n"
_SIZES = (
    0.0,
    -0.3,
    0.2,
    -0.1,
    0.35,
    -0.25,
    0.1,
)  # how far a cut is moved, in events: sizes vary as on the wire


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk of one answer repeats. `created` is Unix seconds."""

    id: str
    created: float
    model: Model
    named: str  # the model the answer names; another one only by fault
    prompt_tokens: int
    cached_tokens: int
    timing: Timing
    usage: bool = True  # False leaves usage and time_info out


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a scripted answer's bytes do otherwise than usual; script.py describes each."""

    fragments: int | None = None
    both: bool | None = None
    interleave: bool = False
    omit: frozenset[str] = frozenset()


USUAL = Shape()


def _usage(head: Head, answers: Sequence[Answer], chat: Chat) -> dict[str, Any]:
    completion = sum(answer.completion_tokens for answer in answers)
    reasoning = sum(answer.reasoning_tokens for answer in answers)
    details: dict[str, int] = {"reasoning_tokens": reasoning}
    if head.model.prediction_details:
        details = {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0, **details}
    usage: dict[str, Any] = {
        "total_tokens": head.prompt_tokens + completion,
        "completion_tokens": completion,
        "completion_tokens_details": details,
        "prompt_tokens": head.prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": head.cached_tokens},
    }
    if chat.images:
        usage["image_tokens"] = 280 * chat.images
    return usage


def _time_info(head: Head) -> dict[str, float]:
    timing = head.timing
    return {
        "queue_time": timing.queue_s,
        "prompt_time": timing.prompt_s,
        "completion_time": timing.completion_s,
        "total_time": timing.total_s,
    }


def body(head: Head, answers: Sequence[Answer], chat: Chat, shape: Shape = USUAL) -> bytes:
    """The whole answer as one JSON object."""
    choices = []
    omit = shape.omit
    for index, answer in enumerate(answers):
        message: dict[str, Any] = {}
        if answer.content is not None:
            message["content"] = answer.content
        if answer.reasoning:
            message["reasoning"] = answer.reasoning
        message["role"] = "assistant"
        if answer.tool_calls:
            message["tool_calls"] = [
                {
                    "function": {"name": call.name, "arguments": call.arguments},
                    "type": "function",
                    **({} if "id" in omit else {"id": call.id}),
                }
                for call in answer.tool_calls
            ]
        choice: dict[str, Any] = {"finish_reason": answer.finish_reason, "index": index, "message": message}
        if "finish_reason" in omit:
            del choice["finish_reason"]
        if chat.logprobs:
            choice["logprobs"] = _logprobs(answer.content or "", chat.top_logprobs)
        choices.append(choice)
    whole: dict[str, Any] = {
        "id": head.id,
        "choices": choices,
        "created": int(head.created),
        "model": head.named,
        "system_fingerprint": head.model.fingerprint,
        "object": "chat.completion",
    }
    if head.usage and "usage" not in omit:
        whole["usage"] = _usage(head, answers, chat)
        whole["time_info"] = {"created": head.created, **_time_info(head)}
    if chat.service_tier == "auto":
        whole["service_tier_used"] = "default"
    return orjson.dumps(whole)


def events(head: Head, answers: Sequence[Answer], chat: Chat, shape: Shape = USUAL) -> list[bytes]:
    """The stream: per choice its role, reasoning, content and tool calls, and its finish; [DONE] at the end.

    `usage` and `time_info` are in the last finish chunk, whether asked for or not.
    """
    before = b'data: {"id":"' + head.id.encode() + b'","choices":['
    common = {
        "created": int(head.created),
        "model": head.named,
        "system_fingerprint": head.model.fingerprint,
        "object": "chat.completion.chunk",
    }
    after = b"]," + orjson.dumps(common)[1:] + b"\n\n"
    found: list[bytes] = []
    omit = shape.omit
    for index, answer in enumerate(answers):
        between = b',"index":%d}' % index + after
        opening = before + b'{"delta":'
        for delta in _deltas(head, answer, shape):
            closing = between
            if chat.logprobs and "content" in delta:
                logprobs = orjson.dumps(_logprobs(delta["content"], chat.top_logprobs))
                closing = b',"index":%d,"logprobs":' % index + logprobs + b"}" + after
            found.append(opening + orjson.dumps(delta) + closing)
        last: dict[str, Any] = dict(common)
        if index == len(answers) - 1 and head.usage and "usage" not in omit:
            last["usage"] = _usage(head, answers, chat)
            last["time_info"] = {**_time_info(head), "created": head.created}
        if chat.service_tier == "auto":
            last["service_tier_used"] = "default"
        reason = b"" if "finish_reason" in omit else b'"finish_reason":' + orjson.dumps(answer.finish_reason) + b","
        finish = b"{}," + reason + b'"index":%d}],' % index
        found.append(opening + finish + orjson.dumps(last)[1:] + b"\n\n")
    if "done" not in omit:
        found.append(DONE)
    return found


def _deltas(head: Head, answer: Answer, shape: Shape) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant"}
    reasoning, content = answer.reasoning or "", answer.content or ""
    shown = len(reasoning) + len(content)
    border = len(reasoning)
    start = 0
    empty_at = 2 if head.model.empty_deltas else -1
    rate = head.model.tokens_per_s
    ends = _cuts(shown, event_count(shown // 4, rate) or 1)
    if shape.both is not None and reasoning and content:
        ends = _cut_at(border, ends, together=shape.both)
    for number, end in enumerate(ends):
        if number == empty_at:
            yield {}
        delta: dict[str, Any] = {}
        if start < border:
            delta["reasoning"] = reasoning[start:end]
        if end > border:
            delta["content"] = content[max(0, start - border) : end - border]
        yield delta
        start = end
    if answer.content == "":
        yield {"content": ""}
    if not answer.tool_calls:
        return
    calls = [_fragments(head, call, index, shape) for index, call in enumerate(answer.tool_calls)]
    for fragment in chain.from_iterable(zip_longest(*calls) if shape.interleave else calls):
        if fragment is not None:
            yield {"tool_calls": [fragment]}


def _cut_at(border: int, ends: list[int], *, together: bool) -> list[int]:
    """The same pieces, but what is left and right of `border` surely in one, or surely in two."""
    others = [end for end in ends if end != border]
    return others if together else sorted([*others, border])


def _fragments(head: Head, call: ToolCall, index: int, shape: Shape) -> list[dict[str, Any]]:
    """One call's fragments: its name first, then its arguments in pieces, or all of them with the name."""
    arguments = call.arguments
    count = shape.fragments
    opening = arguments if count == 0 or (count is None and head.model.whole_tool_calls) else ""
    first = {"name": call.name, "arguments": opening}
    found: list[dict[str, Any]] = [{"function": first, "type": "function", "id": call.id, "index": index}]
    rest = 0 if opening else len(arguments)
    if count is None:
        ends = _cuts(rest, max(1, event_count(rest // 4, head.model.tokens_per_s)))
    else:
        ends = sorted({rest * (number + 1) // count for number in range(count)} - {0})
    start = 0
    for end in ends:
        found.append({"function": {"arguments": arguments[start:end]}, "type": "function", "index": index})
        start = end
    for missing in shape.omit & {"id", "index"}:
        for fragment in found:
            fragment.pop(missing, None)
    return found


def _cuts(length: int, count: int) -> list[int]:
    """Ends of at most `count` non-empty pieces that together are `length` long, of varying size."""
    if length <= 0:
        return []
    each = length / count
    ends = [round(each * (i + 1 + _SIZES[i % len(_SIZES)])) for i in range(count - 1)]
    ends.append(length)
    return [end for before, end in zip([0, *ends], ends, strict=False) if before < end <= length]


def _logprobs(text: str, top: int) -> dict[str, Any]:
    """Plausible log probabilities, one entry per token of four characters."""
    found = []
    for start in range(0, len(text), 4):
        token = text[start : start + 4]
        entry = {"token": token, "logprob": -0.125, "bytes": list(token.encode())}
        others = [{**entry, "logprob": -0.125 - 2.0 * rank} for rank in range(top)]
        found.append({**entry, "top_logprobs": others})
    return {"content": found, "refusal": None}


def error_event(*, named: bool) -> bytes:
    """A failure inside a stream: wrapped, with a status code, or as an `event: error` without one."""
    error = {
        "message": "Service is temporarily unavailable.",
        "type": "server_error",
        "param": "",
        "code": "service_unavailable",
    }
    if named:
        return b"event: error\ndata: " + orjson.dumps({"error": error}) + b"\n\n"
    return b"data: " + orjson.dumps({"error": error, "status_code": 503}) + b"\n\n"
