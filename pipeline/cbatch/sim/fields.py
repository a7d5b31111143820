"""The top-level fields of a chat request: one check each, called with a value that is not null.

A check returns what is wrong, in the words of the service's own validator, or None. Types are compared
exactly: JSON's true is not the number 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .models import EFFORTS

__all__ = ["FIELDS", "INNER"]

_FORMATS = frozenset({"none", "parsed", "text_parsed", "raw", "hidden"})
_TIERS = frozenset({"auto", "default", "flex", "priority"})
_MAX_N = 128

Check = Callable[[Any], str | None]


def _number(low: float, high: float) -> Check:
    def check(value: Any) -> str | None:
        if type(value) is not float and type(value) is not int:
            return "Input should be a valid number"
        if not low <= value <= high:
            return f"Input should be between {low:g} and {high:g}"
        return None

    return check


def _integer(low: int, high: float = float("inf")) -> Check:
    def check(value: Any) -> str | None:
        if type(value) is not int:
            return "Input should be a valid integer"
        if value < low:
            return f"Input should be greater than or equal to {low}"
        return f"Input should be less than or equal to {high:g}" if value > high else None

    return check


def _boolean(value: Any) -> str | None:
    return None if value is True or value is False else "Input should be a valid boolean"


def _string(value: Any) -> str | None:
    return None if type(value) is str else "Input should be a valid string"


def _cache_key(value: Any) -> str | None:
    if type(value) is not str:
        return "Input should be a valid string"
    return None if len(value) <= 1024 else "String should have at most 1024 characters"


def _among(accepted: frozenset[str] | tuple[str, ...]) -> Check:
    listed = ", ".join(f"'{one}'" for one in sorted(accepted))

    def check(value: Any) -> str | None:
        return None if type(value) is str and value in accepted else f"Input should be one of {listed}"

    return check


def _object(value: Any) -> str | None:
    return None if type(value) is dict else "Input should be a valid dictionary"


def _stop(value: Any) -> str | None:
    if type(value) is str:
        return None
    if type(value) is not list or any(type(one) is not str for one in value):
        return "Input should be a valid string or list of strings"
    return None if len(value) <= 4 else "List should have at most 4 items"


def _logit_bias(value: Any) -> str | None:
    if type(value) is not dict:
        return "Input should be a valid dictionary"
    inside = _number(-100, 100)
    for token, bias in value.items():
        problem = inside(bias) if token.isdecimal() else "Keys should be token ids"
        if problem:
            return problem
    return None


def _stream_options(value: Any) -> str | None:
    if type(value) is not dict:
        return "Input should be a valid dictionary"
    include = value.get("include_usage")
    return None if include is None else _boolean(include)


def _prediction(value: Any) -> str | None:
    if type(value) is not dict or value.get("type") != "content" or "content" not in value:
        return "Input should be an object with type 'content' and a content"
    return None


def _anything(value: Any) -> None:
    """For fields with a check of their own further down."""


FIELDS: dict[str, Check] = {
    "model": _string,
    "messages": _anything,
    "max_completion_tokens": _integer(-1),
    "max_tokens": _integer(-1),
    "min_tokens": _integer(-1),
    "min_completion_tokens": _integer(-1),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "seed": _integer(-(2**63)),
    "stop": _stop,
    "n": _integer(1, _MAX_N),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "logit_bias": _logit_bias,
    "logprobs": _boolean,
    "top_logprobs": _integer(0, 20),
    "user": _string,
    "stream": _boolean,
    "stream_options": _stream_options,
    "reasoning_effort": _among(EFFORTS),
    "reasoning_format": _among(_FORMATS),
    "clear_thinking": _boolean,
    "disable_reasoning": _boolean,
    "response_format": _object,
    "tools": _anything,
    "tool_choice": _anything,
    "parallel_tool_calls": _boolean,
    "prediction": _prediction,
    "prompt_cache_key": _cache_key,
    "service_tier": _among(_TIERS),
    "model_parameters": _object,
}
INNER = {"stream_options": frozenset({"include_usage"})}
