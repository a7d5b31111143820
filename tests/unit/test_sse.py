"""A stream is the same completion however it was cut into reads and lines, and its marks are of the right reads."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.client import Client, Endpoint
from cbatch.errors import (
    APIError,
    APIResponseError,
    APIStatusError,
    BadRequestError,
    InternalServerError,
    RateLimitError,
)
from cbatch.replies import Reply
from cbatch.schema import Completion, StreamMarks, TimeInfo, Usage
from cbatch.sse import events, is_stream, read_stream
from cbatch.transport import OnRead, OnSent

USAGE = {
    "total_tokens": 12,
    "completion_tokens": 5,
    "completion_tokens_details": {"reasoning_tokens": 3},
    "prompt_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 2},
}
TIMES = {"queue_time": 0.001, "prompt_time": 0.002, "completion_time": 0.003, "total_time": 0.016, "created": 1.0}
HEAD = {"id": "chatcmpl-1", "model": "gpt-oss-120b", "system_fingerprint": "fp_1", "object": "chat.completion.chunk"}
READ_USAGE = Usage(prompt_tokens=7, cached_tokens=2, completion_tokens=5, reasoning_tokens=3, total_tokens=12)
READ_TIMES = TimeInfo(queue_s=0.001, prompt_s=0.002, completion_s=0.003, total_s=0.016)
DONE = b"data: [DONE]\n\n"


def chunk(delta: object = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice: dict[str, Any] = {"delta": {} if delta is None else delta, "index": 0}
    if finish is not None:
        choice["finish_reason"] = finish
    return {**HEAD, "choices": [choice], **more}


def said(text: str) -> dict[str, Any]:
    return chunk({"content": text})


END = chunk({}, "stop", usage=USAGE, time_info=TIMES)


def sse(*chunks: object, done: bool = True) -> bytes:
    return b"".join(b"data: " + orjson.dumps(one) + b"\n\n" for one in chunks) + (DONE if done else b"")


def in_one(body: bytes) -> Reply:
    return Reply(200, {}, body, [(len(body), 1.0)])


def read(*chunks: object) -> Completion:
    return read_stream(in_one(sse(*chunks)))


def refused(body: bytes) -> APIError:
    with pytest.raises(APIError) as caught:
        read_stream(in_one(body))
    return caught.value


# -- laws -------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, Completion, list[tuple[int, int, bool]]]:
    """(body, what it says, (end, characters, has an answer) of every event that carries something)."""
    kinds = st.sampled_from(["content", "reasoning", "reasoning_content", "both", "tool", "empty", "null", "role"])
    chunks: list[dict[str, Any]] = []
    carried: list[tuple[int, bool] | None] = []
    text: list[str] = []
    thought: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    for kind in draw(st.lists(kinds, max_size=8)):
        delta: dict[str, Any] = {}
        characters, answers = 0, False
        if kind in ("reasoning", "reasoning_content", "both"):
            delta["reasoning" if kind == "both" else kind] = piece = draw(TEXT)
            thought += [piece] if piece else []
            characters += len(piece)
        if kind in ("content", "both"):
            delta["content"] = piece = draw(TEXT)
            text.append(piece)
            characters += len(piece)
            answers = bool(piece)
        if kind == "tool":
            index = draw(st.integers(0, 2))
            piece = draw(TEXT)
            function = {"arguments": piece}
            call = {"index": index, "function": function}
            if index not in calls:
                calls[index] = {"id": f"call_{index}", "type": "function", "function": {"name": "f", "arguments": ""}}
                call |= {"id": f"call_{index}", "type": "function"}
                function["name"] = "f"
                characters += 1
            calls[index]["function"]["arguments"] += piece
            delta["tool_calls"] = [call]
            characters += len(piece)
            answers = characters > 0
        if kind == "role":
            delta["role"] = "assistant"
        if kind == "null":
            delta = dict.fromkeys(("role", "content", "reasoning", "tool_calls"))
        chunks.append(chunk(delta))
        carried.append((characters, answers) if characters else None)
    finish = chunk({}, "stop")
    if draw(st.booleans()):
        finish["choices"][0]["delta"] = None
    chunks.append(finish)
    carried.append(None)
    for name, value in (("usage", USAGE), ("time_info", TIMES)):
        place = draw(st.integers(0, len(chunks)))
        if place == len(chunks):
            chunks.append({**HEAD, "choices": []})
            carried.append(None)
        chunks[place][name] = value
        if draw(st.booleans()):
            chunks[-1].setdefault(name, None)
    end_of_line = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    body = b"\xef\xbb\xbf" if draw(st.booleans()) else b""
    marks: list[tuple[int, int, bool]] = []
    beside = [b": still here", b":", b"id: 7", b"retry: 100", b"event: message"]
    noise = st.lists(st.sampled_from(beside), max_size=2)
    unknown = st.lists(st.sampled_from([*beside, b"unknown", b"unknown: 1"]), max_size=2)
    for one, carries in zip([*chunks, None], [*carried, None], strict=True):
        if one is None:
            lines = [b"[DONE]"]
        elif draw(st.integers(0, 4)):
            lines = [orjson.dumps(one)]
        else:
            lines = orjson.dumps(one, option=orjson.OPT_INDENT_2).split(b"\n")
        space = b" " if draw(st.booleans()) else b""
        for line in draw(noise):
            body += line + end_of_line
        body += end_of_line.join(b"data:" + space + line for line in lines)
        if carries is not None:
            marks.append((len(body), *carries))
        body += end_of_line
        for line in draw(unknown):
            body += line + end_of_line
        if one is not None or draw(st.booleans()):
            body += end_of_line * draw(st.integers(1, 3))
    expected = Completion(
        text="".join(text) if text else None,
        reasoning="".join(thought) or None,
        tool_calls=[calls[index] for index in sorted(calls)] or None,
        finish_reason="stop",
        usage=READ_USAGE,
        time_info=READ_TIMES,
        request_id="chatcmpl-1",
        served_model="gpt-oss-120b",
        system_fingerprint="fp_1",
    )
    return body, expected, marks


@st.composite
def read_in_pieces(draw: st.DrawFn, length: int) -> list[tuple[int, float]]:
    places = draw(st.sets(st.integers(1, max(length - 1, 1)), max_size=12))
    ends = sorted({place for place in places if place < length} | {length})
    gaps = draw(st.lists(st.floats(0.001, 1.0), min_size=len(ends), max_size=len(ends)))
    return list(zip(ends, itertools.accumulate(gaps), strict=True))


@given(st.data())
def test_any_cut_into_reads_is_the_same_completion_with_the_marks_of_its_reads(data: st.DataObject) -> None:
    body, expected, carried = data.draw(streams())
    reads = data.draw(read_in_pieces(len(body)))
    assert is_stream(body)
    found = read_stream(Reply(200, {}, body, reads))
    assert replace(found, stream=None) == expected
    if not carried:
        assert found.stream is None
        return
    stamps = [next(stamp for end, stamp in reads if end >= place) for place, _, _ in carried]
    own = sorted(set(stamps))
    total = sum(characters for _, characters, _ in carried)
    first = sum(characters for (_, characters, _), stamp in zip(carried, stamps, strict=True) if stamp == stamps[0])
    assert found.stream is not None
    assert asdict(found.stream) == dict(
        first=stamps[0],
        first_answer=next((stamp for (_, _, answers), stamp in zip(carried, stamps, strict=True) if answers), None),
        last=stamps[-1],
        end=reads[-1][1],
        n_chunks=len(carried),
        n_reads=len(own),
        first_share=pytest.approx(first / total),
        max_gap_s=pytest.approx(max(b - a for a, b in itertools.pairwise(own))) if len(own) > 1 else None,
    )
    marks = found.stream
    assert marks.first <= (marks.first_answer or marks.last) <= marks.last <= marks.end
    assert 1 <= marks.n_reads <= min(marks.n_chunks, len(reads))
    assert 0 < marks.first_share <= 1


@given(st.binary(max_size=400))
def test_whatever_the_bytes_it_is_a_completion_or_an_api_error(body: bytes) -> None:
    with suppress(APIError):
        read_stream(in_one(b"data: " + body))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "index",
                    "content",
                    "reasoning",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "id",
                    "error",
                    "message",
                    "code",
                    "status_code",
                    "usage",
                    "time_info",
                    "finish_reason",
                    "completion_tokens",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON | st.builds(lambda delta: {"choices": [{"delta": delta}]}, JSON), max_size=4))
def test_whatever_the_chunks_say_it_is_a_completion_or_an_api_error(chunks: list[Any]) -> None:
    try:
        found = read_stream(in_one(sse(*chunks, END)))
    except APIError:
        return
    orjson.dumps([found.text, found.reasoning, found.tool_calls])


@given(
    st.lists(
        st.builds(
            lambda **piece: piece,
            index=st.none() | st.integers(0, 2) | TEXT,
            id=st.none() | st.sampled_from(["a", "b"]) | st.integers(0, 9),
            function=JSON | st.fixed_dictionaries({"name": TEXT | st.none(), "arguments": TEXT | st.integers(0, 9)}),
        )
        | JSON,
        max_size=6,
    )
)
def test_whatever_the_pieces_of_tool_calls_are_they_can_be_stored(pieces: list[Any]) -> None:
    found = read(*(chunk({"tool_calls": [piece]}) for piece in pieces), chunk({"tool_calls": pieces}), END)
    orjson.dumps(found.tool_calls)


# -- lines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "found"),
    [
        pytest.param(b"data: a\n\ndata: b\n\n", [(b"", b"a", 7), (b"", b"b", 16)], id="two events"),
        pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", [(b"", b"a", 7), (b"", b"b", 18)], id="CRLF"),
        pytest.param(b"data: a\r\rdata: b\r\r", [(b"", b"a", 7), (b"", b"b", 16)], id="CR"),
        pytest.param(b"data:a\n\n", [(b"", b"a", 6)], id="no space"),
        pytest.param(b"data: a\ndata: b\n\n", [(b"", b"a\nb", 15)], id="several lines"),
        pytest.param(b"data: a\nid: 1\nretry: 2\n\n", [(b"", b"a", 7)], id="other fields behind"),
        pytest.param(b"event: error\ndata: a\n\n", [(b"error", b"a", 20)], id="a name"),
        pytest.param(b"event: error\n\ndata: a\n\n", [(b"", b"a", 21)], id="a name without data is forgotten"),
        pytest.param(b"data: a\nevent: error\n\n", [(b"error", b"a", 7)], id="a name behind the data"),
        pytest.param(b": comment\n\ndata: a\n\n", [(b"", b"a", 18)], id="a comment first"),
        pytest.param(b": c\ndata: a\n: c\n\n", [(b"", b"a", 11)], id="comments around"),
        pytest.param(b":\n\n:\n\n", [], id="comments alone"),
        pytest.param(b"\n\n\n\n\ndata: a\n\n\n\n\n", [(b"", b"a", 12)], id="many empty lines"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a", 10)], id="a byte order mark"),
        pytest.param(b"data: a", [(b"", b"a", 7)], id="the last line without an end"),
        pytest.param(b"data: a\n", [(b"", b"a", 7)], id="the last event without an empty line"),
        pytest.param(b"datum: a\n\nDATA: b\n\ndata\n\n", [(b"", b"", 23)], id="fields that are none of ours"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_lines_become_events(body: bytes, found: list[tuple[bytes, bytes, int]]) -> None:
    assert list(events(body)) == found


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"data: {}", True, id="data"),
        pytest.param(b"data:{}", True, id="no space"),
        pytest.param(b": hello\n\ndata: {}", True, id="a comment first"),
        pytest.param(b"event: error\ndata: {}", True, id="a name first"),
        pytest.param(b"id: 1\ndata: {}", True, id="an id first"),
        pytest.param(b"retry: 1\ndata: {}", True, id="a retry first"),
        pytest.param(b"\xef\xbb\xbfdata: {}", True, id="a byte order mark"),
        pytest.param(b"\r\n" * 500 + b"data: {}", True, id="500 empty lines, to keep the connection"),
        pytest.param(b'{"data: ": 1}', False, id="JSON"),
        pytest.param(b"<html>data: </html>", False, id="HTML"),
        pytest.param(b"", False, id="nothing"),
        pytest.param(b"database error", False, id="a word"),
        pytest.param(b"\n\n", False, id="empty lines"),
    ],
)
def test_a_stream_is_known_by_its_beginning(body: bytes, expected: bool) -> None:
    assert is_stream(body) is expected


# -- what the chunks say -----------------------------------------------------------------------------


def test_a_stream_as_it_is_on_the_wire() -> None:
    """The role comes first, then reasoning, then the answer; usage and times are in the finish chunk."""
    found = read(
        chunk({"role": "assistant"}),
        chunk({"reasoning": "We"}),
        chunk({"reasoning": "ather."}),
        said("It is "),
        said("sunny."),
        END,
    )
    assert replace(found, stream=None) == Completion(
        text="It is sunny.",
        reasoning="Weather.",
        tool_calls=None,
        finish_reason="stop",
        usage=READ_USAGE,
        time_info=READ_TIMES,
        request_id="chatcmpl-1",
        served_model="gpt-oss-120b",
        system_fingerprint="fp_1",
    )
    assert found.stream is not None
    assert found.stream.n_chunks == 4


def test_a_character_whose_bytes_come_in_two_reads_is_whole() -> None:
    body = sse(said("Gr\u00fc\u00dfe \U0001f324"), END)
    for cut in range(1, len(body)):
        found = read_stream(Reply(200, {}, body, [(cut, 1.0), (len(body), 2.0)]))
        assert found.text == "Gr\u00fc\u00dfe \U0001f324"


def test_a_line_separator_of_unicode_ends_no_line() -> None:
    assert read(said("a\u2028b\x85c\x0bd"), END).text == "a\u2028b\x85c\x0bd"


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([said("x"), END], id="in the finish chunk"),
        pytest.param(
            [said("x"), chunk({}, "stop"), {**HEAD, "choices": [], "usage": USAGE, "time_info": TIMES}], id="alone"
        ),
        pytest.param([said("x"), chunk({}, "stop"), {"usage": USAGE, "time_info": TIMES}], id="without choices"),
        pytest.param([{**said("x"), "usage": USAGE, "time_info": TIMES}, chunk({}, "stop")], id="in the first chunk"),
        pytest.param(
            [{**said("x"), "usage": None}, chunk({}, "stop", usage=USAGE), {"time_info": TIMES, "choices": None}],
            id="in two, null elsewhere",
        ),
        pytest.param(
            [{**said("x"), "usage": {"completion_tokens": 1}}, END],
            id="told with every chunk: the last one holds",
        ),
    ],
)
def test_usage_and_times_may_be_in_any_chunk(chunks: list[Any]) -> None:
    found = read(*chunks)
    assert (found.text, found.usage, found.time_info) == ("x", READ_USAGE, READ_TIMES)


def test_a_stream_without_usage_has_none() -> None:
    found = read(said("x"), chunk({}, "stop"))
    assert (found.usage, found.time_info) == (Usage(), TimeInfo())


@pytest.mark.parametrize(
    ("deltas", "text", "reasoning"),
    [
        pytest.param([{"reasoning": "a"}, {"content": "b"}], "b", "a", id="one after the other"),
        pytest.param([{"reasoning_content": "a"}, {"content": "b"}], "b", "a", id="by its other name"),
        pytest.param([{"reasoning": "a", "content": "b"}], "b", "a", id="in one chunk"),
        pytest.param([{"reasoning": "a", "reasoning_content": "a"}], None, "a", id="by both names: once"),
        pytest.param([{"reasoning": "", "reasoning_content": "a"}], None, "a", id="by both names, one empty"),
        pytest.param([{"content": ""}], "", None, id="an empty answer"),
        pytest.param([{"content": None, "reasoning": None}], None, None, id="nulls"),
        pytest.param([{}], None, None, id="nothing"),
        pytest.param([None, "x", 5, []], None, None, id="deltas that are none"),
        pytest.param([{"content": 5, "reasoning": ["x"]}], None, None, id="texts that are none"),
    ],
)
def test_text_and_reasoning(deltas: Sequence[Any], text: str | None, reasoning: str | None) -> None:
    made = [{**HEAD, "choices": [{"delta": delta, "index": 0}]} for delta in deltas]
    found = read(*made, END)
    assert (found.text, found.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        pytest.param([None, None, "length"], "length", id="null until the end"),
        pytest.param(["stop", None], "stop", id="null after it"),
        pytest.param(["stop", "length"], "length", id="the last one holds"),
        pytest.param(["", "stop"], "stop", id="empty until the end"),
    ],
)
def test_a_finish_reason_of_null_is_none(reasons: list[str | None], expected: str) -> None:
    made = [{**HEAD, "choices": [{"delta": {"content": "x"}, "finish_reason": reason}]} for reason in reasons]
    assert read(*made).finish_reason == expected


def test_other_answers_than_the_first_are_not_mixed_in() -> None:
    """`n` is refused, but a server may do as it likes."""
    both = {**HEAD, "choices": [{"delta": {"content": "B"}, "index": 1}, {"delta": {"content": "a"}, "index": 0}]}
    other = {**HEAD, "choices": [{"delta": {"content": "C"}, "finish_reason": "length", "index": 1}]}
    unnumbered = {**HEAD, "choices": [{"delta": {"content": "b"}}]}
    found = read(both, other, unnumbered, END)
    assert (found.text, found.finish_reason) == ("ab", "stop")


# -- tool calls --------------------------------------------------------------------------------------


def call(arguments: object = None, **more: Any) -> dict[str, Any]:
    function = {name: more.pop(name) for name in ("name",) if name in more}
    return {**more, "function": function | ({} if arguments is None else {"arguments": arguments})}


def whole(name: str, arguments: str, **more: Any) -> dict[str, Any]:
    return {**more, "function": {"name": name, "arguments": arguments}}


ONE = whole("f", '{"a":1}', id="a", type="function")
TWO = whole("g", '{"b":2}', id="b", type="function")


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        pytest.param([[{**ONE, "index": 0}]], [ONE], id="whole"),
        pytest.param(
            [[call("", name="f", id="a", type="function", index=0)], [call('{"a"', index=0)], [call(":1}", index=0)]],
            [ONE],
            id="in pieces",
        ),
        pytest.param([[{**ONE, "index": 0}, {**TWO, "index": 1}]], [ONE, TWO], id="two in one chunk"),
        pytest.param([[{**TWO, "index": 1}], [{**ONE, "index": 0}]], [ONE, TWO], id="by index, not by arrival"),
        pytest.param(
            [
                [
                    call("", name="f", id="a", type="function", index=0),
                    call("", name="g", id="b", type="function", index=1),
                ],
                [call('{"b"', index=1), call('{"a"', index=0)],
                [call(":1}", index=0)],
                [call(":2}", index=1)],
            ],
            [ONE, TWO],
            id="two at the same time, in pieces",
        ),
        pytest.param([[ONE], [TWO]], [ONE, TWO], id="without an index, two ids are two calls"),
        pytest.param([[ONE, TWO]], [ONE, TWO], id="without an index, in one chunk"),
        pytest.param(
            [
                [call("", name="f", id="a", type="function")],
                [call('{"a"')],
                [call(":1}")],
                [call("", name="g", id="b", type="function")],
                [call('{"b":2}')],
            ],
            [ONE, TWO],
            id="without an index, pieces belong to the last call",
        ),
        pytest.param(
            [
                [call("", name="f", id="a", type="function"), call("", name="g", id="b", type="function")],
                [call('{"a":1}'), call('{"b":2}')],
            ],
            [ONE, TWO],
            id="without an index, several in a chunk are in order",
        ),
        pytest.param(
            [[call('{"a"', name="f", id="a", type="function")], [call(":1}", id="a")]],
            [ONE],
            id="without an index, the same id is the same call",
        ),
        pytest.param(
            [
                [call(None, name="f", id="a", type="function", index=0)],
                [call(None, name="f", index=0, id=None)],
                [call('{"a":1}', index=0, type=None)],
            ],
            [ONE],
            id="a name that is repeated, and nulls",
        ),
        pytest.param([[call(None, name="f", id="a", index=0)]], [whole("f", "", id="a")], id="no arguments"),
        pytest.param(
            [[{**ONE, "index": 0, "function": "f"}], [{**ONE, "index": 0}]], [ONE], id="a function that is none"
        ),
        pytest.param([None, [None, 5, "x"], [{**ONE, "index": 0}], {}], [ONE], id="pieces that are none"),
    ],
)
def test_tool_calls_are_put_together(deltas: list[Any], expected: list[Any]) -> None:
    found = read(*(chunk({"tool_calls": pieces}) for pieces in deltas), chunk({}, "tool_calls"))
    assert found.tool_calls == expected
    assert (found.text, found.finish_reason) == (None, "tool_calls")


def test_an_answer_and_a_tool_call_in_one_stream_are_both_kept() -> None:
    found = read(said("I look."), chunk({"content": "!", "tool_calls": [{**ONE, "index": 0}]}), END)
    assert (found.text, found.tool_calls) == ("I look.!", [ONE])


def test_tool_calls_nested_too_deeply_to_be_stored_are_an_error() -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    body = b"data: " + json.dumps(chunk({"tool_calls": [{"index": 0, "extra": deep}]})).encode() + b"\n\n"
    assert "nested too deeply" in str(refused(body + sse(END)))


# -- errors -----------------------------------------------------------------------------------------

SAID = {"message": "Service is temporarily unavailable.", "type": "server_error", "code": "service_unavailable"}


@pytest.mark.parametrize(
    ("event", "error", "status", "code"),
    [
        pytest.param(
            {"error": SAID, "status_code": 503}, InternalServerError, 503, "service_unavailable", id="wrapped"
        ),
        pytest.param({"error": SAID}, InternalServerError, 503, "service_unavailable", id="without a status"),
        pytest.param(SAID, InternalServerError, 503, "service_unavailable", id="flat"),
        pytest.param(
            {**SAID, "status_code": 500}, InternalServerError, 500, "service_unavailable", id="flat, with one"
        ),
        pytest.param({"error": {"message": "m", "code": 429}}, RateLimitError, 429, None, id="a status for a code"),
        pytest.param({"error": {"message": "m"}, "choices": []}, InternalServerError, 500, None, id="beside choices"),
        pytest.param({"error": "it broke"}, InternalServerError, 500, None, id="a text"),
        pytest.param({"detail": "it broke"}, InternalServerError, 500, None, id="a detail"),
        pytest.param(
            {"error": SAID, "status_code": "503"},
            InternalServerError,
            503,
            "service_unavailable",
            id="a status as text",
        ),
        pytest.param(
            {"error": {**SAID, "code": "x"}, "status_code": 200}, InternalServerError, 500, "x", id="a status of 200"
        ),
        pytest.param(
            {"error": {"message": "m", "code": "token_quota_exceeded"}},
            RateLimitError,
            429,
            "token_quota_exceeded",
            id="a quota",
        ),
        pytest.param(
            {"error": {"message": "m", "code": "queue_exceeded"}},
            RateLimitError,
            429,
            "queue_exceeded",
            id="a busy server",
        ),
        pytest.param(
            {"message": "m", "code": "context_length_exceeded"},
            BadRequestError,
            400,
            "context_length_exceeded",
            id="a prompt too long",
        ),
    ],
)
@pytest.mark.parametrize("named", [b"", b"event: error\n"], ids=["unnamed", "event: error"])
@pytest.mark.parametrize("after", [b"", sse(said("x"))[: -len(DONE)]], ids=["first", "in the middle"])
def test_an_error_inside_is_the_error_it_says(
    event: Any, error: type[APIStatusError], status: int, code: str | None, named: bytes, after: bytes
) -> None:
    body = after + named + b"data: " + orjson.dumps(event) + b"\n\n"
    for end in (b"", DONE, sse(END)):
        caught = refused(body + end)
        assert isinstance(caught, error)
        assert (caught.status, caught.code) == (status, code)


@pytest.mark.parametrize("data", [b"upstream broke", b'"upstream broke"', b'["upstream broke"]'])
def test_an_event_named_error_is_one_whatever_it_holds(data: bytes) -> None:
    caught = refused(sse(said("x"), done=False) + b"event: error\ndata: " + data + b"\n\n")
    assert isinstance(caught, InternalServerError)
    assert "upstream broke" in str(caught)


def test_an_error_of_null_is_none() -> None:
    assert read({**said("x"), "error": None}, END).text == "x"


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        pytest.param(
            sse(said("x"), done=False) + b'data: {"id":"chat\n\n' + sse(END),
            "malformed_json",
            "is not JSON",
            id="a malformed chunk",
        ),
        pytest.param(sse(said("x"))[:-40], "malformed_json", "is not JSON", id="cut in a chunk"),
        pytest.param(sse(said("x"), END, done=False), "truncated", r"without \[DONE\]$", id="no [DONE]"),
        pytest.param(sse(said("x")), "truncated", "without finish_reason$", id="no finish_reason"),
        pytest.param(sse(said("x"), done=False), "truncated", r"without finish_reason and \[DONE\]$", id="neither"),
        pytest.param(DONE, "truncated", "without finish_reason$", id="nothing but [DONE]"),
        pytest.param(b": hello\n\n", "truncated", "without", id="comments alone"),
        pytest.param(sse(chunk({}, None)), "truncated", "without finish_reason$", id="a finish_reason of null"),
        pytest.param(sse(said("x"), END)[:-3], "malformed_json", "is not JSON", id="cut in [DONE]"),
    ],
)
def test_a_stream_that_stops_early_is_truncated(body: bytes, code: str, words: str) -> None:
    """It is never taken for an answer, however much of it came."""
    caught = refused(body)
    assert isinstance(caught, APIResponseError)
    assert (caught.code, caught.truncated) == (code, True)
    with pytest.raises(APIResponseError, match=words):
        raise caught


def test_a_chunk_that_is_no_object_is_no_stream_of_ours() -> None:
    caught = refused(sse(said("x"), [1], END))
    assert isinstance(caught, APIResponseError)
    assert caught.code == "invalid_response"


@pytest.mark.parametrize("more", [sse(said("more")), b"data: {broken\n\n", b"garbage", b"event: error\ndata: {}\n\n"])
def test_what_follows_done_is_not_read(more: bytes) -> None:
    assert read_stream(in_one(sse(said("x"), END) + more)).text == "x"


# -- marks ------------------------------------------------------------------------------------------


def marked(*reads: Sequence[object]) -> StreamMarks | None:
    """The marks of a stream whose reads hold these chunks; read n is at n seconds, [DONE] is in the last one."""
    bodies = [sse(*chunks, done=number == len(reads)) for number, chunks in enumerate(reads, 1)]
    ends = itertools.accumulate(map(len, bodies))
    return read_stream(Reply(200, {}, b"".join(bodies), [(end, float(n)) for n, end in enumerate(ends, 1)])).stream


ROLE = chunk({"role": "assistant"})
THOUGHT = chunk({"reasoning": "abcd"})


def test_the_role_is_no_token_and_usage_and_done_are_no_last_one() -> None:
    found = marked([ROLE], [said("ab")], [said("cd"), said("ef")], [said("gh")], [END], [])
    assert found == StreamMarks(
        first=2.0, first_answer=2.0, last=4.0, end=6.0, n_chunks=4, n_reads=3, first_share=0.25, max_gap_s=1.0
    )


@pytest.mark.parametrize(
    ("reads", "first", "first_answer"),
    [
        pytest.param([[THOUGHT], [said("ab")], [END]], 1.0, 2.0, id="reasoning first"),
        pytest.param([[said("ab")], [THOUGHT], [END]], 1.0, 1.0, id="the answer first"),
        pytest.param([[THOUGHT], [THOUGHT], [END]], 1.0, None, id="reasoning alone"),
        pytest.param([[chunk({"reasoning": "a", "content": "b"})], [END]], 1.0, 1.0, id="both in a chunk"),
        pytest.param([[chunk({"content": ""})], [said("x")], [END]], 2.0, 2.0, id="an empty text is no token"),
        pytest.param([[THOUGHT], [chunk({"tool_calls": [{**ONE, "index": 0}]})], [END]], 1.0, 2.0, id="a tool call"),
        pytest.param(
            [[{**END, "choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}]], 1.0, 1.0, id="the finish"
        ),
    ],
)
def test_the_first_token_and_the_first_one_of_the_answer(
    reads: list[list[Any]], first: float, first_answer: float | None
) -> None:
    found = marked(*reads)
    assert found is not None
    assert (found.first, found.first_answer) == (first, first_answer)


def test_a_stream_that_carries_nothing_has_no_marks() -> None:
    assert marked([ROLE], [chunk({"content": ""})], [END]) is None
    assert read_stream(Reply(200, {}, sse(said("x"), END))).stream is None  # nothing was stamped


def test_a_whole_answer_in_one_read_has_no_gap_and_all_of_its_characters_in_the_first() -> None:
    found = marked([ROLE, said("ab"), said("cd"), END])
    assert found is not None
    assert (found.n_reads, found.n_chunks, found.first_share, found.max_gap_s) == (1, 2, 1.0, None)
    assert found.first == found.last == found.end == 1.0


def test_an_event_over_several_reads_is_of_the_one_that_completes_it() -> None:
    body = sse(said("ab"), END)
    end = body.index(b"\n\n")
    for cut in range(1, end):
        found = read_stream(Reply(200, {}, body, [(cut, 1.0), (end, 2.0), (len(body), 3.0)])).stream
        assert found is not None
        assert (found.first, found.last, found.end) == (2.0, 2.0, 3.0)


# -- size -------------------------------------------------------------------------------------------

MANY = 60_000
PIECE = b"data: " + orjson.dumps(said("word")) + b"\n\n"
PART = b"data: " + orjson.dumps(chunk({"tool_calls": [call("x" * 60, index=0, name="f")]})) + b"\n\n"
LARGE = {
    "small events": PIECE * MANY,
    "small events, CRLF": (PIECE * MANY).replace(b"\n", b"\r\n"),
    "one event": sse(said("x" * 10_000_000), done=False),
    "pieces of a tool call": PART * MANY,
    "tool calls without an index": b"".join(
        b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"xxxxxxxxxxxxxxx"}}]}}]}\n\n'
        for _ in range(MANY)
    ),
    "tool calls without an index and with an id": b"".join(
        b'data: {"choices":[{"delta":{"tool_calls":[{"id":"call_%d","function":{"name":"f"}}]}}]}\n\n' % number
        for number in range(MANY)
    ),
    "comments": b": still here\n\n" * 700_000,
    "empty lines": b"\n" * 10_000_000,
    "empty lines, CR": b"\r" * 2_000_000,
    "events of many lines": (b"data:\n" * 999 + b"data: {}\n\n") * 1_500,
    "a line without an end": b": " + b"x" * 10_000_000 + b"\n\n",
}


@pytest.mark.parametrize("name", LARGE)
def test_10_mb_are_read_in_linear_time(name: str) -> None:
    """Every one of them takes well under a second; what is quadratic takes minutes."""
    body = LARGE[name] + sse(END)
    reads = [(end, end / 1e6) for end in range(1_000, len(body) + 1_000, 1_000)]
    started = time.process_time()
    read_stream(Reply(200, {}, body, reads))
    assert time.process_time() - started < 10


# -- through the client -----------------------------------------------------------------------------


class Answering:
    """A transport with one answer."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        self._reply = replace(in_one(body), status=status)

    async def exchange(
        self,
        method: str,
        url: str,
        body: bytes | None,
        deadline_s: float,
        on_read: OnRead | None = None,
        on_sent: OnSent | None = None,
    ) -> Reply:
        return self._reply


