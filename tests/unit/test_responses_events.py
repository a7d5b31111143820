"""However an answer was cut into chunks, its events obey the grammar and add up to the same items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.responses import Declared, ToolNames, Translation
from cbatch.responses.events import Events, encode
from cbatch.responses.whole import to_response

Event = dict[str, Any]
Chunk = dict[str, Any]

TOOLS = (
    Declared("function", "exec_command"),
    Declared("function", "add_numbers", "mcp__demo"),
    Declared("custom", "apply_patch"),
    Declared("tool_search", "tool_search"),
    Declared("local_shell", "local_shell"),
)
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 40},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
ECHO = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "text": {"format": {"type": "text"}}}


def translation(tools: Iterable[Declared] = TOOLS) -> Translation:
    names = ToolNames(tools)
    chat: dict[str, Any] = {"model": "gpt-oss-120b"}
    if tools:
        chat["tools"] = [{"type": "function", "function": {"name": names.lower(t.name, t.namespace)}} for t in tools]
    return Translation(chat=chat, tools=names, echo=ECHO, stream=True)


def events_of(*, tools: Iterable[Declared] = TOOLS) -> Events:
    return Events(translation(tools), response_id="resp_ab", created_at=1)


def chunk(delta: object = None, finish: str | None = None, **more: Any) -> Chunk:
    choice: dict[str, Any] = {"delta": {} if delta is None else delta, "index": 0}
    if finish is not None:
        choice["finish_reason"] = finish
    return {"id": "chatcmpl-1", "choices": [choice], **more}


def said(text: str) -> Chunk:
    return chunk({"content": text})


def called(*pieces: dict[str, Any]) -> Chunk:
    return chunk({"tool_calls": list(pieces)})


def piece(index: int | None = 0, id: str | None = None, name: str | None = None, arguments: object = None) -> Event:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    call = {"index": index, "id": id, "function": function}
    return {key: value for key, value in call.items() if value is not None}


def run(*chunks: Chunk, finish: str | None = "stop", tools: Iterable[Declared] = TOOLS) -> tuple[list[Event], Event]:
    """All events of an answer, checked; and its final Response."""
    state = events_of(tools=tools)
    events = state.start()
    for one in chunks:
        events += state.chunk(one)
    if finish is not None:
        events += state.chunk(chunk({}, finish, usage=USAGE))
    events += state.finish()
    check(events)
    assert events[-1]["response"] == state.response
    return events, state.response


def kinds(response: Event) -> list[str]:
    return [item["type"] for item in response["output"]]


# What belongs to an item's kind: the events of its text with the key of the whole, and the parts around it.
GRAMMAR: dict[str, tuple[str | None, str, str | None]] = {
    "reasoning": ("reasoning_summary_text", "text", "reasoning_summary_part"),
    "message": ("output_text", "text", "content_part"),
    "function_call": ("function_call_arguments", "arguments", None),
    "custom_tool_call": ("custom_tool_call_input", "input", None),
    "tool_search_call": (None, "", None),
    "local_shell_call": (None, "", None),
}


def check(events: Sequence[Event]) -> None:
    """The grammar of a stream: numbers without gaps, and added -> deltas -> done inside of every item."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0]["response"]["output"] == []
    assert events[0]["response"]["status"] == "in_progress"
    end = events[-1]
    assert end["type"] == f"response.{end['response']['status']}"
    by_item: dict[int, list[Event]] = {}
    for event in events[2:-1]:
        by_item.setdefault(event["output_index"], []).append(event)
    assert list(by_item) == list(range(len(by_item))), "items are added in the order of their indexes"
    done = [check_item(item) for item in by_item.values()]
    assert end["response"]["output"] == [item for item in done if item is not None]
    assert end["type"] != "response.completed" or None not in done
    ends = [event["output_index"] for event in events if "call_id" in event.get("item", {}) and "done" in event["type"]]
    assert ends == sorted(ends), "a client executes calls in the order in which they are done"
    call_ids = [item["call_id"] for item in done if item is not None and "call_id" in item]
    assert len(set(call_ids)) == len(call_ids)
    for event in events:
        frame = encode(event)
        assert frame.startswith(b"event: " + event["type"].encode() + b"\ndata: {")
        assert frame.endswith(b"}\n\n")
        assert frame.count(b"\n") == 3
        assert orjson.loads(frame.split(b"data: ", 1)[1]) == event


