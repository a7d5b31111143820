"""Every call comes back as the tool that the client declared, and the openai package reads every answer strictly."""

from __future__ import annotations

import functools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.gateway import translate
from cbatch.responses.whole import to_response, to_usage
from tests.unit.test_responses_events import (
    USAGE,
    Event,
    call_lists,
    called,
    chunk,
    kinds,
    piece,
    run,
    said,
    streamed,
    texts,
    translation,
)

PATCH = "*** Begin Patch\n*** Add File: a\n+```\n*** End Patch"


def completion(finish: str | None = "stop", usage: object = None, **message: Any) -> Event:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage}


def response(answer: Event) -> Event:
    return to_response(translation(), answer, response_id="resp_ab", created_at=1)


def call(name: str, arguments: object, id: str | None = "call_A") -> Event:
    """The item that a call becomes."""
    calls = [{"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}]
    (item,) = response(completion(tool_calls=calls))["output"]
    assert isinstance(item, dict)
    return item


# -- calls ------------------------------------------------------------------------------------------------------------


def test_a_function_of_a_namespace_is_called_by_both_names() -> None:
    item = call("mcp__demo__add_numbers", '{"a":2}')
    assert item == {
        "type": "function_call",
        "id": "fc_ab_0",
        "call_id": "call_A",
        "name": "add_numbers",
        "namespace": "mcp__demo",
        "arguments": '{"a":2}',
        "status": "completed",
    }


def test_an_unknown_name_is_passed_on_for_the_client_to_refuse() -> None:
    assert call("invented", "{}")["name"] == "invented"
    assert "namespace" not in call("invented", "{}")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param('{"cmd": "ls"}', '{"cmd": "ls"}', id="an object is passed on as it is written"),
        pytest.param("", "{}", id="nothing is an empty object"),
        pytest.param(None, "{}", id="null is an empty object"),
        pytest.param("null", "{}", id="written null is an empty object"),
        pytest.param({"cmd": "ls"}, '{"cmd":"ls"}', id="an object that is not text becomes text"),
        pytest.param({}, "{}", id="an empty object that is not text becomes text"),
        pytest.param('"{\\"cmd\\": \\"ls\\"}"', '{"cmd": "ls"}', id="what was encoded twice is decoded once"),
        pytest.param('{"cmd": ', '{"cmd": ', id="broken JSON is the model's to mend"),
        pytest.param('"ls"', '"ls"', id="a string stays a string"),
        pytest.param("[1]", "[1]", id="a list stays a list"),
    ],
)
def test_arguments_of_a_function(given: object, expected: str) -> None:
    assert call("exec_command", given)["arguments"] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(orjson.dumps({"input": PATCH}).decode(), PATCH, id="it is unwrapped"),
        pytest.param(orjson.dumps({"patch": PATCH}).decode(), PATCH, id="whatever its key is called"),
        pytest.param(orjson.dumps({"lang": "x", "input": PATCH}).decode(), PATCH, id="input is preferred"),
        pytest.param(orjson.dumps({"n": 1, "code": PATCH}).decode(), PATCH, id="what is no text is skipped"),
        pytest.param({"input": PATCH}, PATCH, id="an object that is not text"),
        pytest.param(PATCH, PATCH, id="raw text is taken as it is"),
        pytest.param(orjson.dumps(PATCH).decode(), PATCH, id="a JSON string is decoded"),
        pytest.param('{"input": "' + PATCH + '"}', PATCH, id="bare line breaks inside JSON are read"),
        pytest.param(orjson.dumps({"input": f"```diff\n{PATCH}\n```\n"}).decode(), PATCH, id="a fence is stripped"),
        pytest.param(f"```\n{PATCH}\n```", PATCH, id="a fence around raw text is stripped"),
        pytest.param(
            orjson.dumps({"input": orjson.dumps({"input": PATCH}).decode()}).decode(), PATCH, id="wrapped twice"
        ),
        pytest.param(orjson.dumps({"input": '{"input": 1}'}).decode(), '{"input": 1}', id="JSON that is the text"),
        pytest.param(orjson.dumps({"input": '{"a": "b"}'}).decode(), '{"a": "b"}', id="JSON of other keys is the text"),
        pytest.param(orjson.dumps({"command": ["apply_patch", PATCH]}).decode(), PATCH, id="a command line"),
        pytest.param('{"input": "\\ud800x"}', "?x", id="half a character can be written again"),
        pytest.param('{"input": ""}', "", id="empty"),
        pytest.param("{}", "", id="an empty object"),
        pytest.param("", "", id="nothing"),
        pytest.param('{"n": 1}', '{"n": 1}', id="an object without a text is taken as it is"),
        pytest.param("[" * 5000, "[" * 5000, id="what is nested too deeply is taken as it is"),
    ],
)
def test_input_of_a_custom_tool(given: object, expected: str) -> None:
    item = call("apply_patch", given)
    assert (item["type"], item["id"], item["name"]) == ("custom_tool_call", "ctc_ab_0", "apply_patch")
    assert item["input"] == expected
    orjson.dumps(item)