async def complete(body: bytes, status: int = 200, key: str | None = None) -> Completion:
    return await Client(Endpoint(base_url="http://h/v1", key=key), Answering(body, status)).complete(b"{}")


IN_ONE_PIECE = orjson.dumps(
    {
        **HEAD,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "It is sunny."}}],
        "usage": USAGE,
        "time_info": TIMES,
    }
)


async def test_a_body_of_json_though_a_stream_was_asked_is_read_and_so_is_the_opposite() -> None:
    """What came decides, not what was asked, and not its Content-Type."""
    found = await complete(IN_ONE_PIECE)
    streamed = await complete(sse(said("It is "), said("sunny."), END))
    assert found.stream is None
    assert streamed.stream is not None
    assert replace(streamed, stream=None) == found


async def test_a_refusal_is_read_as_such_even_where_it_is_a_stream() -> None:
    with pytest.raises(RateLimitError, match="slow down"):
        await complete(b'{"message":"slow down"}', 429)
    with pytest.raises(RateLimitError):
        await complete(b'event: error\ndata: {"message":"slow down"}\n\n', 429)


async def test_an_empty_stream_is_an_empty_body() -> None:
    with pytest.raises(APIResponseError, match="empty body"):
        await complete(b"")


async def test_a_key_inside_a_stream_is_removed_and_the_marks_hold() -> None:
    key = "csk-0123456789abcdef"
    found = await complete(sse(said(f"your key is {key}"), END), key=key)
    assert found.text == "your key is (key removed)"
    assert found.stream is not None
    assert found.stream.n_reads == 1
