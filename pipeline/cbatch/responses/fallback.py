"""After a refusal by the upstream: the same request with one thing less in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from cbatch.responses.schemas import plain_schema

__all__ = ["fallback"]

_REFUSALS = (400, 422)
_UNSUPPORTED = re.compile(r"property '(?:body\.)?([\w.]+)' is unsupported")
# What may go without changing what was asked for; temperature and the like are the client's to correct.
_DROPPABLE = ("parallel_tool_calls", "reasoning_effort", "stream_options", "user")

Chat = dict[str, Any]


def fallback(chat: Mapping[str, Any], status: int, error: Mapping[str, Any]) -> Chat | None:
    """The body to send instead, None where nothing about the refusal can be mended.

    `error` is the upstream's error object. Each call takes something away from `chat` (which is not changed), so that
    repeating it ends.
    """
    if status not in _REFUSALS:
        return None
    inner = error.get("error")
    told = inner if isinstance(inner, Mapping) else error
    if told.get("code") == "context_length_exceeded":
        return None
    # `param` is often the name of the check and not of the property, so both are searched.
    words = f"{told.get('param') or ''} {told.get('message') or ''}".lower()
    for is_about, relax in _RULES:
        if is_about(words):
            relaxed = relax(dict(chat), words)
            if relaxed is not None:
                return relaxed
    return None


def _without_unsupported(chat: Chat, words: str) -> Chat | None:
    """Properties that the upstream names as unknown to it, where they are ours to leave out."""
    changed = False
    for path in _UNSUPPORTED.findall(words):
        first, *rest = path.split(".")
        if first in _DROPPABLE and first in chat:
            del chat[first]
            changed = True
        elif first == "messages" and rest[-1:] == ["reasoning"]:
            slim = _without_reasoning(chat, words)
            chat, changed = (slim, True) if slim else (chat, changed)
        elif first == "tools" and rest[-1:] == ["strict"]:
            slim = _without_strict(chat, words)
            chat, changed = (slim, True) if slim else (chat, changed)
    return chat if changed else None


def _without_choice(chat: Chat, _: str) -> Chat | None:
    """A named function -> any tool -> as the model likes."""
    choice = chat.get("tool_choice")
    if isinstance(choice, dict):
        return {**chat, "tool_choice": "required"}
    if choice in ("required", "none"):
        # "none" means no tools, and that can be said by not offering any.
        drop = {"tool_choice"} if choice == "required" else {"tool_choice", "tools", "parallel_tool_calls"}
        return {key: value for key, value in chat.items() if key not in drop}
    return None


def _without(field: str) -> Callable[[Chat, str], Chat | None]:
    def relax(chat: Chat, _: str) -> Chat | None:
        return {key: value for key, value in chat.items() if key != field} if field in chat else None

    return relax


def _without_reasoning(chat: Chat, _: str) -> Chat | None:
    """Earlier thoughts, left out of the history."""
    if not any("reasoning" in message for message in chat["messages"]):
        return None
    slim = [{k: v for k, v in message.items() if k != "reasoning"} for message in chat["messages"]]
    return {**chat, "messages": slim}


def _without_images(chat: Chat, _: str) -> Chat | None:
    changed = False
    said = []
    for message in chat["messages"]:
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") == "image_url" for part in content):
            texts = [part.get("text") or "[image left out: it cannot be shown to this model]" for part in content]
            message = {**message, "content": "\n".join(texts)}
            changed = True
        said.append(message)
    return {**chat, "messages": said} if changed else None


def _without_strict(chat: Chat, _: str) -> Chat | None:
    """No constrained decoding: schemas become hints."""
    changed = False
    tools = chat.get("tools")
    if tools and any("strict" in tool["function"] for tool in tools):
        functions = [{k: v for k, v in tool["function"].items() if k != "strict"} for tool in tools]
        chat = {**chat, "tools": [{"type": "function", "function": function} for function in functions]}
        changed = True
    spec = (chat.get("response_format") or {}).get("json_schema")
    if spec and spec.get("strict"):
        chat = {**chat, "response_format": {"type": "json_schema", "json_schema": {**spec, "strict": False}}}
        changed = True
    return chat if changed else None


def _with_plain_schemas(chat: Chat, words: str) -> Chat | None:
    """Schemas without constraints, then without keywords, and at last in the prompt."""
    slim = _without_strict(chat, words)
    if slim is not None:
        return slim
    changed = False
    tools = chat.get("tools")
    if tools:
        plain = [{**tool["function"], "parameters": plain_schema(tool["function"]["parameters"])} for tool in tools]
        if plain != [tool["function"] for tool in tools]:
            chat = {**chat, "tools": [{"type": "function", "function": function} for function in plain]}
            changed = True
    spec = (chat.get("response_format") or {}).get("json_schema")
    if spec:
        schema = plain_schema(spec["schema"])
        if schema != spec["schema"]:
            chat = {**chat, "response_format": {"type": "json_schema", "json_schema": {**spec, "schema": schema}}}
            changed = True
    return chat if changed else _with_format_in_prompt(chat, words)


def _with_format_in_prompt(chat: Chat, _: str) -> Chat | None:
    """The format asked for in words, behind the leading system messages: the prefix of the prompt stays the same."""
    form = chat.get("response_format")
    if form is None:
        return None
    spec = form.get("json_schema")
    wish = "Your final answer must be one JSON value and nothing else: no other text, no markdown fence."
    if spec:
        wish += f" It must match this JSON Schema:\n{orjson.dumps(spec['schema']).decode()}"
    said = chat["messages"]
    place = next((index for index, message in enumerate(said) if message["role"] != "system"), len(said))
    slim = {key: value for key, value in chat.items() if key != "response_format"}
    return {**slim, "messages": [*said[:place], {"role": "system", "content": wish}, *said[place:]]}


def _mentions(*all_of: str) -> Callable[[str], bool]:
    return lambda words: all(word in words for word in all_of)


# The first rule that is about the refusal and still finds something to take away.
_RULES: tuple[tuple[Callable[[str], bool], Callable[[Chat, str], Chat | None]], ...] = (
    (_mentions("is unsupported"), _without_unsupported),
    (_mentions("tool_choice"), _without_choice),
    (_mentions("'auto' or 'none'"), _without_choice),
    (_mentions("parallel_tool_calls"), _without("parallel_tool_calls")),
    (_mentions("reasoning_effort"), _without("reasoning_effort")),
    (_mentions("assistant.reasoning"), _without_reasoning),
    (_mentions("not support image"), _without_images),
    (_mentions("strict"), _without_strict),
    (_mentions("response_format", "tool"), _with_format_in_prompt),
    (_mentions("schema"), _with_plain_schemas),
    (_mentions("response_format"), _with_format_in_prompt),
    (_mentions("reasoning"), _without_reasoning),
    (_mentions("reasoning"), _without("reasoning_effort")),
)