@given(st.text(st.characters(codec="utf-8")).filter(lambda text: "```" not in text and not text.startswith("{")))
def test_a_text_for_a_custom_tool_arrives_unchanged(text: str) -> None:
    assert call("apply_patch", orjson.dumps({"input": text}).decode())["input"] == text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param('{"query": "x", "limit": 3}', {"query": "x", "limit": 3}, id="text becomes an object"),
        pytest.param({"query": "x"}, {"query": "x"}, id="an object stays one"),
        pytest.param('"{\\"query\\": \\"x\\"}"', {"query": "x"}, id="what was encoded twice"),
        pytest.param("no JSON", {}, id="what is none is empty"),
        pytest.param('{"a":' * 300 + "1" + "}" * 300, {}, id="what could not be written is empty"),
    ],
)
def test_arguments_of_a_tool_search_are_an_object(given: object, expected: object) -> None:
    item = call("tool_search", given)
    assert (item["type"], item["execution"], item["call_id"]) == ("tool_search_call", "client", "call_A")
    assert item["arguments"] == expected
    orjson.dumps(item)


@pytest.mark.parametrize(
    ("given", "command", "more"),
    [
        pytest.param('{"command":["ls"],"timeout_ms":5}', ["ls"], {"timeout_ms": 5}, id="as declared"),
        pytest.param('{"cmd":"ls | wc"}', ["bash", "-lc", "ls | wc"], {}, id="a line is for a shell"),
        pytest.param(
            '{"command":["ls"],"workdir":"/x","env":{"A":1}}',
            ["ls"],
            {"working_directory": "/x", "env": {"A": "1"}},
            id="where, and with what",
        ),
        pytest.param('{"command":7}', [], {}, id="no command"),
    ],
)
def test_a_local_shell_gets_an_action(given: str, command: list[str], more: Event) -> None:
    item = call("local_shell", given)
    assert (item["type"], item["call_id"]) == ("local_shell_call", "call_A")
    assert item["action"] == {"type": "exec", "command": command, "env": {}, **more}


def test_a_call_id_is_there_and_its_own_whatever_the_upstream_sent() -> None:
    """Ids that are missing or used twice are made; a client pairs calls and outputs by them."""
    calls = [{"id": id, "function": {"name": "exec_command", "arguments": ""}} for id in ("a", None, "a", "", 7)]
    output = response(completion(tool_calls=calls))["output"]
    assert [item["call_id"] for item in output] == ["a", "call_ab_1", "call_ab_2", "call_ab_3", "call_ab_4"]


# -- how pieces find their call ---------------------------------------------------------------------------------------


