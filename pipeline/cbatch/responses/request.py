"""A Responses request -> a chat completions request.

The chat body is built from a whitelist, never by copying and deleting: the upstream refuses a property that it does not
know, and clients invent new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cbatch import catalog
from cbatch.responses.history import messages
from cbatch.responses.schemas import strict_schema
from cbatch.responses.tools import ToolNames, TranslationError, chosen, declared_tools

__all__ = ["Target", "Translation", "TranslationError", "input_items", "target", "to_chat"]

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra")
# What the answer's Response object repeats where the request did not say it: OpenAI's own defaults.
_ECHOED: dict[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "store": True,
    "temperature": None,
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the upstream model takes."""

    model: str
    efforts: tuple[str, ...] = ("low", "medium", "high")  # () = not a reasoning model: neither effort nor reasoning
    vision: bool = False
    default_max_tokens: int | None = None  # max_completion_tokens where the client gave none


def target(model: str, default_max_tokens: int | None = None) -> Target:
    """What the catalog knows of the model; an unknown one is tried as a reasoning model without eyes."""
    card = catalog.card(model)
    if card is None or card.efforts is None:
        return Target(model=model, default_max_tokens=default_max_tokens)
    return Target(model=model, efforts=card.efforts, vision=card.vision, default_max_tokens=default_max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A request in both worlds: what is sent, and what is needed to give the answer in the client's terms."""

    chat: dict[str, Any]  # the chat completions body, its keys in a stable order
    tools: ToolNames
    echo: dict[str, Any]  # what a Response object repeats of its request
    stream: bool


def to_chat(request: Mapping[str, Any], target: Target) -> Translation:
    """The same request always gives the same bytes, and a longer history only adds messages: prompts stay cached.

    `input` is the whole history already. Raises TranslationError for what chat completions cannot do.
    """
    _refuse_unsupported(request)
    items = input_items(request)
    tools, names = declared_tools(request.get("tools"), items)
    choice, offered = chosen(request.get("tool_choice"), tools, names)
    instructions = request.get("instructions")
    said = messages(items, names, vision=target.vision, reasoning=bool(target.efforts))
    if isinstance(instructions, str):
        if instructions:
            said.insert(0, {"role": "system", "content": instructions})
    elif instructions is not None:
        raise TranslationError("instructions should be a string", param="instructions", code="invalid_type")
    if not said:
        raise TranslationError("input is empty", param="input", code="missing_parameter")
    # Tools first and what changes last is the order of the prompt upstream, whatever the order of the keys.
    chat: dict[str, Any] = {"model": target.model, "messages": said}
    if offered:
        chat["tools"] = list(offered)
        if choice is not None:
            chat["tool_choice"] = choice
        if request.get("parallel_tool_calls") is True:
            chat["parallel_tool_calls"] = True  # false is refused by some models, and never needed
    limit = _max_tokens(request) or target.default_max_tokens
    if limit is not None:
        chat["max_completion_tokens"] = limit
    for field in ("temperature", "top_p", "user"):
        if request.get(field) is not None:
            chat[field] = request[field]
    effort = _effort(request.get("reasoning"), target.efforts)
    if effort is not None:
        chat["reasoning_effort"] = effort
    form = _response_format(request.get("text"))
    if form is not None:
        chat["response_format"] = form
    stream = request.get("stream") is True
    if stream:
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    return Translation(chat=chat, tools=names, echo=_echo(request), stream=stream)


def input_items(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`input` as a list of items; a string is one user message. Raises TranslationError."""
    items = request.get("input")
    if items is None:
        return []
    if isinstance(items, str):
        return [{"type": "message", "role": "user", "content": items}]
    if not isinstance(items, list):
        raise TranslationError("input should be a string or a list of items", param="input", code="invalid_type")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            where = f"input[{index}]"
            raise TranslationError(f"{where} should be an object", param=where, code="invalid_type")
        for name in ("type", "role"):
            if not isinstance(item.get(name), str | None):
                where = f"input[{index}].{name}"
                raise TranslationError(f"{where} should be a string", param=where, code="invalid_type")
    return items


def _refuse_unsupported(request: Mapping[str, Any]) -> None:
    if request.get("background"):
        message = "background responses are not supported: leave `background` out and wait for the answer"
        raise TranslationError(message, param="background", code="unsupported_parameter")
    if request.get("conversation") is not None:
        message = "conversations are not kept here: send the history in `input`, or use previous_response_id"
        raise TranslationError(message, param="conversation", code="unsupported_parameter")
    if request.get("prompt") is not None:
        message = "stored prompt templates are not supported: send the text in `instructions` and `input`"
        raise TranslationError(message, param="prompt", code="unsupported_parameter")


def _max_tokens(request: Mapping[str, Any]) -> int | None:
    limit = request.get("max_output_tokens")
    if limit is None:
        return None
    if type(limit) is not int or limit < 1:
        raise TranslationError("max_output_tokens should be a positive integer", param="max_output_tokens")
    return limit


def _effort(reasoning: Any, efforts: tuple[str, ...]) -> str | None:
    """The nearest effort that the model takes, more rather than less; None leaves it to the model."""
    wanted = reasoning.get("effort") if isinstance(reasoning, dict) else None
    if wanted in efforts:
        return str(wanted)
    if wanted not in _EFFORTS:
        return None
    # "none" would switch off what the client asked for.
    ranks = sorted(_EFFORTS.index(each) for each in efforts if each in _EFFORTS and each != "none")
    if not ranks:
        return None
    at_least = [rank for rank in ranks if rank >= _EFFORTS.index(wanted)]
    return _EFFORTS[at_least[0] if at_least else ranks[-1]]


def _response_format(text: Any) -> dict[str, Any] | None:
    form = text.get("format") if isinstance(text, dict) else None
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind != "json_schema":
        message = "text.format.type should be 'text', 'json_object' or 'json_schema'"
        raise TranslationError(message, param="text.format.type")
    schema = form.get("schema")
    if not isinstance(schema, dict):
        message = "text.format.schema should be a JSON Schema object"
        raise TranslationError(message, param="text.format.schema", code="missing_parameter")
    name = form.get("name")
    spec: dict[str, Any] = {"name": name if isinstance(name, str) and name else "response"}
    if isinstance(form.get("description"), str):
        spec["description"] = form["description"]
    fitting = strict_schema(schema) if form.get("strict") is True else None
    spec["strict"] = fitting is not None
    spec["schema"] = schema if fitting is None else fitting
    return {"type": "json_schema", "json_schema": spec}


def _echo(request: Mapping[str, Any]) -> dict[str, Any]:
    echo = {field: default if request.get(field) is None else request[field] for field, default in _ECHOED.items()}
    reasoning = request.get("reasoning")
    given = reasoning if isinstance(reasoning, dict) else {}
    echo["reasoning"] = {"effort": given.get("effort"), "summary": given.get("summary")}
    text = request.get("text")
    echo["text"] = {"format": {"type": "text"}, **(text if isinstance(text, dict) else {})}
    return echo
