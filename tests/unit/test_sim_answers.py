"""What the simulated models say: a pure function of the request."""

import json
import math
from hashlib import sha256
from statistics import median
from typing import Any

import pytest

from cbatch.sim.answers import Answer, compose, fingerprint, prompt_tokens, tokens
from cbatch.sim.cache import PrefixCache
from cbatch.sim.models import MODELS
from cbatch.sim.stream import Head, body, events
from cbatch.sim.timing import plan
from cbatch.sim.validate import Chat, parse_chat

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}, "score": {"type": "number", "minimum": 0, "maximum": 1}},
    "required": ["answer", "score"],
    "additionalProperties": False,
}


def _chat(prompt: str = "What is 2 + 2?", **fields: Any) -> Chat:
    messages = fields.pop("messages", [{"role": "user", "content": prompt}])
    return parse_chat({"model": "gpt-oss-120b", "messages": messages} | fields)


def _say(chat: Chat, *, seed: int = 0, room: int = 4096, exact: int | None = None, fault: str | None = None) -> Answer:
    return compose(chat, MODELS[chat.model], fingerprint(chat, seed), room=room, median=80, exact=exact, fault=fault)


def _tag(prompt: str) -> str:
    return f"[prompt {sha256(prompt.encode()).hexdigest()[:12]}]"


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        pytest.param([{"role": "user", "content": "Grüße 🌍"}], "Grüße 🌍", id="the user's text"),
        pytest.param(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
            "c",
            id="the last of several users",
        ),
        pytest.param(
            [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}],
            "one two",
            id="text parts, joined",
        ),
        pytest.param([{"role": "system", "content": "only me"}], "only me", id="the last message when nobody asks"),
    ],
)
def test_an_answer_begins_with_the_tag_of_its_prompt(messages: list[Any], prompt: str) -> None:
    content = _say(_chat(messages=messages)).content
    assert content is not None
    assert content.startswith(_tag(prompt) + " ")


def test_two_prompts_never_share_a_tag() -> None:
    contents = [_say(_chat(f"question {number}")).content or "" for number in range(500)]
    assert len({content[:21] for content in contents}) == 500


def test_the_same_request_gets_the_same_answer() -> None:
    assert _say(_chat("x")) == _say(_chat("x"))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"temperature": 0.7}, id="temperature"),
        pytest.param({"top_p": 0.5}, id="top_p"),
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"model": "zai-glm-4.7"}, id="model"),
        pytest.param({"reasoning_effort": "high"}, id="effort"),
    ],
)
def test_another_sampling_parameter_gives_another_answer(fields: dict[str, Any]) -> None:
    assert fingerprint(_chat("x", **fields), 0) != fingerprint(_chat("x"), 0)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"stream": True}, id="streaming"),
        pytest.param({"max_completion_tokens": 7}, id="a token limit"),
        pytest.param({"user": "u"}, id="the user field"),
        pytest.param({"service_tier": "auto"}, id="the service tier"),
    ],
)
def test_what_does_not_change_the_answer(fields: dict[str, Any]) -> None:
    assert fingerprint(_chat("x", **fields), 0) == fingerprint(_chat("x"), 0)


def test_another_seed_of_the_simulator_gives_other_answers() -> None:
    assert _say(_chat("x"), seed=1) != _say(_chat("x"), seed=2)


def test_the_completion_is_about_120_tokens_and_varies() -> None:
    """Median near 120 with default effort; lengths spread over an order of magnitude, none absurd."""
    sizes = sorted(_say(_chat(f"q{number}")).completion_tokens for number in range(1000))
    assert 100 < median(sizes) < 160
    assert sizes[10] < 80
    assert sizes[-10] > 300
    assert sizes[-1] < 2000


@pytest.mark.parametrize("room", [1, 3, 20, 60, 100])
def test_a_token_limit_cuts_the_same_text(room: int) -> None:
    """A re-run with more room continues the answer; what is cut says `length` and uses the whole limit."""
    chat = _chat("cut me", reasoning_effort="low")
    whole, cut = _say(chat), _say(chat, room=room)
    assert (whole.content or "").startswith(cut.content or "")
    if whole.completion_tokens > room:
        assert cut.finish_reason == "length"
        assert cut.completion_tokens == room


