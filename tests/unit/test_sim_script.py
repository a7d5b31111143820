"""Scripted answers: which rule a request meets, what it says, and what is wrong with a script."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import cbatch.cli.sim as cli
from cbatch.errors import JobError
from cbatch.sim import SimConfig, parse_script, read_script
from cbatch.sim.answers import Answer
from cbatch.sim.models import MODELS
from cbatch.sim.recording import Recording
from cbatch.sim.refusals import REFUSALS, check_refusals
from cbatch.sim.script import Rule
from cbatch.sim.scripted import Script, recite
from cbatch.sim.stream import USUAL, Head, Shape, body, events
from cbatch.sim.timing import plan
from cbatch.sim.validate import Chat, parse_chat
from cbatch.sim.wire import Refused

EXAMPLE = Path(__file__).resolve().parents[1] / "data" / "sim-script.json"
TOOL = {"type": "function", "function": {"name": "exec_command", "parameters": {"type": "object"}}}
CALL = {"id": "a", "type": "function", "function": {"name": "exec_command", "arguments": "{}"}}
KEY = bytes(range(32))


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _chat(*messages: dict[str, Any], **fields: Any) -> Chat:
    return parse_chat({"model": "gpt-oss-120b", "messages": list(messages) or [_user("hi")]} | fields)


def _rules(*rules: dict[str, Any]) -> tuple[Rule, ...]:
    return SimConfig(script=rules).rules


def _recite(answer: dict[str, Any], *, room: int = 4096, **fields: Any) -> Answer:
    (rule,) = _rules({"answer": answer})
    assert rule.answer is not None
    chat = _chat(**fields)
    return recite(rule.answer, chat, MODELS[chat.model], KEY, room)


def _head(model: str = "gpt-oss-120b") -> Head:
    return Head("id", 1.0, MODELS[model], model, 9, 0, plan(1000.0, 9, 9, 0, float("inf")))


def _stream(answer: Answer, shape: Shape = USUAL, model: str = "gpt-oss-120b") -> list[dict[str, Any]]:
    """The chunks; [DONE] is looked at and left out."""
    frames = events(_head(model), [answer], _chat(), shape)
    assert (frames[-1] == b"data: [DONE]\n\n") == ("done" not in shape.omit)
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames if frame != b"data: [DONE]\n\n"]


# -- which rule ------------------------------------------------------------------------------------------------

TURN = [
    {"role": "system", "content": "You are an agent"},
    _user("<environment_context>"),
    {"role": "user", "content": [{"type": "text", "text": "make "}, {"type": "text", "text": "a file"}]},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a", "content": "exit code 0"},
]


@pytest.mark.parametrize(
    ("when", "fits"),
    [
        pytest.param({}, True, id="no condition fits everything"),
        pytest.param({"user": "environment"}, True, id="any user message, here the first"),
        pytest.param({"user": "make a file"}, True, id="any user message, here the last, in parts"),
        pytest.param({"user": "agent"}, False, id="the system is no user"),
        pytest.param({"user": "exit"}, False, id="a tool is no user"),
        pytest.param({"last": "exit code 0"}, True, id="the last message, a tool's"),
        pytest.param({"last": "make"}, False, id="the last message, not the last user's"),
        pytest.param({"step": 1}, True, id="one answer so far"),
        pytest.param({"step": 0}, False, id="not the first request any more"),
        pytest.param({"tool": "exec_command"}, True, id="an offered tool"),
        pytest.param({"tool": "exec"}, False, id="a tool's name is not matched in part"),
        pytest.param({"model": "gpt-oss-120b"}, True, id="the model"),
        pytest.param({"model": "zai-glm-4.7"}, False, id="another model"),
        pytest.param({"user": "make", "step": 1, "last": "code 1"}, False, id="all conditions must hold"),
    ],
)
def test_a_rule_fits_by_what_the_request_holds(when: dict[str, Any], fits: bool) -> None:
    script = Script(_rules({"when": when, "answer": {}}))
    assert (script.take(_chat(*TURN, tools=[TOOL])) is not None) is fits


def test_the_first_rule_that_fits_answers_until_it_is_used_up() -> None:
    """`times` requests, then the next rule; a request that was not admitted does not count."""
    script = Script(_rules({"answer": {"content": "a"}, "times": 2}, {"answer": {"content": "b"}, "times": 1}))
    assert [found and found[0] for found in (script.take(_chat()) for _ in range(4))] == [0, 0, 1, None]
    script.give_back(0)
    assert [found and found[0] for found in (script.take(_chat()) for _ in range(2))] == [0, None]
    assert script.used == [2, 1]


# -- what is said ----------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_script_says() -> None:
    """Verbatim texts, objects as JSON, ids of nine hex digits that differ, and tokens that are counted."""
    calls = [{"name": "f", "arguments": {"ü": [1, None]}}, {"name": "g", "arguments": '{"broken'}, {"name": "h"}]
    answer = _recite({"reasoning": "Let me.", "content": " So: ", "tool_calls": [*calls, {"name": "i", "id": "own"}]})
    assert (answer.reasoning, answer.content, answer.finish_reason) == ("Let me.", " So: ", "tool_calls")
    assert [call.arguments for call in answer.tool_calls] == ['{"ü":[1,null]}', '{"broken', "{}", "{}"]
    ids = [call.id for call in answer.tool_calls]
    assert ids[3] == "own"
    assert len(set(ids)) == 4
    assert all(re.fullmatch("[0-9a-f]{9}", one) for one in ids[:3])
    assert answer.reasoning_tokens == 2
    assert answer.completion_tokens == 2 + 2 + (4 + 8) + (3 + 8) + (1 + 8) + (1 + 8)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param({"content": "x"}, "stop", id="a text stops"),
        pytest.param({"content": ""}, "stop", id="an empty text, too"),
        pytest.param({}, "stop", id="and nothing at all"),
        pytest.param({"tool_calls": [{"name": "f"}]}, "tool_calls", id="a call"),
        pytest.param({"tool_calls": [{"name": "f"}], "finish_reason": "stop"}, "stop", id="the script's own"),
    ],
)
def test_the_finish_reason(answer: dict[str, Any], expected: str) -> None:
    assert _recite(answer).finish_reason == expected


@pytest.mark.parametrize(
    ("room", "reasoning", "content", "arguments"),
    [
        pytest.param(4, "t" * 16, None, [], id="in the reasoning"),
        pytest.param(8, "t" * 20, "c" * 12, [], id="in the content"),
        pytest.param(24, "t" * 20, "c" * 20, ["a" * 23], id="in the arguments"),
        pytest.param(139, "t" * 20, "c" * 20, ["a" * 400, "a" * 47], id="in the second call's arguments"),
    ],
)
def test_a_token_limit_cuts_a_scripted_answer(
    room: int, reasoning: str, content: str | None, arguments: list[str]
) -> None:
    """Cut with `length` as the service does it, and never more completion tokens than allowed."""
    said = {"reasoning": "t" * 20, "content": "c" * 20, "tool_calls": [{"name": "f", "arguments": "a" * 400}] * 2}
    answer = _recite(said, room=room)
    assert (answer.reasoning, answer.content, answer.finish_reason) == (reasoning, content, "length")
    assert [call.arguments for call in answer.tool_calls] == arguments
    assert answer.completion_tokens == room


def test_stop_sequences_and_reasoning_formats_hold_for_a_script() -> None:
    said = {"reasoning": "Think.", "content": "one END two"}
    assert _recite(said, stop="END").content == "one "
    hidden = _recite(said, reasoning_format="hidden")
    assert (hidden.reasoning, hidden.reasoning_tokens) == (None, 2)
    assert _recite(said, reasoning_format="raw").content == "Think.one END two"


def test_completion_tokens_can_be_chosen() -> None:
    answer = _recite({"reasoning": "r" * 40, "content": "x", "completion_tokens": 7})
    assert (answer.completion_tokens, answer.reasoning_tokens) == (7, 7)


# -- as which chunks -------------------------------------------------------------------------------------------

SAID = {
    "reasoning": "First this, then that, and so on for a while.",
    "content": "The answer is somewhat longer than one event of the stream.",
    "tool_calls": [
        {"name": "f", "arguments": '{"cmd":"echo one"}'},
        {"name": "g", "arguments": '{"cmd":"echo two"}'},
    ],
}


def _deltas(shape: Shape, said: dict[str, Any] = SAID) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in _stream(_recite(said), shape)]


def _fragments(shape: Shape) -> list[dict[str, Any]]:
    return [delta["tool_calls"][0] for delta in _deltas(shape) if "tool_calls" in delta]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 18, 50])
def test_arguments_in_a_number_of_fragments(count: int) -> None:
    """Behind the name, none of them empty; 0 is all with the name."""
    pieces = [one["function"]["arguments"] for one in _fragments(Shape(fragments=count)) if one["index"] == 0]
    assert "".join(pieces) == '{"cmd":"echo one"}'
    assert len(pieces) == 1 + min(count, 18)
    assert all(pieces[1:])


def test_fragments_of_two_calls_in_turns() -> None:
    assert [one["index"] for one in _fragments(Shape(fragments=2, interleave=True))] == [0, 1, 0, 1, 0, 1]
    assert [one["index"] for one in _fragments(Shape(fragments=2))] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "said", [SAID, {"reasoning": "r" * 2000, "content": "c" * 2000}, {"reasoning": "r", "content": "c"}]
)
@pytest.mark.parametrize("both", [True, False])
def test_reasoning_and_content_share_a_chunk_or_do_not(said: dict[str, Any], both: bool) -> None:
    shared = ["reasoning" in delta and "content" in delta for delta in _deltas(Shape(both=both), said)]
    assert shared.count(True) == both


@pytest.mark.parametrize("stream", [True, False])
def test_what_a_lying_server_leaves_out(stream: bool) -> None:
    """Each is there without `omit`, and gone with it."""

    def found(shape: Shape) -> set[str]:
        answer = _recite(SAID)
        if stream:
            chunks = _stream(answer, shape)
            calls = [d["tool_calls"][0] for c in chunks if "tool_calls" in (d := c["choices"][0]["delta"])]
        else:
            chunks = [json.loads(body(_head(), [answer], _chat(), shape))]
            calls = chunks[0]["choices"][0]["message"]["tool_calls"]
        there = {name for call in calls for name in ("id", "index") if name in call}
        there |= {"usage"} & chunks[-1].keys() | {"finish_reason"} & chunks[-1]["choices"][0].keys()
        assert ("time_info" in chunks[-1]) == ("usage" in there)
        return there

    whole = {"usage", "finish_reason", "id"} | ({"index"} if stream else set())
    assert found(USUAL) == whole
    for name in ("usage", "finish_reason", "id", "index"):
        assert found(Shape(omit=frozenset({name}))) == whole - {name}
    _stream(_recite(SAID), Shape(omit=frozenset({"done"})))


texts = st.text(max_size=60)
answers = st.fixed_dictionaries(
    {},
    optional={
        "reasoning": texts,
        "content": st.none() | texts,
        "tool_calls": st.lists(st.fixed_dictionaries({"name": st.just("f"), "arguments": texts}), max_size=3),
        "finish_reason": st.none() | texts,
    },
)
shapes = st.builds(
    Shape,
    fragments=st.none() | st.integers(0, 9),
    both=st.none() | st.booleans(),
    interleave=st.booleans(),
    omit=st.frozensets(st.sampled_from(["usage", "done"])),
)


@given(said=answers, shape=shapes, model=st.sampled_from(sorted(MODELS)))
def test_streamed_or_not_the_answer_is_the_same(said: dict[str, Any], shape: Shape, model: str) -> None:
    """Whatever the shape: the deltas put together are the message of the unstreamed answer."""
    answer = _recite(said)
    whole = json.loads(body(_head(model), [answer], _chat(), shape))["choices"][0]
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    chunks = _stream(answer, shape, model)
    for chunk in chunks:
        for name, value in chunk["choices"][0]["delta"].items():
            if name != "tool_calls":
                message[name] = message.get(name, "") + value
        for fragment in chunk["choices"][0]["delta"].get("tool_calls", []):
            call = calls.setdefault(fragment["index"], {"function": {"arguments": ""}})
            arguments = call["function"]["arguments"] + fragment["function"]["arguments"]
            call |= {name: fragment[name] for name in ("type", "id") if name in fragment}
            call["function"] |= fragment["function"] | {"arguments": arguments}
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    assert message == whole["message"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


# -- the file --------------------------------------------------------------------------------------------------


def test_a_list_and_lines_are_the_same_script(tmp_path: Path) -> None:
    """JSON or JSON Lines, blank lines, byte order mark and CRLF or not."""
    rules = json.loads(EXAMPLE.read_text())
    lines = tmp_path / "script.jsonl"
    lines.write_bytes(b"\xef\xbb\xbf\r\n" + b"\r\n\r\n".join(json.dumps(rule).encode() for rule in rules) + b"\n")
    assert read_script(EXAMPLE) == read_script(lines) == SimConfig(script=rules).rules
    assert parse_script("", "x") == parse_script(" [ ] ", "x") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("[\n{},\n{]\n]", r"s.json:3: is not JSON: .* in column 2", id="broken JSON in a list"),
        pytest.param("{}\n\nhello", r"s.json:3: is not JSON: Expecting value in column 1", id="broken JSON in lines"),
        pytest.param("[{}\n{}]", r"s.json:2: a comma or \] is expected between two rules, here is '{'", id="no comma"),
        pytest.param("[{},\n]", r"s.json:2: is not JSON: Expecting value", id="a comma too many"),
        pytest.param("[{}\n", r"s.json:2: the list of rules does not end", id="no end"),
        pytest.param("[{}]\n{}", r"s.json:1: something stands behind the list", id="two kinds in one file"),
        pytest.param('\n{"answer":{"content":"\\ud800"}}', r"s.json:2: cannot be sent as JSON: ", id="half a pair"),
        pytest.param('{"delay_s": NaN}', r"s.json:1: cannot be sent as JSON: NaN is no number", id="no number"),
        pytest.param("{}\n7\n\n", r"s.json:2: rule 2: is 7\ngive an object", id="no object"),
        pytest.param(
            '{"when":{"usr":"x"}}',
            r"s.json:1: rule 1.when.usr: is no key here\ndid you mean user\? accepted: user, l",
            id="an unknown condition",
        ),
        pytest.param(
            '{"content":"x"}', r"rule 1.content: is no key here\n.*accepted: when, answer, status", id="no answer"
        ),
        pytest.param('{"when":{"step":-1}}', r"rule 1.when.step: is -1\ngive a whole number, 0 or more", id="step"),
        pytest.param('{"when":{"step":true}}', r"rule 1.when.step: is true", id="true is not 1"),
        pytest.param('{"when":{"user":3}}', r"rule 1.when.user: is 3\ngive a text", id="a number for a text"),
        pytest.param('{"times":0}', r"rule 1.times: is 0\ngive a whole number, 1 or more", id="never"),
        pytest.param('{"delay_s":-1}', r"rule 1.delay_s: is -1\ngive seconds, 0 or more", id="a negative delay"),
        pytest.param('{"answer":{"tool_calls":[{}]}}', r"rule 1.answer.tool_calls.0.name: is missing", id="no name"),
        pytest.param(
            '{"answer":{"tool_calls":[{"name":"f","arguments":[1]}]}}',
            r"tool_calls.0.arguments: is \[1\]\ngive an object, or a text that is sent verbatim",
            id="arguments that are a list",
        ),
        pytest.param(
            '{"fault":"drop_mit"}',
            r"s.json:1: rule 1.fault: unknown fault 'drop_mit'\ndid you mean drop_mid",
            id="a fault",
        ),
        pytest.param(
            '{"fault":"empty","answer":{}}', r"rule 1.fault: empty_answer makes up an answer", id="two answers"
        ),
        pytest.param(
            '{"status":500,"answer":{}}', r"rule 1.status: stands beside an answer", id="refused and answered"
        ),
        pytest.param('{"status":500,"fault":"503"}', r"rule 1.status: stands beside a fault", id="two refusals"),
        pytest.param('{"status":99}', r"rule 1.status: is 99\ngive a number from 200 to 599", id="no status"),
        pytest.param('{"error":{}}', r"rule 1.error: stands without a status", id="an error without a status"),
        pytest.param(
            '{"status":400,"headers":{"a":1}}', r"rule 1.headers: is .*\ngive an object of texts", id="headers"
        ),
        pytest.param(
            '{"status":400,"headers":{"a":"b\\nc"}}', r"rule 1.headers: has a line break", id="two headers in one"
        ),
        pytest.param(
            '{"omit":["ids"]}', r'rule 1.omit: has "ids"\naccepted: usage, finish_reason, done, id, index', id="omit"
        ),
        pytest.param('{"omit":"id"}', r'rule 1.omit: is "id"\ngive a list', id="no list"),
        pytest.param('{"both":1}', r"rule 1.both: is 1\ngive true or false", id="no boolean"),
    ],
)
def test_a_wrong_script_says_where_and_what(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_script(text, "s.json")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone.json: cannot be read: No such file"):
        read_script(tmp_path / "gone.json")
    (tmp_path / "latin").write_bytes(b'{"when": {"user": "\xfc"}}')
    with pytest.raises(ValueError, match=r"latin: is not UTF-8: .* at byte 19"):
        read_script(tmp_path / "latin")


def test_the_options_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """--script, --refuse and --record reach the simulator."""
    served: list[SimConfig] = []
    monkeypatch.setattr(cli, "_serve", lambda config, *_: config)
    monkeypatch.setattr(cli, "run_async", served.append)
    arguments = ["--script", str(EXAMPLE), "--record", "--refuse", "developer_role", "--refuse", "named_tool_choice"]
    result = CliRunner().invoke(cli.command, arguments, standalone_mode=False, catch_exceptions=False)
    assert result.exception is None
    expected = SimConfig(script=read_script(EXAMPLE), refuse=["developer_role", "named_tool_choice"], record=True)
    assert served == [expected]


def test_a_wrong_script_ends_the_command(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('[\n{"answer": {"text": "x"}}]')
    with pytest.raises(JobError, match=re.escape(f"sim: {path}:2: rule 1.answer.text: is no key here")) as caught:
        CliRunner().invoke(cli.command, ["--script", str(path)], standalone_mode=False, catch_exceptions=False)
    assert caught.value.hint is not None
    assert "accepted: reasoning, content" in caught.value.hint


# -- a stricter service ----------------------------------------------------------------------------------------

SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "exec_command"}}
THOUGHT = [_user("x"), {"role": "assistant", "content": "y", "reasoning": "z"}, _user("x")]
DEVELOPER = {"messages": [{"role": "developer", "content": "x"}, _user("x")]}


@pytest.mark.parametrize(
    ("name", "fields", "param", "message"),
    [
        ("tools_with_schema", {"tools": [TOOL], "response_format": SCHEMA}, "validation_error",
         '"tools" is incompatible with "response_format"'),
        ("named_tool_choice", {"tools": [TOOL], "tool_choice": NAMED}, "tool_choice",
         "Unsupported tool_choice: type='function' function=ChoiceObjectFunction(name='exec_command'). "
         "Expected 'auto' or 'none'."),
        ("required_tool_choice", {"tools": [TOOL], "tool_choice": "required"}, "tool_choice",
         "Unsupported tool_choice: required. Expected 'auto' or 'none'."),
        ("reasoning_in_history", {"messages": THOUGHT}, "validation_error",
         "messages.1.assistant.reasoning: property 'messages.1.assistant.reasoning' is unsupported"),
        ("developer_role", {"model": "zai-glm-4.7"} | DEVELOPER, "messages",
         "messages.0.role: Input should be 'assistant', 'system', 'tool' or 'user'"),
    ],
)  # fmt: skip
def test_what_a_stricter_service_refuses(name: str, fields: dict[str, Any], param: str, message: str) -> None:
    """400 wrong_api_format for that, and for none of what the other switches are about."""
    chat = _chat(**fields) if "messages" not in fields else parse_chat({"model": "gpt-oss-120b"} | fields)
    with pytest.raises(Refused) as caught:
        check_refusals(chat, [name])
    assert caught.value.answer.status == 400
    assert json.loads(caught.value.answer.body) == {
        "message": message, "type": "invalid_request_error", "param": param, "code": "wrong_api_format",
    }  # fmt: skip
    check_refusals(chat, [other for other in REFUSALS if other != name])


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"tools": [TOOL]}, id="tools alone"),
        pytest.param({"response_format": SCHEMA}, id="a schema alone"),
        pytest.param({"tools": [TOOL], "response_format": {"type": "json_object"}}, id="tools and json_object"),
        pytest.param({"tools": [TOOL], "tool_choice": "auto"}, id="auto"),
        pytest.param(DEVELOPER, id="developer on gpt-oss"),
    ],
)
def test_what_even_a_strict_service_takes(fields: dict[str, Any]) -> None:
    check_refusals(parse_chat({"model": "gpt-oss-120b", "messages": [_user("x")]} | fields), REFUSALS)


def test_an_unknown_refusal_is_an_error() -> None:
    with pytest.raises(ValueError, match="refuse is 'tools'\naccepted: tools_with_schema"):
        SimConfig(refuse=["tools"])


# -- recording -------------------------------------------------------------------------------------------------


def test_a_recording_keeps_the_last_requests_without_keys() -> None:
    """At most 100, oldest first, bytes as they came, and nothing that a key is in."""
    recording = Recording()
    for number in range(150):
        secrets = [("Authorization", "Bearer s"), ("X-Api-Key", "s"), ("Cookie", "s"), ("Proxy-Authorization", "s")]
        recording.add([*secrets, ("X-A", "1"), ("x-a", "2")], b'{ "n":%d}' % number)
    found = recording.last(1000)
    assert [one["body"] for one in found] == [f'{{ "n":{number}}}' for number in range(50, 150)]
    assert all(one["headers"] == {"x-a": "1, 2"} for one in found)
    assert [one["body"] for one in recording.last(2)] == ['{ "n":148}', '{ "n":149}']
    assert recording.last(0) == []


def test_a_recording_is_bounded_in_bytes() -> None:
    recording = Recording()
    for letter in (b"a", b"b", b"c"):
        recording.add([], letter * (15 * 1024 * 1024))
    assert [str(one["body"])[0] for one in recording.last(9)] == ["b", "c"]
    recording.add([], b"d" * (33 * 1024 * 1024))
    assert recording.last(9) == []
