"""How a conversation's items become chat messages: turns, calls with their outputs, and what is kept of the rest."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbatch.responses.history import messages
from cbatch.responses.tools import Declared, ToolNames, TranslationError
from cbatch.sim.validate import parse_chat

PNG = "data:image/png;base64,iVBORw0KGgo="
NAMES = ToolNames([Declared("function", "f"), Declared("custom", "patch"), Declared("function", "add", "mcp__demo")])


def _said(*items: dict[str, Any], vision: bool = False, reasoning: bool = True) -> list[dict[str, Any]]:
    """The messages, which the strict upstream accepts."""
    said = messages(items, NAMES, vision=vision, reasoning=reasoning)
    if said:
        parse_chat(orjson.loads(orjson.dumps({"model": "m", "messages": said})))
    return said


def _user(text: Any = "hi") -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def _assistant(*texts: str) -> dict[str, Any]:
    parts = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return {"type": "message", "role": "assistant", "status": "completed", "content": parts}


def _thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}], "encrypted_content": None}


def _call(call_id: str = "c", arguments: Any = "{}", **fields: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": arguments, **fields}


def _output(call_id: str = "c", output: Any = "ok", kind: str = "function_call_output") -> dict[str, Any]:
    return {"type": kind, "call_id": call_id, "output": output}


def _chat_call(call_id: str = "c", arguments: str = "{}", name: str = "f") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _tool(call_id: str = "c", content: str = "ok") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


USER = {"role": "user", "content": "hi"}


# -- messages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        pytest.param(_user("hi"), USER, id="a string"),
        pytest.param({"role": "user", "content": "hi"}, USER, id="no type"),
        pytest.param({"type": "agent_note", "role": "user", "content": "hi"}, USER, id="a type that nobody knows"),
        pytest.param(_user([{"type": "input_text", "text": "hi"}]), USER, id="one part"),
        pytest.param(
            _user([{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}, "c"]),
            {"role": "user", "content": "a\nb\nc"},
            id="parts are lines",
        ),
        pytest.param(
            {"role": "developer", "content": [{"type": "input_text", "text": "d"}]},
            {"role": "system", "content": "d"},
            id="developer is system",
        ),
        pytest.param({"role": "system", "content": "s"}, {"role": "system", "content": "s"}, id="system"),
        pytest.param(
            _assistant("a", "b"), {"role": "assistant", "content": "ab"}, id="an assistant's parts are one text"
        ),
        pytest.param(
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "assistant", "content": "no"},
            id="a refusal is text",
        ),
        pytest.param(_user(None), {"role": "user", "content": ""}, id="null content"),
        pytest.param(_user([]), {"role": "user", "content": ""}, id="no parts"),
        pytest.param(
            _user([{"type": "new_part", "text": "t"}]), {"role": "user", "content": "t"}, id="text in a new part"
        ),
        pytest.param(
            _user([{"type": "input_video", "url": "x"}]),
            {"role": "user", "content": "[input_video left out]"},
            id="a new part without text leaves a note",
        ),
    ],
)
def test_one_message(item: dict[str, Any], expected: dict[str, Any]) -> None:
    """Roles and part types are chat's, and content is never null."""
    assert _said(item) == [expected]


@pytest.mark.parametrize("content", [None, "", []])
def test_empty_instructions_and_answers_are_left_out(content: Any) -> None:
    """Only a user may say nothing."""
    assert _said({"role": "developer", "content": content}, {"role": "assistant", "content": content}) == []


def test_any_number_of_developer_messages() -> None:
    """Newer Codex versions send their prompt as the first of several."""
    said = _said({"role": "developer", "content": "a"}, {"role": "developer", "content": "b"}, _user())
    assert said == [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, USER]


def test_an_image_goes_to_a_model_that_sees() -> None:
    """As a part beside the text; the detail only where chat knows it."""
    parts = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": PNG, "detail": "high"},
        {"type": "input_image", "image_url": PNG, "detail": "original"},
    ]
    (said,) = _said(_user(parts), vision=True)
    assert said["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": PNG}},
    ]