def arguments_of(*chunks: Event) -> list[tuple[str, str, str]]:
    return [(item["call_id"], item["name"], item["arguments"]) for item in run(*chunks)[1]["output"]]


def test_pieces_of_two_calls_may_interleave() -> None:
    found = arguments_of(
        called(piece(0, "a", "one", '{"x"'), piece(1, "b", "two", "{")),
        called(piece(1, arguments='"y":2}')),
        called(piece(0, arguments=":1}")),
    )
    assert found == [("a", "one", '{"x":1}'), ("b", "two", '{"y":2}')]


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([(None, "a", "f", '{"x"'), (None, "a", None, ":1}"), (None, "b", "f", "{}")], id="only ids"),
        pytest.param([(None, "a", "f", '{"x"'), (None, None, None, ":1}"), (None, "b", "f", "{}")], id="first ids"),
        pytest.param([(0, "a", "f", '{"x"'), (0, None, None, ":1}"), (0, "b", "f", "{}")], id="all numbered 0"),
        pytest.param([(0, "a", "f", '{"x"'), (0, "a", "f", ":1}"), (1, "b", "f", "{}")], id="names repeated"),
        pytest.param(
            [(0, "a", "f", '{"x":1'), (0, "a", "f", "}"), (0, "a", "f", ""), (1, "b", "f", "")], id="also last"
        ),
        pytest.param([(0, "a", "f", {}), (0, "a", None, '{"x":1}'), (1, "b", "f", {})], id="an object to begin with"),
        pytest.param([(0, "a", None, '{"x"'), (0, None, "f", ":1}"), (1, "b", "f", "{}")], id="a name that comes late"),
    ],
)
def test_pieces_find_their_call_by_whatever_they_have(pieces: list[tuple[Any, ...]]) -> None:
    assert arguments_of(*(called(piece(*one)) for one in pieces)) == [("a", "f", '{"x":1}'), ("b", "f", "{}")]


def test_calls_without_index_and_id_are_told_apart() -> None:
    found = arguments_of(
        called(piece(None, None, "f", "{}")),
        called(piece(None, None, "f", '{"x"'), piece(None, None, "g", "{}")),
        called(piece(None, arguments="{ignored")),
    )
    assert [(name, args) for _, name, args in found][:2] == [("f", "{}"), ("f", '{"x"')]


def test_a_name_after_whole_arguments_begins_a_call_where_nothing_else_could_tell() -> None:
    """The first piece of a call has its name and no arguments yet, also that of the next call of the same tool."""
    found = arguments_of(
        called(piece(None, None, "f", "")),
        called(piece(None, arguments='{"x"')),
        called(piece(None, arguments=":1}")),
        called(piece(None, None, "f", "")),
        called(piece(None, arguments='{"x":2}')),
    )
    assert [(name, args) for _, name, args in found] == [("f", '{"x":1}'), ("f", '{"x":2}')]
    found = arguments_of(*(called(piece(None, "a", "f", args)) for args in ('{"x":1}', "")))
    assert found == [("a", "f", '{"x":1}')]


def test_several_pieces_in_one_chunk_without_index_and_id_are_told_apart_by_their_place() -> None:
    found = arguments_of(
        called(piece(None, None, "f", '{"x"'), piece(None, None, "g", '{"y"')),
        called(piece(None, arguments=":1}"), piece(None, arguments=":2}")),
    )
    assert [(name, args) for _, name, args in found] == [("f", '{"x":1}'), ("g", '{"y":2}')]


def test_a_name_that_is_repeated_after_whole_arguments_begins_no_call_where_the_index_is_the_same() -> None:
    found = arguments_of(called(piece(0, "a", "f", '{"x":1}')), called(piece(0, "a", "f", "\n")))
    assert found == [("a", "f", '{"x":1}\n')]