def check_item(events: list[Event]) -> Event | None:
    """One item's events; its done item, or None where it was never done."""
    added, *inside = events
    assert added["type"] == "response.output_item.added"
    item = added["item"]
    assert item["status"] == "in_progress"
    text_events, key, part_events = GRAMMAR[item["type"]]
    assert all(event["item_id"] == item["id"] for event in inside if event["type"] != "response.output_item.done")
    done = inside.pop()["item"] if inside and inside[-1]["type"] == "response.output_item.done" else None
    if done is not None:
        assert done["status"] in ("completed", "incomplete")
        fixed = ("type", "id", "call_id", "name", "namespace", "role", "execution")
        assert {k: item.get(k) for k in fixed} == {k: done.get(k) for k in fixed}
    names = [event["type"] for event in inside]
    if text_events is None:
        assert names == []
        return done
    begin = [f"response.{part_events}.added"] if part_events else []
    ends = [f"response.{text_events}.done", *([f"response.{part_events}.done"] if part_events else [])]
    deltas = [event["delta"] for event in inside if event["type"] == f"response.{text_events}.delta"]
    assert names == begin + [f"response.{text_events}.delta"] * len(deltas) + (ends if done is not None else [])
    assert "" not in deltas
    if done is not None:
        ended = next(event for event in inside if event["type"] == ends[0])
        assert ended[key] == "".join(deltas)
        if part_events:
            assert inside[-1]["part"] == done["summary" if item["type"] == "reasoning" else "content"][0]
            assert inside[-1]["part"]["text"] == ended[key]
        else:
            assert done[key] == ended[key]
    return done


# -- laws -------------------------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
texts = st.one_of(
    st.just(""),
    words,
    st.text(" \n", max_size=80),
    st.builds(lambda blanks, text: " " * blanks + text, st.integers(0, 80), words),
    st.lists(
        st.sampled_from(["<tool", "_call>", "<tool_call>", '{"name": "exec_command"}', "</tool_call>", " ", "x"])
    ).map("".join),
    st.just('<tool_call>\n{"name": "exec_command", "arguments": {"cmd": "ls"}}\n</tool_call>'),
)
json_objects = st.dictionaries(words, st.one_of(words, st.integers(0, 9), st.lists(words, max_size=2)), max_size=3)
arguments = st.one_of(
    json_objects.map(lambda value: orjson.dumps(value).decode()),
    json_objects.map(lambda value: orjson.dumps(orjson.dumps(value).decode()).decode()),
    words.map(lambda text: orjson.dumps({"input": text}).decode()),
    st.sampled_from(["", " ", "null", "{", '{"cmd": "l', ' {"a": 1} ', "```\n*** Begin Patch\n```"]),
    words,
)
names = st.sampled_from(["exec_command", "mcp__demo__add_numbers", "apply_patch", "tool_search", "local_shell", "new"])
call_lists = st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), names, arguments), max_size=4)


