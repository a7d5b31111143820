"""The JSON that a Response consists of: the object itself, its usage, its text items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbatch.responses.request import Translation


def response_object(translation: Translation, response_id: str, created_at: int) -> dict[str, Any]:
    """A Response of which nothing has been said yet."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": translation.chat["model"],
        "output": [],
        **translation.echo,
        "usage": None,
    }


def to_usage(usage: object) -> dict[str, Any] | None:
    """Usage in the words of the Responses API; None where it is not complete.

    Clients read all of it or fail: half of a usage makes Codex ask for the whole answer again.
    """
    if not isinstance(usage, Mapping):
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    total = _count(usage.get("total_tokens"))
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion if total is None else total,
    }


def _detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return (_count(details.get(name)) if isinstance(details, Mapping) else None) or 0


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
        return None
    return int(value)


def summary_part(text: str) -> dict[str, Any]:
    """Reasoning is given as its summary: the only form that Codex shows."""
    return {"type": "summary_text", "text": text}


def text_part(text: str) -> dict[str, Any]:
    """The one part of a message; Codex reads no other kind."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def reasoning_item(item_id: str, summary: list[dict[str, Any]], status: str) -> dict[str, Any]:
    """An item of reasoning."""
    return {"type": "reasoning", "id": item_id, "summary": summary, "status": status}


def message_item(item_id: str, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    """A message of the assistant."""
    return {"type": "message", "id": item_id, "role": "assistant", "status": status, "content": content}