def test_reasoning_that_eats_the_limit_leaves_no_content() -> None:
    cut = _say(_chat("x", reasoning_effort="high"), room=2)
    assert (cut.content, cut.finish_reason, cut.completion_tokens, cut.reasoning_tokens) == (None, "length", 2, 2)


@pytest.mark.parametrize("exact", [1, 2, 7, 50, 1000])
def test_a_forced_length_is_exact(exact: int) -> None:
    for model in MODELS:
        for number in range(20):
            answer = _say(_chat(f"q{number}", model=model), exact=exact)
            assert answer.completion_tokens == exact
            assert answer.finish_reason == "stop"


def test_min_tokens_is_a_lower_bound_that_cannot_exhaust_memory() -> None:
    assert _say(_chat("x", min_tokens=900)).completion_tokens >= 900
    assert _say(_chat("x", min_tokens=10**15), room=500).completion_tokens == 500


def test_effort_scales_the_reasoning() -> None:
    def thought(effort: str) -> float:
        chats = [_chat(f"q{number}", model="qwen-3.8-27b", reasoning_effort=effort) for number in range(200)]
        return median(_say(chat).reasoning_tokens for chat in chats)

    assert thought("none") == 0 < thought("low") < thought("medium") < thought("high")


@pytest.mark.parametrize(
    ("model", "form", "reasoning", "content_starts"),
    [
        pytest.param("gpt-oss-120b", "none", True, "[prompt", id="by default beside the content"),
        pytest.param("gpt-oss-120b", "parsed", True, "[prompt", id="parsed: beside the content"),
        pytest.param("gpt-oss-120b", "hidden", False, "[prompt", id="hidden: nowhere, but counted"),
        pytest.param("zai-glm-4.7", "raw", False, "<think>", id="raw: in tags inside the content"),
    ],
)
def test_reasoning_format(model: str, form: str, reasoning: bool, content_starts: str) -> None:
    answer = _say(_chat("x", model=model, reasoning_format=form))
    assert bool(answer.reasoning) is reasoning
    assert (answer.content or "").startswith(content_starts)
    assert answer.reasoning_tokens > 0


def test_raw_reasoning_of_gpt_oss_has_no_separator() -> None:
    raw, parsed = (_say(_chat("x", reasoning_format=form)) for form in ("raw", "parsed"))
    assert raw.content == f"{parsed.reasoning}{parsed.content}"


def test_gemma_does_not_reason_unless_asked() -> None:
    assert _say(_chat("x", model="gemma-4-31b")).reasoning_tokens == 0
    assert _say(_chat("x", model="gemma-4-31b", reasoning_effort="low")).reasoning_tokens > 0


@pytest.mark.parametrize(
    ("stop", "content"),
    [
        pytest.param("]", _tag("x")[:-1], id="a stop sequence ends the text and is not in it"),
        pytest.param(["zzz", " "], "[prompt", id="the first of several that occurs"),
        pytest.param("", "", id="an empty one truncates at once"),
    ],
)
def test_stop(stop: Any, content: str) -> None:
    answer = _say(_chat("x", stop=stop))
    assert (answer.content, answer.finish_reason) == (content, "stop")


def test_a_schema_gets_json_in_schema_order_with_the_tag() -> None:
    chat = _chat("x", response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}})
    value = json.loads(_say(chat).content or "")
    assert list(value) == ["answer", "score"]
    assert value["answer"].startswith(_tag("x"))
    assert 0 <= value["score"] <= 1


def test_json_object_is_an_object_with_the_tag() -> None:
    value = json.loads(_say(_chat("x", response_format={"type": "json_object"})).content or "")
    assert value["prompt"] == _tag("x")


def test_invalid_output_is_not_json_and_changes_nothing_else() -> None:
    chat = _chat("x", response_format={"type": "json_object"})
    with pytest.raises(json.JSONDecodeError):
        json.loads(_say(chat, fault="invalid_output").content or "")
    assert _say(_chat("x"), fault="invalid_output") == _say(_chat("x"))


