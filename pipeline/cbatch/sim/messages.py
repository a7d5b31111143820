"""The messages of a chat request: roles, contents, and the tool-call rules of API version 2."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .wire import Refused, bad_value

__all__ = ["Walked", "walk_messages"]

_KEYS = {
    "system": frozenset({"role", "content", "name"}),
    "developer": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "assistant": frozenset({"role", "content", "name", "reasoning", "tool_calls"}),
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}
_IMAGE_URI = re.compile(r"data:image/(png|jpe?g);base64,[A-Za-z0-9+/]+=*")
_NONE = "'NoneType' object is not iterable"  # what the service says for a null it wanted to iterate


@dataclass(slots=True)
class Walked:
    """What the messages come down to. `chars` counts content only, `prompt` also has the roles."""

    prompt: str
    chars: int
    count: int
    last_role: str
    last_user: str
    images: int


class _Text:
    """Collects text and counts images on the way through the messages."""

    __slots__ = ("images", "pieces", "unknown")

    def __init__(self, unknown: list[str]) -> None:
        self.pieces: list[str] = []
        self.images = 0
        self.unknown = unknown


def _refuse(message: str) -> Refused:
    return Refused(bad_value("messages", message))


def walk_messages(messages: Any, unknown: list[str]) -> Walked:
    """Check every message; raises Refused, and adds unsupported properties to `unknown`.

    `last_user` falls back to the last message's text when nobody is the user.
    """
    if type(messages) is not list:
        raise _refuse("body.messages: Input should be a valid list")
    if not messages:
        raise _refuse("body.messages: List should have at least 1 item")
    text = _Text(unknown)
    pieces = text.pieces
    last_user: str | None = None
    content_text = last_role = ""
    chars = 0
    has_tools = False
    for index, message in enumerate(messages):
        if type(message) is not dict:
            raise _refuse(f"messages.{index}: Input should be a valid dictionary")
        role: Any = message.get("role")
        keys = _KEYS.get(role) if type(role) is str else None
        if keys is None:
            raise _refuse(
                f"messages.{index}.role: Input should be 'assistant', 'developer', 'system', 'tool' or 'user'"
            )
        if not message.keys() <= keys:
            unknown += [f"messages.{index}.{role}.{key}" for key in message if key not in keys]
        content = message.get("content")
        content_text = content if type(content) is str else _content(text, index, role, message)
        last_role = role
        pieces.append(role)
        pieces.append(content_text)
        chars += len(content_text)
        if role == "user":
            last_user = content_text
        elif role == "assistant":
            has_tools = has_tools or "tool_calls" in message
            reasoning = message.get("reasoning")
            if reasoning is not None:
                said = reasoning if type(reasoning) is str else _parts(text, index, "assistant.reasoning", reasoning)
                pieces.append(said)
                chars += len(said)
        elif role == "tool":
            has_tools = True
    if has_tools:
        chars += _check_tool_calls(messages, text)
    return Walked(
        prompt="\n".join(pieces),
        chars=chars,
        count=len(messages),
        last_role=last_role,
        last_user=content_text if last_user is None else last_user,
        images=text.images,
    )


def _content(text: _Text, index: int, role: str, message: dict[str, Any]) -> str:
    """Content that is not a plain string."""
    content = message.get("content")
    if content is not None:
        return _parts(text, index, f"{role}.content", content)
    if role == "assistant":
        return ""  # null or absent beside tool calls
    raise _refuse(_NONE if "content" in message else f"messages.{index}.{role}.content: Field required")


def _parts(text: _Text, index: int, where: str, parts: Any) -> str:
    path = f"messages.{index}.{where}"
    if type(parts) is not list:
        raise _refuse(f"{path}: Input should be a valid string or list")
    found: list[str] = []
    for number, part in enumerate(parts):
        kind = part.get("type") if type(part) is dict else None
        if kind == "text":
            if type(part.get("text")) is not str:
                raise _refuse(f"{path}.{number}.text: Input should be a valid string")
            found.append(part["text"])
            text.unknown += [f"{path}.{number}.{key}" for key in part if key not in ("type", "text")]
        elif kind == "image_url":
            _check_image(where, part)
            text.images += 1
        else:
            raise _refuse(f"{path}.{number}.type: Input should be 'text' or 'image_url'")
    return "".join(found)


def _check_image(where: str, part: dict[str, Any]) -> None:
    if where != "user.content":
        raise _refuse("image_url content parts are only supported on user messages")
    image = part.get("image_url")
    url = image.get("url") if type(image) is dict else None
    if type(url) is str and url.startswith(("http://", "https://")):
        raise _refuse("HTTPS image URLs are not supported. Use a base64-encoded data URI instead.")
    if type(url) is not str or not _IMAGE_URI.fullmatch(url):
        raise _refuse("Invalid image_url: expected base64 data URI")


def _check_tool_calls(messages: list[dict[str, Any]], text: _Text) -> int:
    """Every call has its own id and is answered directly after it; returns the characters of the calls."""
    seen: set[str] = set()
    open_ids: list[str] = []
    chars = 0
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "tool":
            answered = message.get("tool_call_id")
            if type(answered) is not str:
                raise _refuse(f"messages.{index}.tool.tool_call_id: Field required")
            if answered not in seen:
                raise _refuse(f"messages.{index}: tool_call_id '{answered}' does not refer to an earlier tool call")
            if answered in open_ids:
                open_ids.remove(answered)
            continue
        _check_answered(open_ids, index)
        if role == "assistant" and message.get("tool_calls") is not None:
            for call_id, function_text in _calls(index, message["tool_calls"]):
                if call_id in seen:
                    raise _refuse(f"messages.{index}: duplicate tool call id '{call_id}'")
                seen.add(call_id)
                open_ids.append(call_id)
                text.pieces.append(function_text)
                chars += len(function_text)
    _check_answered(open_ids, len(messages))
    return chars


def _check_answered(open_ids: list[str], index: int) -> None:
    if open_ids:
        raise _refuse(
            f"messages.{index - 1}: tool calls must be followed by tool messages responding to each "
            f"tool_call_id, missing: {', '.join(open_ids)}"
        )


def _calls(index: int, calls: Any) -> list[tuple[str, str]]:
    """(id, name and arguments) of each call of one assistant message."""
    path = f"messages.{index}.assistant.tool_calls"
    if type(calls) is not list:
        raise _refuse(f"{path}: Input should be a valid list")
    found: list[tuple[str, str]] = []
    for number, call in enumerate(calls):
        function = call.get("function") if type(call) is dict else None
        if type(function) is not dict or call.get("type") != "function" or type(call.get("id")) is not str:
            raise _refuse(f"{path}.{number}: Input should be a function call with an id")
        name, arguments = function.get("name"), function.get("arguments")
        if type(name) is not str or type(arguments) is not str:
            raise _refuse(f"{path}.{number}.function: name and arguments should be strings")
        found.append((call["id"], name + arguments))
    return found
