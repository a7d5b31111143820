"""What is noticed of an answer that passes through the gateway untouched."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.gateway import listening
from cbatch.gateway.listening import Listener
from cbatch.schema import Usage

USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 40},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 120,
}
READ = Usage(prompt_tokens=100, cached_tokens=40, completion_tokens=20, reasoning_tokens=5, total_tokens=120)
CREATED = {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "usage": None}}
# A text that speaks of events is none.
DELTA = {"type": "response.output_text.delta", "delta": 'é 😀 "type":"response.failed" \n\n "error" [DONE]'}
COMPLETED = {
    "type": "response.completed",
    "response": {"id": "resp_1", "status": "completed", "model": "o3-2026", "error": None, "usage": USAGE},
}
FAILED = {
    "type": "response.failed",
    "response": {"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "Slow down."}},
}


def sse(*said: Any, newline: str = "\n", named: bool = True) -> bytes:
    """Events as a server would write them; text stands as it is."""
    frames = []
    for one in said:
        data = one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)
        name = f"event: {one['type']}{newline}" if named and isinstance(one, dict) and "type" in one else ""
        frames.append(f"{name}data: {data}{newline}{newline}")
    return "".join(frames).encode()


def pieces(body: bytes) -> list[bytes]:
    return [body[start : start + 700] for start in range(0, len(body), 700)]


def heard(*came: bytes, is_stream: bool = True) -> Listener:
    """The pieces came at 1.0, 2.0, …"""
    listener = Listener(is_stream=is_stream)
    for now, piece in enumerate(came, 1):
        listener.feed(piece, float(now))
    listener.close(len(came) + 1.0)
    return listener


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@given(cuts=st.lists(st.integers(0, 2_000), max_size=12), named=st.booleans())
def test_it_does_not_matter_how_the_bytes_are_cut(newline: str, cuts: list[int], named: bool) -> None:
    """Between CR and LF, inside a character, one byte at a time: usage, model and end are found."""
    whole = sse(CREATED, DELTA, DELTA, COMPLETED, newline=newline, named=named)
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    found = heard(*[whole[start:end] for start, end in pairwise(places)])
    assert (found.usage, found.model, found.request_id, found.problem) == (READ, "o3-2026", "resp_1", None)


def test_the_first_token_is_marked_when_it_came() -> None:
    found = heard(sse(CREATED), sse(CREATED), sse(DELTA), sse(DELTA, COMPLETED))
    assert found.first == 3.0


def test_a_last_event_without_its_blank_line_counts() -> None:
    assert heard(sse(DELTA, COMPLETED).rstrip()).usage == READ


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([], id="nothing"),
        pytest.param([CREATED, DELTA], id="no last event"),
        pytest.param([CREATED, json.dumps(COMPLETED)[:-9]], id="half of the last event"),
        pytest.param([{"choices": [{"delta": {"content": "Hi"}, "finish_reason": None}]}], id="no finish_reason"),
    ],
)
def test_a_stream_without_an_end_is_a_failure(said: list[Any]) -> None:
    problem = heard(sse(*said)).problem
    assert problem is not None
    assert (problem.status, problem.code) == (502, "truncated")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        pytest.param(FAILED, (429, "rate_limit_exceeded", "Slow down."), id="response.failed"),
        pytest.param(
            {"type": "error", "code": "server_error", "message": "Broken."},
            (502, "server_error", "Broken."),
            id="error",
        ),
        pytest.param({"error": {"message": "Broken."}}, (502, None, "Broken."), id="error without a type"),
        pytest.param(
            {"type": "response.failed", "response": {"error": None}}, (502, None, "the answer failed"), id="?"
        ),
    ],
)
def test_an_error_inside_of_a_stream_is_the_failure(said: dict[str, Any], told: tuple[Any, ...]) -> None:
    problem = heard(sse(CREATED, DELTA, said)).problem
    assert problem is not None
    assert (problem.status, problem.code, problem.message) == told


def test_an_incomplete_answer_is_an_answer() -> None:
    incomplete = {"type": "response.incomplete", "response": {"status": "incomplete", "usage": USAGE}}
    found = heard(sse(DELTA, incomplete))
    assert (found.usage, found.problem) == (READ, None)


def test_chat_completions_are_understood_too() -> None:
    chunk = {"model": "m", "choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    text = {"model": "m", "choices": [{"delta": {"content": "Hi"}, "finish_reason": None}]}
    end = {"model": "m", "choices": [{"delta": {}, "finish_reason": "stop"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    found = heard(sse(chunk), sse(text), sse(text, end), sse(usage, "[DONE]"))
    assert found.usage == Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)
    assert (found.model, found.first, found.problem) == ("m", 2.0, None)


@pytest.mark.parametrize(
    ("answer", "usage", "fails"),
    [
        pytest.param(COMPLETED["response"], READ, False, id="a response"),
        pytest.param(FAILED["response"], None, True, id="a response that failed"),
        pytest.param(
            {"choices": [{}], "usage": {"prompt_tokens": 3}}, Usage(prompt_tokens=3), False, id="a chat completion"
        ),
        pytest.param({"error": {"message": "no"}}, None, True, id="an error with status 200"),
        pytest.param([1, 2], None, False, id="something else"),
    ],
)
def test_an_answer_in_one_piece(answer: Any, usage: Usage | None, fails: bool) -> None:
    body = json.dumps(answer).encode()
    found = heard(body[:10], body[10:], is_stream=False)
    assert found.usage == usage
    assert (found.problem is not None) == fails
    assert found.first is None


@given(body=st.binary(max_size=200), is_stream=st.booleans())
def test_no_bytes_are_an_exception(body: bytes, is_stream: bool) -> None:
    heard(body, b"data: {}\n\n" + body, is_stream=is_stream)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "response", "error", "choices", "delta", "usage", "code", "status"]), inner
        )
    ),
)


@given(value=JSON, kind=st.sampled_from(["response.completed", "response.failed", "error", "x.delta", None]))
def test_no_json_is_an_exception(value: Any, kind: str | None) -> None:
    event = {**value, "type": kind} if isinstance(value, dict) else value
    heard(sse(event, {"type": kind, "response": value}, {"choices": value}), sse(value))
    heard(json.dumps(value).encode(), is_stream=False)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_event_of_any_length_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch, newline: str) -> None:
    """What is too long is not measured, but its end is seen, and so is what comes after."""
    monkeypatch.setattr(listening, "MAX_BYTES", 10_000)
    long = {**COMPLETED, "x": "y" * 50_000}
    body = sse(DELTA, long, newline=newline)
    listener = Listener(is_stream=True)
    for piece in pieces(body):
        listener.feed(piece, 1.0)
        assert len(listener._rest) <= 10_000 + 700
    listener.close(2.0)
    assert (listener.usage, listener.problem) == (None, None)
    assert heard(*pieces(sse(long)), sse(COMPLETED)).usage == READ
    lost = heard(*pieces(sse({"type": "response.image.partial", "x": "y" * 50_000})))
    assert lost.problem is not None
    failed = heard(*pieces(sse({**FAILED, "x": "y" * 50_000}))).problem
    assert failed is not None
    assert failed.code is None
    whole = heard(*pieces(b'{"usage":{}, "x":"' + b"y" * 50_000 + b'"}'), is_stream=False)
    assert (whole.usage, whole.problem, len(whole._rest)) == (None, None, 0)


def test_a_stream_is_not_kept() -> None:
    """A thousand events take no more memory than one."""
    listener = Listener(is_stream=True)
    for _ in range(1_000):
        listener.feed(sse(DELTA), 1.0)
        assert len(listener._rest) == 0