def test_an_empty_answer_is_an_empty_string() -> None:
    answer = _say(_chat("x"), fault="empty_answer")
    assert (answer.content, answer.finish_reason) == ("", "stop")


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param("required", id="required"),
        pytest.param({"type": "function", "function": {"name": "get_weather"}}, id="a named function"),
    ],
)
def test_a_demanded_tool_is_always_called(choice: Any) -> None:
    for number in range(50):
        answer = _say(_chat(f"q{number}", tools=[TOOL], tool_choice=choice))
        assert answer.finish_reason == "tool_calls"
        assert answer.content is None
        (call,) = answer.tool_calls
        assert call.name == "get_weather"
        arguments = json.loads(call.arguments)
        assert arguments["city"].startswith(_tag(f"q{number}"))
        assert 1 <= arguments["days"] <= 7
        assert len(call.id) == 9
        assert int(call.id, 16) >= 0


def test_an_offered_tool_is_called_for_about_half_of_the_prompts() -> None:
    calls = sum(bool(_say(_chat(f"q{number}", tools=[TOOL])).tool_calls) for number in range(400))
    assert 140 < calls < 260


@pytest.mark.parametrize("number", range(10))
def test_a_tool_result_is_answered_with_text(number: int) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": f"q{number}"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    answer = _say(_chat(messages=messages, tools=[TOOL]))
    assert not answer.tool_calls
    assert (answer.content or "").startswith(_tag(f"q{number}"))


def test_no_tool_is_called_when_the_choice_is_none() -> None:
    assert not any(_say(_chat(f"q{n}", tools=[TOOL], tool_choice="none")).tool_calls for n in range(50))


def test_a_cut_tool_call_says_length() -> None:
    answer = _say(_chat("x", tools=[TOOL], tool_choice="required", reasoning_effort="low"), room=30)
    assert answer.finish_reason == "length"
    assert answer.completion_tokens == 30


@pytest.mark.parametrize(
    ("model", "prompt", "expected"),
    [
        pytest.param("gpt-oss-120b", "Test message", 69, id="gpt-oss-120b has a preamble of 66"),
        pytest.param("gemma-4-31b", "What is 2 + 2?", 21, id="gemma-4-31b has one of 17"),
    ],
)
def test_prompt_tokens_match_the_recordings(model: str, prompt: str, expected: int) -> None:
    assert prompt_tokens(_chat(prompt, model=model), MODELS[model]) == expected


def test_one_token_is_four_characters() -> None:
    assert [tokens("x" * size) for size in (0, 1, 4, 5)] == [0, 1, 1, 2]


def _head(model: str = "gpt-oss-120b") -> Head:
    return Head(
        id="chatcmpl-1",
        created=1779146781.75,
        model=MODELS[model],
        named=model,
        prompt_tokens=69,
        cached_tokens=0,
        timing=plan(1800.0, 69, 100, 1, 1.0),
    )


def test_a_body_has_the_keys_of_the_wire_in_their_order() -> None:
    chat = _chat("x")
    whole = json.loads(body(_head(), [_say(chat)], chat))
    assert list(whole) == [
        *("id", "choices", "created", "model", "system_fingerprint", "object", "usage", "time_info"),
    ]
    assert list(whole["choices"][0]) == ["finish_reason", "index", "message"]
    assert list(whole["choices"][0]["message"]) == ["content", "reasoning", "role"]
    usage = whole["usage"]
    assert list(usage) == [
        *("total_tokens", "completion_tokens", "completion_tokens_details", "prompt_tokens"),
        "prompt_tokens_details",
    ]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert list(whole["time_info"]) == ["created", "queue_time", "prompt_time", "completion_time", "total_time"]
    assert whole["created"] == 1779146781


def test_a_tool_call_body_has_no_content() -> None:
    chat = _chat("x", tools=[TOOL], tool_choice="required")
    message = json.loads(body(_head(), [_say(chat)], chat))["choices"][0]["message"]
    assert "content" not in message
    assert list(message["tool_calls"][0]) == ["function", "type", "id"]


