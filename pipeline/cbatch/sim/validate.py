"""A chat request's body, checked the way the service checks it, and reduced to what the other stages read.

The first offence of a value is reported under its field's name; unknown properties are collected and reported
together, one line each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from .fields import FIELDS, INNER
from .messages import walk_messages
from .models import Limits, Model
from .strict import strict_problem
from .wire import TOO_LARGE, ErrorAnswer, Refused, bad_value, unsupported

__all__ = ["Chat", "check_model", "parse_chat"]

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CHOICES = frozenset({"none", "auto", "required"})


@dataclass(slots=True)
class Chat:
    """A valid request. `prompt` is all its text in order, `last_user` the text of the last user message."""

    body: dict[str, Any]
    model: str
    prompt: str
    prompt_chars: int
    message_count: int
    last_role: str
    last_user: str
    images: int
    stream: bool
    max_tokens: int | None
    min_tokens: int
    n: int
    stop: tuple[str, ...]
    effort: str | None
    reasoning_format: str
    json_mode: str  # text, json_object or json_schema
    schema: dict[str, Any] | None
    tools: list[dict[str, Any]]
    tool_choice: str  # none, auto, required, or the name of a function after "function:"
    logprobs: bool = False
    top_logprobs: int = 0
    service_tier: str = "default"
    json_text: bytes = field(default=b"", repr=False)


def parse_chat(body: Any) -> Chat:
    """Check a decoded body; raises Refused (400 or 422). What depends on the model is `check_model`'s."""
    if type(body) is not dict:
        raise Refused(bad_value("validation_error", "body: Input should be a valid dictionary"))
    unknown: list[str] = []
    for name, value in body.items():
        check = FIELDS.get(name)
        if check is None:
            unknown.append(f"body.{name}")
        elif value is not None:
            problem = check(value)
            if problem is not None:
                raise Refused(bad_value(name, f"body.{name}: {problem}"))
            if name in INNER:
                unknown += [f"body.{name}.{inner}" for inner in value if inner not in INNER[name]]
    get = body.get
    for name in ("model", "messages"):
        if get(name) is None:
            raise Refused(bad_value(name, f"body.{name}: Field required"))
    walked = walk_messages(get("messages"), unknown)
    tools, tools_text = _tools(get("tools"), unknown)
    json_mode, schema = _response_format(get("response_format"))
    if unknown:
        raise Refused(unsupported(unknown))
    reasoning_format = get("reasoning_format") or "none"
    if reasoning_format == "raw" and json_mode != "text":
        raise Refused(bad_value("reasoning_format", f"reasoning_format 'raw' is not supported with {json_mode}"))
    limit = get("max_completion_tokens")
    if limit is None:
        limit = get("max_tokens")
    if limit == 0:
        raise Refused(bad_value("max_completion_tokens", "max_completion_tokens must be -1 or at least 1"))
    n = get("n") or 1
    logprobs = bool(get("logprobs"))
    if get("top_logprobs") and not logprobs:
        raise Refused(bad_value("top_logprobs", "top_logprobs requires logprobs to be true"))
    if get("prediction") is not None and (tools or logprobs or n > 1):
        raise Refused(bad_value("prediction", "prediction is not supported with tools, logprobs or n > 1"))
    stop = get("stop")
    return Chat(
        body=body,
        model=body["model"],
        prompt=tools_text + walked.prompt if tools_text else walked.prompt,
        prompt_chars=walked.chars + len(tools_text),
        message_count=walked.count,
        last_role=walked.last_role,
        last_user=walked.last_user,
        images=walked.images,
        stream=bool(get("stream")),
        max_tokens=None if limit is None or limit < 0 else limit,
        min_tokens=max(0, get("min_completion_tokens") or get("min_tokens") or 0),
        n=n,
        stop=() if stop is None else (stop,) if type(stop) is str else tuple(stop),
        effort="none" if get("disable_reasoning") else get("reasoning_effort"),
        reasoning_format=reasoning_format,
        json_mode=json_mode,
        schema=schema,
        tools=tools,
        tool_choice=_tool_choice(get("tool_choice"), tools),
        logprobs=logprobs,
        top_logprobs=get("top_logprobs") or 0,
        service_tier=get("service_tier") or "default",
    )