@pytest.mark.parametrize(
    ("role", "vision", "url"),
    [
        pytest.param("user", False, PNG, id="a model without eyes"),
        pytest.param("developer", True, PNG, id="a role that may not show images"),
        pytest.param("assistant", True, PNG, id="an assistant"),
        pytest.param("user", True, "data:image/webp;base64,AAAA", id="a format that is not taken"),
        pytest.param("user", True, None, id="an uploaded file"),
    ],
)
def test_an_image_that_cannot_be_shown_leaves_a_note(role: str, vision: bool, url: str | None) -> None:
    """A 400 would end the session, since the image is in every later request; silence would confuse the model."""
    content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "look"}]
    (said,) = _said({"role": role, "content": content}, vision=vision)
    assert isinstance(said["content"], str)
    assert "[image left out" in said["content"]
    assert said["content"].endswith("look")
    assert "base64" not in said["content"]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        pytest.param(_user([{"type": "input_file", "file_data": "x"}]), "input[1].content[0]", id="a file"),
        pytest.param(_user([{"type": "input_audio"}]), "input[1].content[0]", id="a sound"),
        pytest.param({"type": "item_reference", "id": "msg_1"}, "input[1]", id="a reference to a stored item"),
        pytest.param({"role": "critic", "content": "x"}, "input[1].role", id="an unknown role"),
        pytest.param(_user(7), "input[1].content", id="content that is a number"),
        pytest.param(_user([7]), "input[1].content[0]", id="a part that is a number"),
        pytest.param(
            {"type": "function_call", "call_id": "c", "arguments": "{}"}, "input[1].name", id="a call of nothing"
        ),
    ],
)
def test_what_cannot_be_carried_is_refused_with_its_place(item: dict[str, Any], param: str) -> None:
    """Who sends it expects it to be read."""
    with pytest.raises(TranslationError) as caught:
        _said(_user(), item)
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize(
    "item",
    [
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
        {"type": "compaction", "encrypted_content": "x"},
        {"type": "additional_tools", "role": "developer", "tools": []},
        {"type": "invented_tomorrow", "payload": {"a": 1}},
    ],
    ids=lambda item: item["type"],
)
def test_items_without_a_chat_equivalent_are_left_out_and_do_not_end_a_turn(item: dict[str, Any]) -> None:
    """A new client invents some, and the session goes on."""
    assert _said(_user(), _assistant("a"), item, _call(), _output()) == [
        USER,
        {"role": "assistant", "content": "a", "tool_calls": [_chat_call()]},
        _tool(),
    ]


# -- turns --------------------------------------------------------------------------------------------


def test_one_turn_in_any_order_is_one_assistant_message() -> None:
    """What Codex 0.98 and later send: call, message, reasoning, call, message, then both outputs."""
    said = _said(
        _user(),
        _call("A"),
        _assistant("one"),
        _thought("hm"),
        _call("B"),
        _assistant("two"),
        _output("A", "a"),
        _output("B", "b"),
    )
    assert said == [
        USER,
        {
            "role": "assistant",
            "content": "one\n\ntwo",
            "reasoning": "hm",
            "tool_calls": [_chat_call("A"), _chat_call("B")],
        },
        _tool("A", "a"),
        _tool("B", "b"),
    ]


def test_outputs_in_another_order_follow_their_calls() -> None:
    """The tool messages stand in the order of the calls, directly behind them."""
    said = _said(_call("A"), _call("B"), _output("B", "b"), _output("A", "a"))
    assert said[1:] == [_tool("A", "a"), _tool("B", "b")]


def test_what_the_assistant_says_after_an_output_is_the_next_turn() -> None:
    """A loop of tool calls is a sequence of turns, as it was."""
    said = _said(_thought("t1"), _call("A"), _output("A"), _thought("t2"), _assistant("now"), _call("B"), _output("B"))
    assert said == [
        {"role": "assistant", "reasoning": "t1", "tool_calls": [_chat_call("A")]},
        _tool("A"),
        {"role": "assistant", "content": "now", "reasoning": "t2", "tool_calls": [_chat_call("B")]},
        _tool("B"),
    ]


