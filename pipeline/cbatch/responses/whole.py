"""A chat completion in one piece -> the Response it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cbatch.responses.events import Events
from cbatch.responses.items import to_usage

if TYPE_CHECKING:
    from cbatch.responses.request import Translation

__all__ = ["as_chunk", "to_response", "to_usage"]


def to_response(
    translation: Translation, completion: Mapping[str, Any], *, response_id: str, created_at: int
) -> dict[str, Any]:
    """The Response; its status is `failed` where the completion holds no choice.

    It is read as a stream of one chunk, so that an answer has the same items either way.
    """
    events = Events(translation, response_id=response_id, created_at=created_at)
    events.chunk(as_chunk(completion))
    events.finish()
    return events.response


def as_chunk(completion: Mapping[str, Any]) -> dict[str, Any]:
    """The completion as the one chunk of a stream; one that came whole has an end, whether it is named or not."""
    choices = completion.get("choices")
    found = [_streamed(choice) for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    return {**completion, "object": "chat.completion.chunk", "choices": found}


def _streamed(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message")
    delta = dict(message) if isinstance(message, dict) else {}
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        delta["tool_calls"] = [{**call, "index": at} for at, call in enumerate(calls) if isinstance(call, dict)]
    index = choice.get("index")
    end = choice.get("finish_reason") or "stop"
    return {"index": index if isinstance(index, int) else 0, "delta": delta, "finish_reason": end}
