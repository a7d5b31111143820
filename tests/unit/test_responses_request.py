"""A whole Responses request as a chat request: the whitelist, its values, and the real bodies of Codex."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.responses import Target, Translation, TranslationError, input_items, target, to_chat
from cbatch.sim.models import MODELS, Limits
from cbatch.sim.validate import check_model, parse_chat

GPT_OSS = Target(model="gpt-oss-120b")
QWEN = Target(model="qwen-3.8-27b", efforts=("none", "low", "medium", "high"), vision=True)
PLAIN = Target(model="m", efforts=())
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}
CODEX = sorted((Path(__file__).resolve().parents[1] / "data" / "codex").glob("*.json"))


def _chat(request: dict[str, Any], to: Target = GPT_OSS) -> dict[str, Any]:
    """The chat body, which the strict upstream accepts."""
    chat = to_chat({"model": "gpt-5", "input": "hi", **request}, to).chat
    parse_chat(orjson.loads(orjson.dumps(chat)))
    return chat


def test_the_least_request() -> None:
    """A string is one user message, and nothing else is invented."""
    assert _chat({}) == {"model": "gpt-oss-120b", "messages": [{"role": "user", "content": "hi"}]}


def test_instructions_are_the_first_message() -> None:
    """Role system, before everything that the input says."""
    said = _chat({"instructions": "Be brief.", "input": [{"role": "developer", "content": "d"}]})["messages"]
    assert said == [{"role": "system", "content": "Be brief."}, {"role": "system", "content": "d"}]


def test_only_known_fields_are_sent() -> None:
    """The upstream refuses a property that it does not know: all others stay here, also what is not invented yet."""
    request = {
        **dict.fromkeys(["store", "include", "prompt_cache_key", "prompt_cache_retention", "client_metadata"], "x"),
        **dict.fromkeys(["metadata", "service_tier", "truncation", "safety_identifier", "max_tool_calls"], "x"),
        **dict.fromkeys(["top_logprobs", "stream_options", "previous_response_id", "invented_tomorrow"], "x"),
        "text": {"verbosity": "low"},
        "reasoning": {"summary": "auto", "context": "all_turns"},
        "background": False,
    }
    assert _chat(request).keys() == {"model", "messages"}


def test_sampling_and_limits_are_passed_on() -> None:
    """max_output_tokens under chat's name, the rest as it is."""
    chat = _chat({"temperature": 0.5, "top_p": 0.9, "user": "u", "max_output_tokens": 99})
    assert (chat["temperature"], chat["top_p"], chat["user"], chat["max_completion_tokens"]) == (0.5, 0.9, "u", 99)


@pytest.mark.parametrize(("given_limit", "expected"), [(None, 4096), (10, 10)])
def test_a_default_limit_holds_where_the_client_gives_none(given_limit: int | None, expected: int) -> None:
    """Codex never sends one, and without one the upstream reserves its own guess of the quota."""
    to = Target(model="gpt-oss-120b", default_max_tokens=4096)
    assert _chat({"max_output_tokens": given_limit}, to)["max_completion_tokens"] == expected


@pytest.mark.parametrize(
    ("effort", "efforts", "expected"),
    [
        pytest.param("medium", ("low", "medium", "high"), "medium", id="one that the model takes"),
        pytest.param("minimal", ("low", "medium", "high"), "low", id="too little: the least"),
        pytest.param("none", ("low", "medium", "high"), "low", id="none where reasoning cannot be switched off"),
        pytest.param("none", ("none", "low"), "none", id="none where it can"),
        pytest.param("minimal", ("none", "low", "high"), "low", id="little is not none"),
        pytest.param("xhigh", ("low", "medium", "high"), "high", id="too much: the most"),
        pytest.param("ultra", ("low",), "low", id="far too much"),
        pytest.param("medium", ("low", "high"), "high", id="between two: the higher"),
        pytest.param("high", ("none",), None, id="a model that can only be switched off"),
        pytest.param("high", (), None, id="a model that does not reason"),
        pytest.param("galactic", ("low", "high"), None, id="a word that nobody knows"),
        pytest.param(None, ("low", "high"), None, id="nothing said"),
    ],
)
def test_effort_is_the_nearest_that_the_model_takes(
    effort: Any, efforts: tuple[str, ...], expected: str | None
) -> None:
    """Codex sends what OpenAI's newest models take; another value is a 400 upstream."""
    chat = to_chat({"input": "hi", "reasoning": {"effort": effort}}, Target(model="m", efforts=efforts)).chat
    assert chat.get("reasoning_effort") == expected