@st.composite
def pieces_of(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def streamed(draw: st.DrawFn, reasoning: str, text: str, calls: list[tuple[str, str, str]]) -> list[Chunk]:
    """The chunks of an answer, cut anywhere; calls interleave, and reasoning and text may share a chunk."""
    thoughts, contents = draw(pieces_of(reasoning)), draw(pieces_of(text))
    chunks = [chunk({"role": "assistant"})]
    if draw(st.booleans()):
        border = {"reasoning": thoughts.pop(), "content": contents.pop(0)}
        chunks += [chunk({"reasoning": one}) for one in thoughts]
        chunks.append(chunk(border))
    else:
        chunks += [chunk({"reasoning": one}) for one in thoughts]
    chunks += [said(one) for one in contents]
    waiting = []
    for index, (call_id, name, args) in enumerate(calls):
        first, *more = draw(pieces_of(args))
        waiting.append([piece(index, call_id, name, first), *(piece(index, arguments=one) for one in more)])
    started = 0
    while any(waiting):
        able = [at for at, left in enumerate(waiting) if left and at <= started]
        at = draw(st.sampled_from(able))
        started = max(started, at + 1)
        taken = [waiting[at].pop(0)]
        if draw(st.booleans()) and started > at + 1 and waiting[at + 1]:  # two calls in one chunk
            taken.append(waiting[at + 1].pop(0))
        chunks.append(called(*taken))
        if draw(st.booleans()):
            chunks.append(chunk(draw(st.sampled_from([{}, {"content": None}, {"content": "", "reasoning": ""}]))))
    return chunks


@given(st.data(), texts, texts, call_lists, st.sampled_from(["stop", "tool_calls", "length", "content_filter"]))
def test_any_chunking_of_an_answer_gives_the_response_of_the_whole_answer(
    data: st.DataObject, reasoning: str, text: str, calls: list[tuple[str, str, str]], finish: str
) -> None:
    """The same items in the same order, with the same ids, as of the completion in one piece."""
    chunks = data.draw(streamed(reasoning, text, calls))
    _, response = run(*chunks, finish=finish)
    message = {
        "role": "assistant",
        "content": text,
        "reasoning": reasoning,
        "tool_calls": [
            {"id": id, "type": "function", "function": {"name": name, "arguments": args}} for id, name, args in calls
        ],
    }
    completion = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": USAGE}
    assert response == to_response(translation(), completion, response_id="resp_ab", created_at=1)


@given(st.data(), texts, texts, call_lists)
def test_nothing_that_was_said_is_lost(
    data: st.DataObject, reasoning: str, text: str, calls: list[tuple[str, str, str]]
) -> None:
    chunks = data.draw(streamed(reasoning, text, calls))
    _, response = run(*chunks)
    output = response["output"]
    assert "".join(item["summary"][0]["text"] for item in output if item["type"] == "reasoning") == reasoning
    made = [item for item in output if item["type"] not in ("reasoning", "message")]
    told = "".join(item["content"][0]["text"] for item in output if item["type"] == "message")
    if not calls and made:
        assert text.strip().startswith("<tool_call>")  # the text was a call
    else:
        assert len(made) == len(calls)
        assert told == text or (calls and not told and not text.strip())
    for item, (call_id, _, args) in zip(made, calls, strict=False):
        assert item["call_id"] == call_id or call_id == "" or [one[0] for one in calls].count(call_id) > 1
        if item["type"] == "function_call" and args.startswith("{"):
            assert item["arguments"] == args


KEYS = "index", "delta", "content", "reasoning", "tool_calls", "function", "name", "arguments", "id", "choices", "x"
json_like = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
odd_chunks = st.one_of(
    st.dictionaries(st.sampled_from(["choices", "usage", "error"]), json_like, max_size=3),
    json_like.map(lambda delta: chunk(delta)),
    st.dictionaries(
        st.sampled_from(["content", "reasoning", "reasoning_content", "tool_calls"]), json_like, max_size=3
    ).map(chunk),
    st.lists(st.dictionaries(st.sampled_from(["index", "id", "function"]), json_like), max_size=3).map(
        lambda calls: chunk({"tool_calls": calls})
    ),
    st.builds(
        lambda index, id, name, arguments: called(piece(index, id, name, arguments)),
        *(st.one_of(st.none(), json_like) for _ in range(4)),
    ),
)


@given(st.lists(odd_chunks, max_size=6), st.sampled_from(["stop", "length", None]))
def test_chunks_of_any_shape_raise_nothing_and_keep_the_grammar(chunks: list[Chunk], finish: str | None) -> None:
    run(*chunks, finish=finish)


# -- the cases of the fact sheet --------------------------------------------------------------------------------------


def test_the_first_events_are_numbered_first_even_if_chunks_were_read_before() -> None:
    """The gateway holds the first byte back until the upstream has spoken."""
    state = events_of()
    later = state.chunk(said("hello"))
    assert [event["sequence_number"] for event in state.start() + later] == [0, 1, 2, 3, 4]


def test_a_text_is_shown_as_it_comes() -> None:
    state = events_of()
    assert [event["type"] for event in state.chunk(said("hel"))] == [
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
    ]
    (delta,) = state.chunk(said("lo"))
    assert (delta["delta"], delta["logprobs"], delta["content_index"]) == ("lo", [], 0)


def test_the_arguments_of_a_function_are_shown_as_they_come() -> None:
    state = events_of()
    added = state.chunk(called(piece(0, "call_A", "exec_command", "")))
    assert [event["type"] for event in added] == ["response.output_item.added"]
    (delta,) = state.chunk(called(piece(0, arguments='{"cmd":')))
    assert delta["type"] == "response.function_call_arguments.delta"
    assert delta["delta"] == '{"cmd":'


def test_a_call_is_done_only_when_the_whole_answer_is() -> None:
    """Else what a client executed already would be asked for again after the stream was cut."""
    state = events_of()
    events = state.chunk(called(piece(0, "a", "exec_command", "{}")))
    events += state.chunk(called(piece(1, "b", "exec_command", "{}")))
    events += state.finish()
    assert "response.output_item.done" not in [event["type"] for event in events]
    assert events[-1]["type"] == "response.failed"


def test_an_answer_without_finish_reason_failed() -> None:
    events, response = run(said("half an ans"), finish=None)
    assert events[-1]["type"] == "response.failed"
    assert response["error"]["code"] == "server_error"
    assert response["output"] == []


def test_a_failure_tells_code_and_message_and_keeps_what_was_done() -> None:
    state = events_of()
    state.chunk(chunk({"reasoning": "hm", "content": "hello"}))
    (failed,) = state.fail("rate_limit_exceeded", "Please try again in 1.2s.")
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "rate_limit_exceeded", "message": "Please try again in 1.2s."}
    assert kinds(failed["response"]) == ["reasoning"]
    assert state.response == failed["response"]


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")], ids=str
)
def test_an_answer_that_was_cut_is_incomplete_and_its_cut_call_is_never_done(finish: str, reason: str) -> None:
    events, response = run(
        said("I will"),
        called(piece(0, "a", "exec_command", '{"cmd":"ls"}')),
        called(piece(1, "b", "exec_command", '{"cmd":"rm -rf /tmp/')),
        finish=finish,
    )
    assert events[-1]["type"] == "response.incomplete"
    assert response["incomplete_details"] == {"reason": reason}
    assert [item.get("call_id") for item in response["output"]] == [None, "a"]
    assert response["usage"]["total_tokens"] == 120