def _deltas(chat: Chat, model: str = "gpt-oss-120b") -> list[dict[str, Any]]:
    found = events(_head(model), [_say(chat)], chat)
    assert found[-1] == b"data: [DONE]\n\n"
    return [json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"] for event in found[:-1]]


def test_a_stream_adds_up_to_the_whole_answer() -> None:
    """Role first and alone, reasoning before content, one chunk with both, an empty delta at the end."""
    for number in range(100):
        chat = _chat(f"q{number}")
        answer, deltas = _say(chat), _deltas(chat)
        assert deltas[0] == {"role": "assistant"}
        assert deltas[-1] == {}
        assert "".join(delta.get("content", "") for delta in deltas) == answer.content
        assert "".join(delta.get("reasoning", "") for delta in deltas) == answer.reasoning
        kinds = ["".join(sorted(key[0] for key in delta)) for delta in deltas[1:-1]]
        assert kinds == sorted(kinds, key=["r", "cr", "c"].index)
        assert kinds.count("cr") <= 1


def test_a_streamed_tool_call_names_itself_once() -> None:
    """`id` and `name` come in the first fragment only, `type` and `index` in every one."""
    chat = _chat("x", tools=[TOOL], tool_choice="required")
    calls = [delta["tool_calls"][0] for delta in _deltas(chat) if "tool_calls" in delta]
    (expected,) = _say(chat).tool_calls
    assert [call.get("id") for call in calls] == [expected.id] + [None] * (len(calls) - 1)
    assert [call["function"].get("name") for call in calls] == ["get_weather"] + [None] * (len(calls) - 1)
    assert {(call["type"], call["index"]) for call in calls} == {("function", 0)}
    assert "".join(call["function"]["arguments"] for call in calls) == expected.arguments
    assert len(calls) > 1


def test_glm_streams_a_tool_call_whole_and_empty_deltas_between() -> None:
    chat = _chat("x", model="zai-glm-4.7", tools=[TOOL], tool_choice="required")
    calls = [delta for delta in _deltas(chat, "zai-glm-4.7") if "tool_calls" in delta]
    assert len(calls) == 1
    assert {} in _deltas(_chat("x", model="zai-glm-4.7"), "zai-glm-4.7")[1:-1]


def test_event_sizes_vary_around_nine_tokens() -> None:
    sizes = [sum(map(len, delta.values())) for number in range(50) for delta in _deltas(_chat(f"q{number}"))[1:-1]]
    assert 25 < median(sizes) < 45
    assert max(sizes) < 110
    assert min(sizes) < 20


class TestPrefixCache:
    def test_a_repeated_prompt_is_cached_in_blocks_of_128_tokens(self) -> None:
        cache = PrefixCache()
        prompt = "word " * 410  # 2050 characters: four blocks of 512
        assert cache.match(0.0, "org", prompt, 579) == 0
        assert cache.match(1.0, "org", prompt, 579) == 512

    def test_only_the_common_beginning_counts(self) -> None:
        cache = PrefixCache()
        cache.match(0.0, "org", "a" * 1024 + "b" * 512, 450)
        assert cache.match(0.0, "org", "a" * 1024 + "c" * 512, 450) == 256
        assert cache.match(0.0, "org", "c" + "a" * 1535, 450) == 0

    def test_a_short_prompt_is_never_cached(self) -> None:
        cache = PrefixCache()
        assert [cache.match(0.0, "org", "x" * 500, 190) for _ in range(2)] == [0, 0]

    def test_nothing_is_shared_between_organizations(self) -> None:
        cache = PrefixCache()
        cache.match(0.0, "one", "x" * 2048, 600)
        assert cache.match(0.0, "two", "x" * 2048, 600) == 0

    def test_a_block_is_forgotten_five_minutes_after_its_last_use(self) -> None:
        cache = PrefixCache()
        cache.match(0.0, "org", "x" * 1024, 400)
        assert cache.match(299.0, "org", "x" * 1024, 400) == 256
        assert cache.match(598.0, "org", "x" * 1024, 400) == 256
        assert cache.match(898.1, "org", "x" * 1024, 400) == 0

    def test_memory_is_bounded(self) -> None:
        cache = PrefixCache()
        for number in range(700):
            cache.match(0.0, str(number), "x" * 512 * 100, 20_000)
        assert len(cache._expires) == 65_536

    def test_one_token_of_every_prompt_is_computed(self) -> None:
        cache = PrefixCache()
        cache.match(0.0, "org", "x" * 512, 128)
        assert cache.match(0.0, "org", "x" * 512, 128) == 0


def test_no_answer_is_longer_than_its_room() -> None:
    for room in (1, 2, 5, 10, 17, 64):
        for number in range(100):
            assert _say(_chat(f"q{number}"), room=room).completion_tokens <= room
    assert math.isfinite(_say(_chat("x")).completion_tokens)