def test_a_model_without_reasoning_gets_none_of_the_history_either() -> None:
    """It may not know the key."""
    items = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]},
        {"role": "assistant", "content": "a"},
    ]
    assert _chat({"input": items}, PLAIN)["messages"] == [{"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("value", "expected"),
    [pytest.param(True, True, id="true"), pytest.param(False, None, id="false is a 400 on gpt-oss"), (None, None)],
)
def test_parallel_tool_calls(value: bool | None, expected: bool | None) -> None:
    """Only true is sent, and only beside tools."""
    assert _chat({"tools": [FUNCTION], "parallel_tool_calls": value}).get("parallel_tool_calls") is expected
    assert "parallel_tool_calls" not in _chat({"parallel_tool_calls": value})


def test_no_tools_means_no_word_about_tools() -> None:
    """Codex's compaction request: `tools: []` with a choice, which is an error upstream."""
    chat = _chat({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True})
    assert chat.keys() == {"model", "messages"}
    assert _chat({"tools": [{"type": "web_search"}], "tool_choice": "auto"}).keys() == {"model", "messages"}


def test_a_named_custom_tool_can_be_forced() -> None:
    """By the name of the function that it became."""
    tools = [{"type": "namespace", "name": "ns", "tools": [{"type": "custom", "name": "run"}]}]
    choice = {"type": "custom", "name": "run", "namespace": "ns"}
    assert _chat({"tools": tools, "tool_choice": choice})["tool_choice"] == {
        "type": "function",
        "function": {"name": "ns__run"},
    }


def test_stream_asks_for_usage() -> None:
    """Usage is what the client's budget and compaction run on."""
    chat = _chat({"stream": True})
    assert (chat["stream"], chat["stream_options"]) == (True, {"include_usage": True})
    assert to_chat({"input": "hi", "stream": True}, GPT_OSS).stream
    assert not to_chat({"input": "hi"}, GPT_OSS).stream


# -- text.format --------------------------------------------------------------------------------------


TITLE = {
    "type": "object",
    "properties": {"title": {"type": "string", "minLength": 1, "maxLength": 36}},
    "required": ["title"],
    "additionalProperties": False,
}


def _format(**fields: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "name": "n", **fields}}}


def test_a_strict_format_stays_strict_without_what_the_decoder_does_not_know() -> None:
    """The interactive Codex asks for its title like this, in every session."""
    sent = _chat(_format(schema=TITLE, strict=True, description="d"))["response_format"]
    schema = {**TITLE, "properties": {"title": {"type": "string"}}}
    assert sent == {
        "type": "json_schema",
        "json_schema": {"name": "n", "description": "d", "strict": True, "schema": schema},
    }


def test_a_format_that_cannot_be_strict_is_a_hint() -> None:
    """An optional property: the client's own schema, not strict, instead of a 400."""
    schema = {**TITLE, "required": []}
    spec = _chat(_format(schema=schema, strict=True))["response_format"]["json_schema"]
    assert spec == {"name": "n", "strict": False, "schema": schema}


@pytest.mark.parametrize("strict", [None, False])
def test_a_loose_format_stays_loose(strict: bool | None) -> None:
    """As the client wrote it."""
    spec = _chat(_format(schema=TITLE, strict=strict))["response_format"]["json_schema"]
    assert spec == {"name": "n", "strict": False, "schema": TITLE}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"format": {"type": "json_object"}}, {"type": "json_object"}),
        ({"format": {"type": "text"}}, None),
        ({"format": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_other_formats(text: Any, expected: Any) -> None:
    """Text is what comes without asking."""
    assert _chat({"text": text}).get("response_format") == expected


def test_tools_and_a_format_are_sent_together() -> None:
    """`codex exec --output-schema` does that; whether the upstream takes it, only the upstream knows."""
    assert {"tools", "response_format"} <= _chat({"tools": [FUNCTION], **_format(schema=TITLE)}).keys()


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        pytest.param({"background": True}, "background", id="background"),
        pytest.param({"conversation": "conv_1"}, "conversation", id="a stored conversation"),
        pytest.param({"prompt": {"id": "pmpt_1"}}, "prompt", id="a stored template"),
        pytest.param({"input": None}, "input", id="no input at all"),
        pytest.param({"input": []}, "input", id="an empty input"),
        pytest.param({"input": {"role": "user"}}, "input", id="an input that is no list"),
        pytest.param({"input": ["hi"]}, "input[0]", id="an item that is a string"),
        pytest.param({"instructions": 7}, "instructions", id="instructions that are a number"),
        pytest.param({"max_output_tokens": 0}, "max_output_tokens", id="no tokens"),
        pytest.param({"max_output_tokens": True}, "max_output_tokens", id="a limit that is no number"),
        pytest.param({"text": {"format": {"type": "xml"}}}, "text.format.type", id="an unknown format"),
        pytest.param(_format(schema=None), "text.format.schema", id="a format without a schema"),
        pytest.param(
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", id="no such tool"
        ),
    ],
)
def test_what_chat_cannot_do_is_refused(request_: dict[str, Any], param: str) -> None:
    """With OpenAI's fields: what is wrong, where, and a code."""
    with pytest.raises(TranslationError) as caught:
        _chat(request_)
    assert caught.value.param == param
    assert caught.value.code
    assert param.partition("[")[0].split(".")[-1] in caught.value.message or param in caught.value.message


