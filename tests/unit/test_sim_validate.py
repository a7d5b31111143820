"""Which chat requests the simulator refuses, and with which body."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbatch.sim.models import MODELS, Limits
from cbatch.sim.validate import check_model, parse_chat
from cbatch.sim.wire import Refused

USER = {"role": "user", "content": "hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLS = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "ok"}


def _tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def _accept(body: Any) -> None:
    chat = parse_chat(body)
    check_model(chat, MODELS[chat.model], Limits())


def _refusal(body: Any) -> tuple[int, dict[str, str]]:
    with pytest.raises(Refused) as caught:
        _accept(body)
    answer = caught.value.answer
    return answer.status, json.loads(answer.body)


def _with(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-oss-120b", "messages": [USER]} | fields


SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="a model and one message are enough"),
        pytest.param({"temperature": 2}, id="temperature 2"),
        pytest.param({"temperature": None, "stop": None, "tools": None}, id="null means absent"),
        pytest.param({"max_completion_tokens": -1}, id="-1 means no limit"),
        pytest.param({"max_tokens": 5}, id="the old name of the limit"),
        pytest.param({"stop": ["a", "b", "c", "d"]}, id="four stop sequences"),
        pytest.param({"frequency_penalty": -2, "presence_penalty": 2, "logit_bias": {"5": 1}}, id="penalties"),
        pytest.param({"logprobs": True, "top_logprobs": 20}, id="log probabilities"),
        pytest.param({"reasoning_effort": "low", "reasoning_format": "raw"}, id="reasoning"),
        pytest.param({"stream": True, "stream_options": {"include_usage": True}}, id="streaming"),
        pytest.param({"tools": [_tool()], "tool_choice": "auto"}, id="a tool without parameters"),
        pytest.param({"tools": []}, id="no tools, as a list"),
        pytest.param({"service_tier": "flex", "user": "u", "prompt_cache_key": "k"}, id="accounting fields"),
        pytest.param({"prediction": {"type": "content", "content": "x"}}, id="a prediction"),
        pytest.param({"messages": [{"role": "developer", "content": "d"}, USER]}, id="a developer message"),
        pytest.param({"messages": [USER, CALLS, RESULT]}, id="a tool call and its result"),
        pytest.param(
            {"messages": [USER, {"role": "assistant", "content": "a", "reasoning": "r"}, USER]},
            id="reasoning in the history",
        ),
        pytest.param({"model": "qwen-3.8-27b", "messages": [{"role": "user", "content": [IMAGE]}]}, id="an image"),
        pytest.param({"model": "zai-glm-4.7", "disable_reasoning": True, "clear_thinking": True}, id="GLM's own"),
    ],
)
def test_valid_requests_are_accepted(fields: dict[str, Any]) -> None:
    _accept(_with(**fields))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        pytest.param({"model": None}, "model", id="no model"),
        pytest.param({"model": 7}, "model", id="a model that is a number"),
        pytest.param({"messages": None}, "messages", id="no messages"),
        pytest.param({"messages": []}, "messages", id="an empty list of messages"),
        pytest.param({"messages": "hi"}, "messages", id="messages that are a string"),
        pytest.param({"messages": ["hi"]}, "messages", id="a message that is a string"),
        pytest.param({"messages": [{"role": "robot", "content": "x"}]}, "messages", id="an unknown role"),
        pytest.param({"messages": [{"role": ["user"], "content": "x"}]}, "messages", id="a role that is a list"),
        pytest.param({"messages": [{"role": "user"}]}, "messages", id="a user without content"),
        pytest.param({"messages": [{"role": "user", "content": 5}]}, "messages", id="content that is a number"),
        pytest.param({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages", id="audio"),
        pytest.param({"temperature": 2.1}, "temperature", id="temperature above 2"),
        pytest.param({"temperature": "hot"}, "temperature", id="temperature in words"),
        pytest.param({"temperature": True}, "temperature", id="true is not a number"),
        pytest.param({"top_p": 1.5}, "top_p", id="top_p above 1"),
        pytest.param({"max_completion_tokens": 0}, "max_completion_tokens", id="a limit of zero"),
        pytest.param({"max_completion_tokens": -2}, "max_completion_tokens", id="a limit of minus two"),
        pytest.param({"max_completion_tokens": 1.5}, "max_completion_tokens", id="half a token"),
        pytest.param({"n": 0}, "n", id="no choice at all"),
        pytest.param({"stop": ["a"] * 5}, "stop", id="five stop sequences"),
        pytest.param({"stop": [1]}, "stop", id="a stop sequence that is a number"),
        pytest.param({"frequency_penalty": 3}, "frequency_penalty", id="a penalty above 2"),
        pytest.param({"logit_bias": {"5": 101}}, "logit_bias", id="a bias above 100"),
        pytest.param({"logit_bias": {"word": 1}}, "logit_bias", id="a bias of a word"),
        pytest.param({"top_logprobs": 5}, "top_logprobs", id="top_logprobs without logprobs"),
        pytest.param({"logprobs": True, "top_logprobs": 21}, "top_logprobs", id="21 top_logprobs"),
        pytest.param({"stream": "yes"}, "stream", id="stream in words"),
        pytest.param({"stream_options": {"include_usage": 1}}, "stream_options", id="include_usage as a number"),
        pytest.param({"seed": "s"}, "seed", id="a seed in words"),
        pytest.param({"reasoning_effort": "extreme"}, "reasoning_effort", id="an unknown effort"),
        pytest.param({"reasoning_effort": "none"}, "reasoning_effort", id="gpt-oss cannot not reason"),
        pytest.param({"disable_reasoning": True}, "disable_reasoning", id="disable_reasoning is GLM's"),
        pytest.param({"reasoning_format": "x"}, "reasoning_format", id="an unknown reasoning format"),
        pytest.param(
            {"model": "gemma-4-31b", "reasoning_format": "hidden"}, "reasoning_format", id="gemma hides nothing"
        ),
        pytest.param(
            {"reasoning_format": "raw", "response_format": {"type": "json_object"}},
            "reasoning_format",
            id="raw reasoning inside JSON",
        ),
        pytest.param({"response_format": {"type": "xml"}}, "response_format", id="an unknown response format"),
        pytest.param({"response_format": {"type": "json_schema"}}, "response_format", id="a schema that is not there"),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "response_format",
            id="a schema without a name",
        ),
        pytest.param(
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "strict": True, "schema": {"type": "object"}},
                }
            },
            "response_format",
            id="a strict schema that is open",
        ),
        pytest.param({"tools": [{"type": "search"}]}, "tools", id="a tool that is no function"),
        pytest.param({"tools": [_tool("no spaces")]}, "tools", id="a function name with a space"),
        pytest.param({"tools": [_tool("x" * 65)]}, "tools", id="a function name of 65 characters"),
        pytest.param({"tools": [_tool(parameters=[])]}, "tools", id="parameters that are a list"),
        pytest.param({"tools": [_tool(strict=True, parameters={"type": "object"})]}, "tools", id="strict but open"),
        pytest.param({"tool_choice": "auto"}, "tool_choice", id="a tool choice without tools"),
        pytest.param({"tools": [_tool()], "tool_choice": "maybe"}, "tool_choice", id="an unknown tool choice"),
        pytest.param(
            {"tools": [_tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            id="the choice of a tool that is not offered",
        ),
        pytest.param({"tools": [_tool()], "parallel_tool_calls": False}, "parallel_tool_calls", id="no parallel calls"),
        pytest.param({"prediction": {"type": "content", "content": "x"}, "n": 2}, "prediction", id="n with prediction"),
        pytest.param({"prompt_cache_key": "k" * 1025}, "prompt_cache_key", id="a cache key of 1025 characters"),
        pytest.param({"service_tier": "gold"}, "service_tier", id="an unknown service tier"),
        pytest.param({"model_parameters": {"a": 1}}, "model_parameters", id="model parameters nobody declared"),
        pytest.param({"messages": [USER, RESULT]}, "messages", id="the result of no call"),
        pytest.param({"messages": [USER, CALLS]}, "messages", id="a call without a result"),
        pytest.param({"messages": [USER, CALLS, USER, RESULT]}, "messages", id="a result that comes too late"),
        pytest.param({"messages": [USER, CALLS, RESULT, CALLS, RESULT]}, "messages", id="a call id used twice"),
        pytest.param({"messages": [{"role": "tool", "content": "x"}]}, "messages", id="a result without an id"),
        pytest.param({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages", id="an image for a text model"),
    ],
)
def test_a_wrong_value_is_a_400_under_its_field(fields: dict[str, Any], param: str) -> None:
    status, error = _refusal(_with(**fields))
    assert status == 400
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, "wrong_api_format")


def test_every_unknown_property_has_its_line() -> None:
    """As recorded: `reasoning_content` of each assistant message is named, joined by line feeds."""
    said = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    _, error = _refusal(_with(messages=[USER, USER, said, USER, said]))
    assert error == {
        "message": (
            "messages.2.assistant.reasoning_content: property 'messages.2.assistant.reasoning_content' is "
            "unsupported\nmessages.4.assistant.reasoning_content: property "
            "'messages.4.assistant.reasoning_content' is unsupported"
        ),
        "type": "invalid_request_error",
        "param": "validation_error",
        "code": "wrong_api_format",
    }


def test_an_unknown_field_of_the_body_is_named_with_its_path() -> None:
    _, error = _refusal(_with(store=True, stream_options={"chunks": 1}))
    assert error["message"].splitlines() == [
        "body.store: property 'body.store' is unsupported",
        "body.stream_options.chunks: property 'body.stream_options.chunks' is unsupported",
    ]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        pytest.param(
            {"tools": [_tool("a", strict=True, parameters=SCHEMA), _tool("b")]},
            422,
            "Tools with mixed values for 'strict' are not allowed. "
            "Please set all tools to 'strict: true' or 'strict: false'",
            id="mixed strict tools are a 422",
        ),
        pytest.param(
            {"tools": [_tool()], "parallel_tool_calls": False},
            400,
            "parallel_tool_calls=False is not supported by this model.",
            id="parallel_tool_calls",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": None}]},
            400,
            "'NoneType' object is not iterable",
            id="a null content",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y"}}]}]},
            400,
            "HTTPS image URLs are not supported. Use a base64-encoded data URI instead.",
            id="an image by address",
        ),
        pytest.param(
            {"messages": [{"role": "system", "content": [IMAGE]}]},
            400,
            "image_url content parts are only supported on user messages",
            id="an image from the system",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [IMAGE]}]},
            400,
            "Model gpt-oss-120b does not support image inputs",
            id="an image for a text model",
        ),
        pytest.param(
            {"model": "qwen-3.8-27b", "messages": [{"role": "user", "content": [IMAGE] * 6}]},
            413,
            "Number of image inputs exceeds maximum",
            id="too many images",
        ),
    ],
)
def test_messages_known_from_the_service(fields: dict[str, Any], status: int, message: str) -> None:
    found, error = _refusal(_with(**fields))
    assert (found, error["message"]) == (status, message)


@pytest.mark.parametrize("body", [[], "x", None, 7], ids=repr)
def test_a_body_that_is_no_object_is_a_400(body: Any) -> None:
    assert _refusal(body)[0] == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *("messages", "tools", "tool_choice", "response_format", "stop", "logit_bias", "stream_options"),
        *("prediction", "n", "max_completion_tokens", "reasoning_effort", "model_parameters", "temperature"),
    ]
)


@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_no_json_breaks_the_check(fields: dict[str, Any]) -> None:
    """Whatever JSON arrives, the outcome is a valid request or a refusal, never a crash."""
    with contextlib.suppress(Refused):
        _accept(_with(**fields))


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "tool_call_id"]), JSON, max_size=4)))
def test_no_message_breaks_the_check(messages: list[Any]) -> None:
    with contextlib.suppress(Refused):
        _accept(_with(messages=[*messages, USER]))