def test_blanks_before_arguments_do_not_keep_them_from_being_shown() -> None:
    state = translate.Events(translation(), response_id="resp_ab", created_at=1)
    state.chunk(called(piece(0, "a", "f", " \n")))
    assert [event["delta"] for event in state.chunk(called(piece(0, arguments=' {"x')))] == ['{"x']


def test_an_empty_piece_is_no_call() -> None:
    assert kinds(run(said("a"), called({}, {"index": 3}, {"index": 4, "function": {"arguments": ""}}))[1]) == [
        "message"
    ]


def test_a_call_whose_name_never_came_is_refused_by_the_client() -> None:
    assert arguments_of(called(piece(0, "a", None, "{}"))) == [("a", "", "{}")]


def test_the_answer_decides_and_not_its_finish_reason() -> None:
    """GLM ends JSON with `tool_calls`, others end calls with `stop`."""
    assert kinds(response(completion("tool_calls", content="{}"))) == ["message"]
    calls = [{"id": "a", "function": {"name": "exec_command", "arguments": "{}"}}]
    assert kinds(response(completion("stop", tool_calls=calls))) == ["function_call"]


# -- calls that are written as text -----------------------------------------------------------------------------------

MARKED = '<tool_call>\n{"name": "exec_command", "arguments": {"cmd": "ls"}}\n</tool_call>'


def test_a_text_that_is_nothing_but_calls_is_calls() -> None:
    _, made = run(chunk({"reasoning": "hm"}), said("\n\n" + MARKED), said("\n" + MARKED + "\n"))
    assert [item.get("arguments") for item in made["output"]] == [None, '{"cmd":"ls"}', '{"cmd":"ls"}']


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Call it so: " + MARKED, id="text before it"),
        pytest.param(MARKED + " and so on", id="text after it"),
        pytest.param(MARKED.replace("exec_command", "unknown"), id="a tool that was not offered"),
        pytest.param(MARKED.replace("</tool_call>", ""), id="no end"),
        pytest.param("<tool_call>exec_command</tool_call>", id="no JSON"),
    ],
)
def test_a_text_that_only_speaks_of_a_call_is_text(text: str) -> None:
    (item,) = run(*map(said, text))[1]["output"]
    assert item["content"][0]["text"] == text


@pytest.mark.parametrize(
    "before",
    [
        pytest.param([called(piece(0, "a", "exec_command", "{}"))], id="a call"),
        pytest.param([said("I will call."), chunk({"reasoning": "hm"})], id="another text"),
    ],
)
def test_a_text_like_a_call_is_text_where_something_was_said_before(before: list[Event]) -> None:
    _, made = run(*before, said(MARKED))
    assert made["output"][-1]["content"][0]["text"] == MARKED


def test_without_tools_no_text_is_a_call() -> None:
    (item,) = run(said(MARKED), tools=())[1]["output"]
    assert item["content"][0]["text"] == MARKED


def test_text_is_held_back_only_as_long_as_it_may_be_a_call() -> None:
    state = translate.Events(translation(), response_id="resp_ab", created_at=1)
    assert state.chunk(said("<tool")) == []
    assert state.chunk(said("box"))[-1]["delta"] == "<toolbox"
    state = translate.Events(translation(), response_id="resp_ab", created_at=1)
    assert state.chunk(said("\n" * 64)) == []
    assert state.chunk(said("\n"))[-1]["delta"] == "\n" * 65
    state = translate.Events(translation(), response_id="resp_ab", created_at=1)
    assert state.chunk(said("hello world {"))[-1]["delta"] == "hello world {"


def test_blanks_beside_a_call_are_no_message() -> None:
    _, made = run(said("\n\n"), called(piece(0, "a", "exec_command", "{}")), said("\n"))
    assert kinds(made) == ["function_call"]


# -- the answer in one piece ------------------------------------------------------------------------------------------


def test_an_answer_without_a_choice_failed() -> None:
    answers: list[Event] = [{}, {"choices": []}, {"choices": None}, {"choices": ["x"]}]
    for answer in answers:
        assert response(answer)["status"] == "failed"