def test_an_output_that_comes_after_the_next_user_message_is_still_found() -> None:
    """The call is answered where the upstream wants it: directly behind."""
    assert _said(_call("A"), _user(), _output("A", "late")) == [
        {"role": "assistant", "tool_calls": [_chat_call("A")]},
        _tool("A", "late"),
        USER,
    ]


def test_a_late_output_does_not_split_the_turn_that_it_falls_into() -> None:
    """It belongs to a turn that is over."""
    said = _said(_call("A"), _user(), _assistant("one"), _output("A", "late"), _assistant("two"))
    assert said[2:] == [USER, {"role": "assistant", "content": "one\n\ntwo"}]


def test_a_call_without_an_output_gets_one() -> None:
    """A call without an answer is a 400 upstream."""
    assert _said(_call("A"), _user())[1] == _tool("A", "aborted")


def test_ids_that_are_used_again_are_paired_in_order_and_made_unique() -> None:
    """Some upstreams call every turn's first call `call_0`; chat refuses an id that comes twice."""
    said = _said(_call("x"), _output("x", "1"), _call("x"), _output("x", "2"), _call("x_2"), _output("x_2", "3"))
    assert [(m["tool_call_id"], m["content"]) for m in said if m["role"] == "tool"] == [
        ("x", "1"),
        ("x_2", "2"),
        ("x_2_2", "3"),
    ]


def test_calls_without_an_id_are_paired_in_order() -> None:
    """null on both sides; the upstream gets ids."""
    said = _said({**_call(), "call_id": None}, {**_call(), "call_id": None}, _output(None, "1"), _output(None, "2"))  # type: ignore[arg-type]
    assert said[1:] == [_tool("call", "1"), _tool("call_2", "2")]


def test_an_output_without_a_call_becomes_a_note_of_the_user() -> None:
    """Its text is kept, and a tool message without a call is a 400; it must not take the next call's place either."""
    said = _said(_output("x", "lost"), _call("x"), _output("x", "found"))
    assert said[0]["role"] == "user"
    assert said[0]["content"].endswith("\nlost")
    assert said[2] == _tool("x", "found")


def test_such_a_note_stands_where_the_output_stood() -> None:
    """Behind what the assistant said before it, and before what it says next."""
    said = _said(_assistant("one"), _output("x", "lost"), _assistant("two"))
    assert [m["role"] for m in said] == ["assistant", "user", "assistant"]
    assert (said[0]["content"], said[2]["content"]) == ("one", "two")


def test_reasoning_prefers_the_thought_over_its_summary() -> None:
    """Never both, and never encrypted."""
    full = {**_thought("short"), "content": [{"type": "reasoning_text", "text": "long"}], "encrypted_content": "ENC=="}
    assert _said(full, _assistant("a")) == [{"role": "assistant", "content": "a", "reasoning": "long"}]


def test_several_thoughts_of_a_turn_are_joined() -> None:
    """Chat has one place for them."""
    assert _said(_thought("a"), _assistant("x"), _thought("b"), _call(), _output())[0]["reasoning"] == "a\n\nb"


def test_reasoning_without_an_answer_or_a_model_that_reasons_is_left_out() -> None:
    """A message of nothing but reasoning is none, and other models do not know the key."""
    assert _said(_user(), _thought("t"), _user()) == [USER, USER]
    assert _said(_thought("t"), _assistant("a"), reasoning=False) == [{"role": "assistant", "content": "a"}]


