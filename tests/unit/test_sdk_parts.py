"""The parts of the drop-in that need no socket: bodies, headers, events, objects, errors."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.sdk import errors
from cbatch.sdk.body import ChatParams, check_names, encode, query
from cbatch.sdk.given import Omit, omit
from cbatch.sdk.models import build
from cbatch.sdk.settings import address_of, merged
from cbatch.sdk.stream import Events
from cbatch.sdk.types.chat import ChatCompletion
from cbatch.sdk.types.chat.chat_completion import ChatChunkResponse, ChatCompletionResponse
from cbatch.sdk.web import URL, Headers, Request, Response, Timeout
from cbatch.sdk.wire import Head
from cbatch.sse import events

ANSWER: dict[str, Any] = {
    "id": "a",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi", "new": 1}}],
    "created": 1,
    "model": "m",
    "object": "chat.completion",
    "system_fingerprint": "f",
    "usage": {"total_tokens": 3},
    "later": {"deep": [1, 2]},
}


# -- bodies ---------------------------------------------------------------------------------------------


def test_bodies_take_what_users_put_into_them() -> None:
    answer = build(ANSWER, ChatCompletionResponse)
    body = json.loads(encode({"messages": (m for m in [answer.choices[0].message]), "stop": {"a"}, "big": 2**70}))
    assert body == {"messages": [{"role": "assistant", "content": "hi", "new": 1}], "stop": ["a"], "big": 2**70}


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)))
def test_bodies_are_the_json_of_what_was_given(fields: dict[str, Any]) -> None:
    try:
        expected = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        with pytest.raises(UnicodeEncodeError):
            encode(fields)
        return
    assert json.loads(encode(fields)) == json.loads(expected)


def test_bodies_refuse_what_json_has_no_word_for() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature"):
            encode({"temperature": value})
    with pytest.raises(TypeError):
        encode({"user": object()})


def test_a_wrong_argument_is_named() -> None:
    check_names({"temperature": 1, "timeout": 2}, ChatParams)
    with pytest.raises(TypeError, match="'nonsense'"):
        check_names({"nonsense": 1}, ChatParams)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, ""),
        ({"a": None}, ""),
        ({"a": "b c", "d": True}, "?a=b+c&d=true"),
        ({"a": [1, 2]}, "?a=1&a=2"),
    ],
)
def test_queries(fields: dict[str, Any], text: str) -> None:
    assert query(fields) == text


# -- headers and addresses --------------------------------------------------------------------------------


def test_the_last_word_about_a_header_wins_in_whatever_case() -> None:
    assert merged({"User-Agent": "us", "X-A": "1"}, {"user-agent": "them", "x-a": Omit()}) == {"user-agent": "them"}


@pytest.mark.parametrize("headers", [{"X": "1\r\nY: 2"}, {"X: Y": "1"}, {"X": "½"}, {"": "1"}, {"X Y": "1"}])
def test_a_header_that_no_request_can_have_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        Head.of(headers)


def test_headers_are_found_in_any_case_and_joined() -> None:
    headers = Headers([("Set-Cookie", "a"), ("set-cookie", "b"), ("X", "1")])
    assert (headers["SET-COOKIE"], headers.get("y"), "x" in headers, len(headers)) == ("a, b", None, True, 2)
    assert headers.get_list("set-cookie") == ["a", "b"]
    assert dict(headers) == {"set-cookie": "a, b", "x": "1"}
    assert headers == {"SET-cookie": "a, b", "x": "1"}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("http://host", "http://host"),
        ("http://host/", "http://host/"),
        ("http://host/v1", "http://host/v1/"),
        (None, "https://api.cerebras.ai"),
    ],
)
def test_addresses_are_shown_as_the_sdk_does(said: str | None, shown: str) -> None:
    assert address_of(said) == shown


def test_an_address_knows_its_parts() -> None:
    url = URL("https://host:8/v1/x?a=1")
    assert (url.scheme, url.host, url.port, url.path, url.query) == ("https", "host", 8, "/v1/x", b"a=1")


def test_timeouts_are_what_was_said() -> None:
    assert Timeout(60, connect=5.0) == Timeout(60.0, connect=5)
    assert (Timeout(3).read, Timeout(read=2).connect, Timeout(1, read=None).read) == (3, None, None)


# -- events -----------------------------------------------------------------------------------------------

BODY = b'data: {"a":1}\n\n: note\n\nevent: error\r\ndata: x\r\n\r\ndata: one\ndata: two\n\ndata: [DONE]\n\n'


@given(st.lists(st.integers(1, 9), max_size=40))
def test_events_are_the_same_however_the_bytes_are_cut(sizes: list[int]) -> None:
    decoder, at = Events(), 0
    found: list[tuple[bytes, bytes]] = []
    for size in [*sizes, len(BODY)]:
        found += decoder.feed(BODY[at : at + size])
        at += size
    assert found == [(name, data) for name, data, _ in events(BODY)]


# -- objects ----------------------------------------------------------------------------------------------


def test_unknown_fields_are_kept() -> None:
    answer = build(ANSWER, ChatCompletionResponse)
    assert answer.later == {"deep": [1, 2]}
    assert answer.choices[0].message.new == 1
    assert answer.to_dict() == ANSWER
    assert json.loads(answer.to_json()) == ANSWER
    assert answer.model_dump()["usage"]["prompt_tokens"] is None


def test_objects_are_equal_and_can_be_pickled() -> None:
    answer = build(ANSWER, ChatCompletionResponse)
    assert pickle.loads(pickle.dumps(answer)) == answer == build(ANSWER, ChatCompletionResponse)
    assert answer != build({**ANSWER, "id": "b"}, ChatCompletionResponse)
    broken = build({"id": 1, "choices": None}, ChatCompletionResponse)
    assert pickle.loads(pickle.dumps(broken)) == broken


def test_what_does_not_fit_is_taken_as_it_comes() -> None:
    answer: Any = build({"choices": [{"index": "x", "message": {"content": 5, "role": None}}]}, ChatCompletionResponse)
    assert type(answer).__name__ == "ChatCompletionResponse"
    assert (answer.id, answer.usage, answer.choices[0].index) == (None, None, "x")
    assert answer.choices[0].message.content == 5
    said = build(
        {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "a"}}]}, ChatCompletion
    )
    assert isinstance(said, ChatChunkResponse)
    assert build([1], ChatCompletionResponse) == [1]
    assert build(None, ChatCompletionResponse) is None


# -- errors -----------------------------------------------------------------------------------------------


def response_of(status: int, content: bytes = b"{}") -> Response:
    return Response(status, headers={"X": "1"}, request=Request("POST", "http://h/v1", {}), content=content)


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "BadRequestError"), (401, "AuthenticationError"), (402, "APIStatusError"), (403, "PermissionDeniedError"),
        (404, "NotFoundError"), (409, "ConflictError"), (422, "UnprocessableEntityError"), (429, "RateLimitError"),
        (500, "InternalServerError"), (503, "InternalServerError"), (599, "InternalServerError"),
    ],
)  # fmt: skip
def test_statuses_have_their_exceptions(status: int, name: str) -> None:
    error = errors.status_error("no", response=response_of(status), body={"error": {"code": "c"}})
    assert (type(error).__name__, error.status_code, error.body, error.code) == (name, status, {"code": "c"}, "c")


@pytest.mark.parametrize(
    "error",
    [
        errors.CerebrasError("no key"),
        errors.status_error("no", response=response_of(404), body={"message": "m"}),
        errors.APIConnectionError(request=Request("GET", "http://h", {})),
        errors.APITimeoutError(Request("GET", "http://h", {})),
        errors.APIResponseValidationError(response_of(200), None),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_can_be_pickled(error: errors.CerebrasError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.args) == (type(error), str(error), error.args)
    assert set(again.__dict__) == set(error.__dict__)


def test_omit_is_false() -> None:
    assert not omit