def test_a_text_that_was_cut_is_told_as_far_as_it_goes() -> None:
    _, response = run(said("half an ans"), finish="length")
    (item,) = response["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "half an ans")


def test_reasoning_after_text_is_a_new_item() -> None:
    _, response = run(chunk({"reasoning": "a"}), said("b"), chunk({"reasoning": "c"}), said("d"))
    assert kinds(response) == ["reasoning", "message", "reasoning", "message"]


def test_an_item_of_text_is_done_when_the_next_item_begins() -> None:
    """Text after a call is another message, in its place."""
    events, response = run(said("a"), called(piece(0, "a", "exec_command", "{}")), said("b"))
    assert kinds(response) == ["message", "function_call", "message"]
    order = [(event["type"], event["output_index"]) for event in events if "item" in event]
    assert order.index(("response.output_item.done", 0)) < order.index(("response.output_item.added", 1))


def test_usage_is_taken_from_any_chunk_also_from_one_without_choices() -> None:
    for chunks in (
        [said("a"), chunk({}, "stop"), {"choices": [], "usage": USAGE}],
        [chunk({"content": "a"}, usage=USAGE), chunk({}, "stop", usage=None)],
    ):
        _, response = run(*chunks, finish=None)
        assert response["usage"]["input_tokens_details"] == {"cached_tokens": 40, "cache_write_tokens": 0}
    _, response = run(said("a"), chunk({}, "stop"), finish=None)
    assert response["usage"] is None


def test_other_choices_than_the_first_are_not_mixed_in() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "other"}, "finish_reason": "stop"}]}
    _, response = run(said("one"), other)
    assert response["output"][0]["content"][0]["text"] == "one"