def test_input_items_are_the_inputs_own_or_one_message() -> None:
    """What the store of previous responses keeps."""
    items = [{"role": "user", "content": "a"}]
    assert input_items({"input": items}) == items
    assert input_items({"input": "a"}) == [{"type": "message", "role": "user", "content": "a"}]
    assert input_items({}) == []


# -- echo ---------------------------------------------------------------------------------------------


def test_the_echo_repeats_the_request_and_fills_in_openais_defaults() -> None:
    """The SDKs' Response model requires tools, tool_choice and parallel_tool_calls."""
    request = {"input": "hi", "instructions": "i", "metadata": {"k": "v"}, "temperature": 0.5, "tools": [FUNCTION]}
    request |= {"store": False, "reasoning": {"effort": "xhigh"}, "previous_response_id": "resp_0"}
    echo = to_chat(request, GPT_OSS).echo
    assert echo["reasoning"] == {"effort": "xhigh", "summary": None}
    assert echo["text"] == {"format": {"type": "text"}}
    for field in ("instructions", "metadata", "temperature", "tools", "store", "previous_response_id"):
        assert echo[field] == request[field]
    assert (echo["tool_choice"], echo["parallel_tool_calls"], echo["truncation"]) == ("auto", True, "disabled")
    assert "input" not in echo


# -- models -------------------------------------------------------------------------------------------


def test_the_target_is_what_the_catalog_knows() -> None:
    """An unknown model is tried as one that reasons and does not see."""
    assert target("qwen-3.8-27b") == QWEN
    assert target("gpt-oss-120b", 100) == Target(model="gpt-oss-120b", default_max_tokens=100)
    assert target("somebodys-endpoint") == Target(model="somebodys-endpoint")


# -- laws ---------------------------------------------------------------------------------------------


_EFFORT_WORDS = st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra", "?"])


@given(_EFFORT_WORDS, st.sampled_from(sorted(MODELS)))
def test_every_effort_is_accepted_by_every_model(effort: str, model: str) -> None:
    """No Codex setting makes a request that the model refuses."""
    to = Target(model=model, efforts=tuple(sorted(MODELS[model].efforts)))
    check_model(parse_chat(_chat({"reasoning": {"effort": effort}}, to)), MODELS[model], Limits())


def _both_ways(request: dict[str, Any], model: str) -> Translation:
    """The translation; twice the same bytes, accepted upstream, the request left as it was."""
    before = copy.deepcopy(request)
    translation = to_chat(request, target(model))
    wire = orjson.dumps(translation.chat)
    assert orjson.dumps(to_chat(orjson.loads(orjson.dumps(request)), target(model)).chat) == wire
    assert request == before
    check_model(parse_chat(orjson.loads(wire)), MODELS[model], Limits())
    return translation


def test_there_are_recorded_requests() -> None:
    """The tests below are about something."""
    assert {path.name.partition("-")[0] for path in CODEX} >= {"0.42.0", "0.169.0"}


@pytest.mark.parametrize("model", ["gpt-oss-120b", "qwen-3.8-27b"])
@pytest.mark.parametrize("path", CODEX, ids=lambda path: path.stem)
def test_what_codex_sends_is_accepted_and_whole(path: Path, model: str) -> None:
    """Every text and every call of a recorded request is in the messages; every tool it can run is on offer."""
    request = json.loads(path.read_text("utf-8"))
    translation = _both_ways(request, model)
    said = "\n".join(_texts(translation.chat["messages"]))
    for item in request["input"]:
        for text in _texts(item.get("content")) + _texts(item.get("output")) + _texts(item.get("summary")):
            assert text in said
    calls = [call["function"] for m in translation.chat["messages"] for call in m.get("tool_calls", ())]
    sent = [item for item in request["input"] if item["type"] in ("function_call", "custom_tool_call")]
    lifted = [translation.tools.lift(call["name"]) for call in calls]
    assert [(each.name, json.loads(call["arguments"])) for each, call in zip(lifted, calls, strict=True)] == [
        (item["name"], json.loads(item["arguments"]) if "arguments" in item else {"input": item["input"]})
        for item in sent
    ]
    declared = list(request.get("tools") or ())
    declared += [tool for item in request["input"] if item["type"] == "additional_tools" for tool in item["tools"]]
    own = {(None, t["name"]) for t in declared if t["type"] in ("function", "custom")}
    own |= {(t["name"], inner["name"]) for t in declared if t["type"] == "namespace" for inner in t["tools"]}
    own |= {(None, "tool_search") for t in declared if t["type"] == "tool_search" and t["execution"] == "client"}
    offered = [translation.tools.lift(tool["function"]["name"]) for tool in translation.chat["tools"]]
    assert {(each.namespace, each.name) for each in offered} == own


def _texts(value: Any) -> list[str]:
    """Every text in content of either protocol."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    if isinstance(value, dict):
        return [text for key in ("text", "content", "reasoning") for text in _texts(value.get(key))]
    return []