def _response_format(value: dict[str, Any] | None) -> tuple[str, dict[str, Any] | None]:
    if value is None:
        return "text", None
    kind = value.get("type")
    if kind in ("text", "json_object"):
        return kind, None

    def refuse(message: str) -> Refused:
        return Refused(bad_value("response_format", message))

    if kind != "json_schema":
        raise refuse("body.response_format.type: Input should be one of 'json_object', 'json_schema', 'text'")
    spec = value.get("json_schema")
    if type(spec) is not dict or type(spec.get("name")) is not str:
        raise refuse("body.response_format.json_schema.name: Field required")
    schema = spec.get("schema")
    if type(schema) is not dict:
        raise refuse("body.response_format.json_schema.schema: Field required")
    strict = spec.get("strict")
    if strict is not None and type(strict) is not bool:
        raise refuse("body.response_format.json_schema.strict: Input should be a valid boolean")
    if strict:
        problem = strict_problem(schema)
        if problem:
            raise refuse(problem)
    return "json_schema", schema


def _tools(value: Any, unknown: list[str]) -> tuple[list[dict[str, Any]], str]:
    """The offered functions, and their text as it counts in the prompt."""
    if not value:
        if value is not None and value != []:
            raise Refused(bad_value("tools", "body.tools: Input should be a valid list"))
        return [], ""
    if type(value) is not list:
        raise Refused(bad_value("tools", "body.tools: Input should be a valid list"))
    functions: list[dict[str, Any]] = []
    for index, tool in enumerate(value):
        path = f"body.tools.{index}"
        function = tool.get("function") if type(tool) is dict else None
        if type(function) is not dict or tool.get("type") != "function":
            raise Refused(bad_value("tools", f"{path}: Input should be a tool of type 'function'"))
        unknown += [f"{path}.{key}" for key in tool if key not in ("type", "function")]
        unknown += [f"{path}.function.{key}" for key in function if key not in _FUNCTION_KEYS]
        name = function.get("name")
        if type(name) is not str or not _TOOL_NAME.fullmatch(name):
            raise Refused(
                bad_value("tools", f"{path}.function.name: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
            )
        parameters = function.get("parameters")
        if parameters is not None and type(parameters) is not dict:
            raise Refused(bad_value("tools", f"{path}.function.parameters: Input should be a valid dictionary"))
        functions.append(function)
    strict = {bool(function.get("strict")) for function in functions}
    if len(strict) > 1:
        message = (
            "Tools with mixed values for 'strict' are not allowed. "
            "Please set all tools to 'strict: true' or 'strict: false'"
        )
        raise Refused(bad_value("tools", message, status=422))
    if strict == {True}:
        for function in functions:
            problem = strict_problem(function.get("parameters") or {})
            if problem:
                raise Refused(bad_value("tools", problem))
    return functions, orjson.dumps(value).decode()


_FUNCTION_KEYS = frozenset({"name", "description", "parameters", "strict"})


def _tool_choice(value: Any, tools: list[dict[str, Any]]) -> str:
    if value is None:
        return "auto" if tools else "none"
    if not tools:
        raise Refused(bad_value("tool_choice", "tool_choice is only allowed when tools are specified"))
    if type(value) is str and value in _CHOICES:
        return value
    function = value.get("function") if type(value) is dict else None
    if type(function) is not dict or value.get("type") != "function":
        raise Refused(
            bad_value("tool_choice", "body.tool_choice: Input should be 'none', 'auto', 'required' or a function")
        )
    name = function.get("name")
    if name not in [offered["name"] for offered in tools]:
        raise Refused(bad_value("tool_choice", f"tool_choice function '{name}' is not among the tools"))
    return f"function:{name}"


def check_model(chat: Chat, model: Model, limits: Limits) -> None:
    """The rules that depend on the model; raises Refused."""
    answer = _model_problem(chat, model, limits)
    if answer is not None:
        raise Refused(answer)


def _model_problem(chat: Chat, model: Model, limits: Limits) -> ErrorAnswer | None:
    get = chat.body.get
    effort = get("reasoning_effort")
    if effort is not None and effort not in model.efforts:
        return bad_value("reasoning_effort", f"reasoning_effort='{effort}' is not supported by this model.")
    if get("disable_reasoning") is not None and not model.can_disable:
        return bad_value("disable_reasoning", "disable_reasoning is not supported by this model.")
    if chat.reasoning_format in ("raw", "hidden") and not model.raw_and_hidden:
        message = f"reasoning_format='{chat.reasoning_format}' is not supported by this model."
        return bad_value("reasoning_format", message)
    if get("parallel_tool_calls") is False and not model.serial_tools:
        return bad_value("parallel_tool_calls", "parallel_tool_calls=False is not supported by this model.")
    if get("model_parameters"):
        return bad_value("model_parameters", "model_parameters is not supported by this model.")
    if chat.images and not model.vision:
        return bad_value("messages", f"Model {model.id} does not support image inputs")
    if chat.images > limits.images:
        return ErrorAnswer(413, TOO_LARGE.body.replace(b"Total request size", b"Number of image inputs"))
    return None