def test_an_answer_in_one_piece_has_ended() -> None:
    assert response(completion(None, content="hello"))["status"] == "completed"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(USAGE, (100, 40, 20, 5, 120), id="all of it"),
        pytest.param({"prompt_tokens": 7, "completion_tokens": 5}, (7, 0, 5, 0, 12), id="without details"),
        pytest.param(
            {"prompt_tokens": 7.0, "completion_tokens": 5, "total_tokens": 12, "prompt_tokens_details": None},
            (7, 0, 5, 0, 12),
            id="whole floats are integers",
        ),
        pytest.param({"completion_tokens": 5, "total_tokens": 12}, None, id="half of it is none"),
        pytest.param({"prompt_tokens": 7.5, "completion_tokens": 5}, None, id="no half tokens"),
        pytest.param({"prompt_tokens": True, "completion_tokens": 5}, None, id="true is no number"),
        pytest.param({"prompt_tokens": float("inf"), "completion_tokens": 5}, None, id="infinity is none"),
        pytest.param({}, None, id="empty"),
        pytest.param(None, None, id="none"),
        pytest.param([1], None, id="a list"),
    ],
)
def test_usage_is_whole_or_none(usage: Any, expected: tuple[int, ...] | None) -> None:
    found = to_usage(usage)
    if expected is None:
        assert found is None
        return
    assert found == {
        "input_tokens": expected[0],
        "input_tokens_details": {"cached_tokens": expected[1], "cache_write_tokens": 0},
        "output_tokens": expected[2],
        "output_tokens_details": {"reasoning_tokens": expected[3]},
        "total_tokens": expected[4],
    }


def test_every_public_name_is_at_the_public_address() -> None:
    """`from cbatch.gateway import translate` is the contract."""
    from cbatch import responses

    assert set(responses.__all__) <= set(translate.__all__)
    assert all(hasattr(translate, name) for name in translate.__all__)


# -- the openai package -----------------------------------------------------------------------------------------------


@functools.cache
def sdk() -> Any:
    """(reads one event strictly, reads a Response strictly, makes the state of a stream)."""
    pytest.importorskip("openai")
    from openai.lib.streaming.responses._responses import ResponseStreamState
    from openai.types.responses import Response, ResponseStreamEvent
    from pydantic import TypeAdapter

    return TypeAdapter(ResponseStreamEvent).validate_python, Response.model_validate, ResponseStreamState


@given(st.data(), texts, texts, call_lists, st.sampled_from(["stop", "length", None]))
def test_the_openai_package_reads_every_event_and_accumulates_the_same_answer(
    data: st.DataObject, reasoning: str, text: str, calls: list[tuple[str, str, str]], finish: str | None
) -> None:
    read, read_response, make = sdk()
    from openai import omit

    events, made = run(*data.draw(streamed(reasoning, text, calls)), finish=finish)
    state = make(input_tools=omit, text_format=omit)
    fired: list[Any] = []
    for event in events:
        typed = read(event, strict=True)
        assert typed.type == event["type"]
        assert not typed.model_extra
        fired += state.handle_event(typed)
    typed = read_response(made, strict=True)
    assert [item.type for item in typed.output] == kinds(made)
    # OpenAI sends a status with custom calls, which its own package does not know.
    assert {name for item in typed.output for name in item.model_extra or ()} <= {"status"}
    told = [item["content"][0]["text"] for item in made["output"] if item["type"] == "message"]
    if finish == "stop":
        final = state._completed_response
        assert [item.id for item in final.output] == [item["id"] for item in made["output"]]
        assert final.output_text == "".join(told)
        assert final.usage.total_tokens == 120
        snapshots = [one.snapshot for one in fired if one.type == "response.output_text.delta"]
        assert not told or snapshots[-1] == told[-1]
    else:
        assert state._completed_response is None
