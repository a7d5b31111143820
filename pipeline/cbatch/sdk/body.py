"""Parameters -> the bytes of a request."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict
from urllib.parse import urlencode

import orjson

from cbatch.sdk.given import NotGiven, Omit

Unsaid = None | Omit | NotGiven


class Sending(TypedDict, total=False):
    """Arguments of every method that are about how to send."""

    extra_headers: Mapping[str, Any] | None
    extra_query: Mapping[str, Any] | None
    extra_body: Any
    timeout: Any  # seconds, a Timeout, None for ever
    cf_ray: str | Unsaid
    x_amz_cf_id: str | Unsaid


class Sampling(Sending, total=False):
    """Fields that chat and text completions share."""

    frequency_penalty: float | Unsaid
    logit_bias: dict[str, float] | Unsaid
    max_tokens: int | Unsaid
    min_tokens: int | Unsaid
    n: int | Unsaid
    presence_penalty: float | Unsaid
    prompt_cache_key: str | Unsaid
    reasoning_format: Any
    seed: int | Unsaid
    stop: Any
    stream_options: Any
    temperature: float | Unsaid
    top_p: float | Unsaid
    user: str | Unsaid
    x_delay_time: float | Unsaid


class ChatParams(Sampling, total=False):
    """Fields of a chat completion besides messages, model and stream."""

    clear_thinking: bool | Unsaid
    disable_reasoning: bool | Unsaid
    logprobs: bool | Unsaid
    max_completion_tokens: int | Unsaid
    min_completion_tokens: int | Unsaid
    model_parameters: dict[str, object] | Unsaid
    parallel_tool_calls: bool | Unsaid
    prediction: Any
    reasoning_effort: Any
    response_format: Any
    service_tier: Any
    tool_choice: Any
    tools: Any
    top_logprobs: int | Unsaid


class TextParams(Sampling, total=False):
    """Fields of a text completion besides prompt, model and stream."""

    best_of: int | Unsaid
    echo: bool | Unsaid
    grammar_root: str | Unsaid
    logprobs: int | Unsaid
    return_raw_tokens: bool | Unsaid
    suffix: str | Unsaid


def check_names(params: Mapping[str, Any], accepted: Any) -> None:
    """Raise TypeError for a parameter that does not exist, as a call with a wrong keyword does."""
    if wrong := params.keys() - accepted.__optional_keys__:
        raise TypeError(f"create() got an unexpected keyword argument {min(wrong)!r}; new fields go into extra_body")


def encode(fields: Mapping[str, Any]) -> bytes:
    """JSON of what a user may put into a request: objects of earlier answers and iterators, too. Raises ValueError."""
    for name, value in fields.items():
        if type(value) is float and not math.isfinite(value):  # orjson writes null for them
            raise ValueError(f"{name}: {value} cannot be sent as JSON")
    listed: dict[int, tuple[Any, Any]] = {}  # an iterator can be read once, and here may be read twice

    def default(value: Any) -> Any:
        if id(value) not in listed:
            listed[id(value)] = value, _plain(value)
        return listed[id(value)][1]

    try:
        return orjson.dumps(fields, default=default)
    except TypeError:  # keys that are no texts, numbers above 64 bits: rare, so the slower one takes them
        return json.dumps(
            fields, default=default, ensure_ascii=False, separators=(",", ":"), allow_nan=False
        ).encode()  # fmt: skip


def query(fields: Mapping[str, Any]) -> str:
    """The part of an address after its path; empty where there is nothing to say."""
    pairs = [
        (name, str(item).lower() if isinstance(item, bool) else item)
        for name, value in fields.items()
        if value is not None
        for item in (value if isinstance(value, list | tuple) else [value])
    ]
    return "?" + urlencode(pairs) if pairs else ""


def _plain(value: Any) -> Any:
    """What JSON has a word for."""
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_unset=True, mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray):
        return list(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