# -- calls and outputs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param('{"a": 1}', '{"a": 1}', id="an object stays as it is to the byte"),
        pytest.param("", "{}", id="empty"),
        pytest.param(" \n", "{}", id="blank"),
        pytest.param(None, "{}", id="null"),
        pytest.param({"a": 1}, '{"a":1}', id="an object that is not a string"),
        pytest.param('"{\\"a\\": 1}"', '{"a": 1}', id="encoded twice"),
        pytest.param('{"a": ', '{"invalid_arguments":"{\\"a\\": "}', id="cut off"),
        pytest.param("[1]", '{"invalid_arguments":"[1]"}', id="a list"),
        pytest.param('"x"', '{"invalid_arguments":"\\"x\\""}', id="a string"),
    ],
)
def test_arguments_are_the_text_of_an_object(arguments: Any, expected: str) -> None:
    """Whatever the model wrote, the history must be valid; nothing of it is lost."""
    assert _said(_call(arguments=arguments), _output())[0]["tool_calls"] == [_chat_call(arguments=expected)]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        pytest.param(
            {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": '*** "Begin"\n'},
            _chat_call("c", '{"input":"*** \\"Begin\\"\\n"}', "patch"),
            id="a custom call wraps its text",
        ),
        pytest.param(
            _call(name="add", namespace="mcp__demo", arguments='{"a":2}'),
            _chat_call("c", '{"a":2}', "mcp__demo__add"),
            id="a namespace is in the name",
        ),
        pytest.param(
            {"type": "tool_search_call", "call_id": "c", "execution": "client", "arguments": {"query": "q"}},
            _chat_call("c", '{"query":"q"}', "tool_search"),
            id="a tool search",
        ),
        pytest.param(
            {"type": "local_shell_call", "call_id": "c", "action": {"type": "exec", "command": ["ls"], "env": None}},
            _chat_call("c", '{"command":["ls"]}', "local_shell"),
            id="a local shell call",
        ),
        pytest.param(_call(name=""), _chat_call("c", "{}", "unnamed"), id="a call of nobody"),
    ],
)
def test_every_kind_of_call_is_a_function_call(call: dict[str, Any], expected: dict[str, Any]) -> None:
    """With the name under which the tool is offered."""
    assert _said(call, _output())[0]["tool_calls"] == [expected]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        pytest.param("text", "text", id="a string"),
        pytest.param("", "", id="nothing"),
        pytest.param(None, "", id="null"),
        pytest.param(
            [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}], "a\nb", id="parts are lines"
        ),
        pytest.param({"content": "a", "success": True}, "a", id="the object of old clients"),
        pytest.param({"exit": 1}, '{"exit":1}', id="any other object"),
        pytest.param([{"type": "input_file", "file_id": "x"}], "[input_file left out]", id="a file"),
    ],
)
@pytest.mark.parametrize("kind", ["function_call_output", "custom_tool_call_output"])
def test_an_output_is_text(output: Any, expected: str, kind: str) -> None:
    """Of every shape that clients send."""
    assert _said(_call(), _output(output=output, kind=kind))[1] == _tool(content=expected)


def test_a_local_shell_output_is_paired_by_its_id() -> None:
    """OpenAI's schema has no call_id there."""
    call = {"type": "local_shell_call", "id": "lsh_1", "call_id": "c", "action": {"type": "exec", "command": ["ls"]}}
    assert _said(call, {"type": "local_shell_call_output", "id": "c", "output": "files"})[1] == _tool(content="files")


def test_images_in_an_output_are_shown_by_the_user_or_noted() -> None:
    """Tool messages are text; a model that sees gets the images in a message behind all outputs of the turn."""
    parts = [{"type": "input_text", "text": "5"}, {"type": "input_image", "image_url": PNG}]
    items = (_call("A"), _call("B"), _call("C"), _output("A", parts), _output("B"), _output("C", parts))
    blind = _said(*items)
    assert blind[1]["content"] == "5\n[image left out: it cannot be shown to this model]"
    seeing = _said(*items, vision=True)
    assert [m["role"] for m in seeing] == ["assistant", "tool", "tool", "tool", "user"]
    assert seeing[1]["content"] == "5"
    assert [part for part in seeing[4]["content"] if part["type"] == "image_url"] == [
        {"type": "image_url", "image_url": {"url": PNG}}
    ] * 2


def test_found_tools_are_named_as_they_can_be_called() -> None:
    """The definitions are among the request's tools."""
    tools = [{"type": "namespace", "name": "mcp__demo", "tools": [{"type": "function", "name": "add"}]}]
    call = {"type": "tool_search_call", "call_id": "c", "arguments": {"query": "q"}}
    said = _said(call, {"type": "tool_search_output", "call_id": "c", "tools": tools})
    assert "mcp__demo__add" in said[1]["content"]
    assert _said(call, {"type": "tool_search_output", "call_id": "c", "tools": []})[1]["content"] == "No tools found."


def test_arguments_that_are_nested_beyond_reason_are_refused() -> None:
    """They can be read, but not be written again."""
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    with pytest.raises(TranslationError, match="too deeply"):
        _said(_call(arguments=deep), _output())


# -- laws ---------------------------------------------------------------------------------------------


_CALL_IDS = st.sampled_from(["call_0", "call_1", "call_0_2", "x", ""])


@st.composite
def _loose_items(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Items in no order at all; every text is told apart by its place."""
    items: list[dict[str, Any]] = []
    for place in range(draw(st.integers(0, 14))):
        mark, call_id = f"<{place}>", draw(_CALL_IDS)
        items.append(
            draw(
                st.sampled_from(
                    [
                        _user(f"u{mark}"),
                        _user([{"type": "input_text", "text": f"u{mark}"}, {"type": "input_text", "text": f"v{mark}"}]),
                        {"role": "developer", "content": f"d{mark}"},
                        _assistant(f"a{mark}"),
                        _thought(f"t{mark}"),
                        _call(call_id, orjson.dumps({"k": f"f{mark}"}).decode()),
                        _call(call_id, f"broken f{mark}"),
                        {"type": "custom_tool_call", "call_id": call_id, "name": "patch", "input": f"c{mark}"},
                        _output(call_id, f"o{mark}"),
                        _output(call_id, [{"type": "input_text", "text": f"o{mark}"}], "custom_tool_call_output"),
                        {"type": "invented", "id": "x"},
                    ]
                )
            )
        )
    return items


def _marks(items: Sequence[dict[str, Any]], kinds: str) -> list[str]:
    """The marked texts of these kinds anywhere in some JSON, in order."""
    text = orjson.dumps(items).decode()
    return [text[at - 1 : text.index(">", at) + 1] for at, c in enumerate(text) if c == "<" and text[at - 1] in kinds]


@settings(max_examples=200)
@given(_loose_items())
def test_any_items_are_accepted_upstream_and_nothing_is_lost(items: list[dict[str, Any]]) -> None:
    """Every text, call and output arrives exactly once; texts, calls and outputs each in their order."""
    said = _said(*items)
    assert Counter(_marks(said, "uvdafco")) == Counter(_marks(items, "uvdafco"))
    for kinds in ("uvd", "a", "fc"):
        assert _marks(said, kinds) == _marks(items, kinds)
    calls = [call["id"] for m in said for call in m.get("tool_calls", ())]
    assert len(set(calls)) == len(calls)
    assert messages(items, NAMES, vision=False, reasoning=True) == said


@settings(max_examples=200)
@given(_loose_items())
def test_no_two_assistant_messages_in_a_row(items: list[dict[str, Any]]) -> None:
    """They teach models to stop after the first, in whatever order a turn comes."""
    said = _said(*items)
    for before, after in itertools.pairwise(said):
        assert (before["role"], after["role"]) != ("assistant", "assistant")


@st.composite
def _session(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """The steps of a session; each ends where the client sends its next request."""
    steps: list[list[dict[str, Any]]] = []
    for number in range(draw(st.integers(1, 6))):
        step: list[dict[str, Any]] = []
        for place in range(draw(st.integers(0, 3))):
            step.append(draw(st.sampled_from([_assistant(f"a{number}{place}"), _thought(f"t{number}{place}")])))
        calls = draw(st.integers(0, 3))
        ids = [f"call_{n}" for n in range(calls)] if draw(st.booleans()) else [f"c{number}_{n}" for n in range(calls)]
        step += [_call(call_id, f'{{"n": {number}}}') for call_id in ids]
        step = draw(st.permutations(step))
        order = draw(st.permutations(ids))
        step += [_output(call_id, f"o{number}{call_id}") for call_id in order]
        if not ids or draw(st.booleans()):
            step.append(_user(f"u{number}"))
        steps.append(step)
    return steps


@settings(max_examples=200)
@given(_session())
def test_a_longer_history_only_adds_messages(steps: list[list[dict[str, Any]]]) -> None:
    """Upstream caches the prompt's beginning: every request's messages begin with those of the one before."""
    items: list[dict[str, Any]] = []
    before: list[dict[str, Any]] = []
    for step in steps:
        items += step
        said = _said(*items)
        assert said[: len(before)] == before
        before = said
