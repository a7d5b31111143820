"""What an answer means is a pure function of its bytes: every shape is tested here without a socket."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aioresponses import aioresponses
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from cbatch.client import Endpoint, Reply, connect, normalise_base_url, read_completion, read_error
from cbatch.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APIUnreachableError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from cbatch.replies import EXCERPT
from cbatch.schema import Completion, TimeInfo, Usage

# As recorded from zai-glm-4.7 in May 2026, key order as on the wire (API sheet, section 3).
RECORDED: dict[str, Any] = {
    "id": "chatcmpl-d89ba80c-26b3-442c-ac3c-d7e94a99c484",
    "choices": [
        {
            "finish_reason": "stop",
            "index": 0,
            "message": {
                "content": "It is sunny.",
                "reasoning": "Weather question, answer briefly.",
                "role": "assistant",
            },
        }
    ],
    "created": 1779146781,
    "model": "zai-glm-4.7",
    "system_fingerprint": "fp_a33c042689e969567008",
    "object": "chat.completion",
    "usage": {
        "total_tokens": 387,
        "completion_tokens": 65,
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
            "reasoning_tokens": 58,
        },
        "prompt_tokens": 322,
        "prompt_tokens_details": {"cached_tokens": 256},
    },
    "time_info": {
        "created": 1779146781.786984,
        "queue_time": 0.002922005,
        "prompt_time": 0.010518105,
        "completion_time": 0.118095092,
        "total_time": 0.13299274444580078,
    },
}
KEY = "csk-0123456789abcdef"


def reply(body: object, status: int = 200) -> Reply:
    return Reply(status, {}, body if isinstance(body, bytes) else orjson.dumps(body))


def answer(**changes: Any) -> Reply:
    """The recorded answer, changed at the top."""
    return reply({**RECORDED, **changes})


def message(**fields: Any) -> Reply:
    """The recorded answer with another message in it."""
    return answer(choices=[{"finish_reason": "stop", "index": 0, "message": fields}])


# -- a whole answer ---------------------------------------------------------------------------


def test_the_recorded_answer_is_read_field_by_field() -> None:
    assert read_completion(answer()) == Completion(
        text="It is sunny.",
        reasoning="Weather question, answer briefly.",
        tool_calls=None,
        finish_reason="stop",
        usage=Usage(prompt_tokens=322, cached_tokens=256, completion_tokens=65, reasoning_tokens=58, total_tokens=387),
        time_info=TimeInfo(
            queue_s=0.002922005, prompt_s=0.010518105, completion_s=0.118095092, total_s=0.13299274444580078
        ),
        request_id="chatcmpl-d89ba80c-26b3-442c-ac3c-d7e94a99c484",
        served_model="zai-glm-4.7",
        system_fingerprint="fp_a33c042689e969567008",
        parsed=None,
        valid=None,
    )


CALL = {"function": {"name": "f", "arguments": "{}"}, "type": "function", "id": "85e4fd267"}


@pytest.mark.parametrize(
    ("fields", "text", "reasoning", "calls"),
    [
        pytest.param({"tool_calls": [CALL]}, None, None, [CALL], id="tool calls come without content"),
        pytest.param({"content": None, "tool_calls": []}, None, None, None, id="no calls is None, not an empty list"),
        pytest.param({"content": "a", "tool_calls": None}, "a", None, None, id="null calls"),
        pytest.param({"content": "a", "tool_calls": {"0": CALL}}, "a", None, None, id="calls that are not a list"),
        pytest.param({"content": ""}, "", None, None, id="an empty answer is empty, not missing"),
        pytest.param({}, None, None, None, id="a message with nothing in it"),
        pytest.param({"content": 42}, None, None, None, id="content as a number is no text"),
        pytest.param({"content": ["a"]}, None, None, None, id="content as a list is no text"),
        pytest.param({"content": "a", "reasoning": "r"}, "a", "r", None, id="reasoning"),
        pytest.param({"content": "a", "reasoning_content": "r"}, "a", "r", None, id="reasoning under its other name"),
        pytest.param({"reasoning": "r", "reasoning_content": "s"}, None, "r", None, id="the API's own name wins"),
        pytest.param({"reasoning": "", "reasoning_content": "s"}, None, "s", None, id="unless it is empty"),
        pytest.param({"content": "a\u2028\u0000é😀"}, "a\u2028\u0000é😀", None, None, id="any character is kept"),
    ],
)
def test_a_message_is_read_in_every_shape(
    fields: dict[str, Any], text: str | None, reasoning: str | None, calls: list[Any] | None
) -> None:
    completion = read_completion(message(**fields))
    assert (completion.text, completion.reasoning, completion.tool_calls) == (text, reasoning, calls)


NOTHING = (None, None, None, None, None)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(None, NOTHING, id="null"),
        pytest.param([], NOTHING, id="a list"),
        pytest.param("387", NOTHING, id="a text"),
        pytest.param({}, NOTHING, id="empty"),
        pytest.param({"total_tokens": 0}, (None, None, None, None, 0), id="zero is zero, not missing"),
        pytest.param({"total_tokens": "387"}, NOTHING, id="a count as text is not measured"),
        pytest.param({"total_tokens": 387.0}, NOTHING, id="a count with a point is not measured"),
        pytest.param({"total_tokens": True}, NOTHING, id="true is not one token"),
        pytest.param({"total_tokens": -1}, NOTHING, id="fewer than none"),
        pytest.param({"total_tokens": 2**63 - 1}, (None, None, None, None, 2**63 - 1), id="the largest int64"),
        pytest.param({"total_tokens": 2**63}, NOTHING, id="one more than a column holds"),
        pytest.param({"prompt_tokens": 3, "prompt_tokens_details": None}, (3, None, None, None, None), id="no details"),
        pytest.param({"prompt_tokens_details": {"cached_tokens": 256}}, (None, 256, None, None, None), id="cached"),
        pytest.param({"completion_tokens_details": [58]}, NOTHING, id="details as a list"),
        pytest.param({"completion_tokens_details": {"reasoning_tokens": 0}}, (None, None, None, 0, None), id="0"),
    ],
)
def test_usage_that_is_not_a_count_is_not_measured(usage: object, expected: tuple[int | None, ...]) -> None:
    read = read_completion(answer(usage=usage)).usage
    counts = (read.prompt_tokens, read.cached_tokens, read.completion_tokens, read.reasoning_tokens, read.total_tokens)
    assert counts == expected


def test_an_answer_without_usage_and_without_time_info_is_an_answer() -> None:
    completion = read_completion(reply({"choices": RECORDED["choices"]}))
    assert (completion.text, completion.usage, completion.time_info) == ("It is sunny.", Usage(), TimeInfo())
    assert (completion.request_id, completion.served_model, completion.system_fingerprint) == (None, None, None)


@pytest.mark.parametrize(
    ("said", "read"),
    [
        pytest.param(b"0.13299274444580078", 0.13299274444580078, id="every digit is kept"),
        pytest.param(b"0", 0.0, id="an int becomes a float"),
        pytest.param(b"1e-9", 1e-9, id="an exponent"),
        pytest.param(b"123456789012345678901234567890", 123456789012345678901234567890.0, id="more than 64 bits"),
        pytest.param(b"true", None, id="true is not one second"),
        pytest.param(b'"0.1"', None, id="a text"),
        pytest.param(b"null", None, id="null"),
        pytest.param(b"{}", None, id="an object"),
    ],
)
def test_the_servers_clock_is_read_verbatim(said: bytes, read: float | None) -> None:
    body = orjson.dumps({**RECORDED, "time_info": {"total_time": "HERE"}}).replace(b'"HERE"', said)
    total = read_completion(reply(body)).time_info.total_s
    assert total == read
    assert total is None or type(total) is float


def test_names_that_are_no_text_are_not_measured() -> None:
    completion = read_completion(answer(id=7, model=None, system_fingerprint=["fp"]))
    assert (completion.request_id, completion.served_model, completion.system_fingerprint) == (None, None, None)


def test_a_finish_reason_nobody_documented_is_kept() -> None:
    choice = {**RECORDED["choices"][0], "finish_reason": "done"}
    assert read_completion(answer(choices=[choice])).finish_reason == "done"


# -- status 200, and no answer ----------------------------------------------------------------


@pytest.mark.parametrize("recorded", [orjson.dumps(RECORDED), orjson.dumps(RECORDED, option=orjson.OPT_INDENT_2)])
def test_an_answer_cut_at_any_byte_is_truncated_and_never_a_completion(recorded: bytes) -> None:
    for end in range(len(recorded)):
        with pytest.raises(APIResponseError) as caught:
            read_completion(reply(recorded[:end]))
        assert caught.value.truncated


@pytest.mark.parametrize("cut", [b"\xc3", b"\xf0\x9f\x98", b"\\", b"\\ud83d"], ids=repr)
def test_an_answer_cut_within_a_character_is_truncated(cut: bytes) -> None:
    with pytest.raises(APIResponseError) as caught:
        read_completion(reply(b'{"choices":[{"message":{"content":"a' + cut))
    assert caught.value.truncated


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        pytest.param(b"", "empty_body", "empty body", id="nothing"),
        pytest.param(b" \r\n", "empty_body", "empty body", id="only white space"),
        pytest.param(b"<html><h1>502</h1></html>", "not_json", "<html><h1>502</h1></html>", id="HTML with status 200"),
        pytest.param(b"\xff\xfe\x00", "not_json", "something else than JSON", id="no text at all"),
        pytest.param(b"upstream connect error", "not_json", "upstream connect error", id="text from a proxy"),
        pytest.param(b"null", "invalid_response", "not a JSON object", id="null"),
        pytest.param(b"[]", "invalid_response", "not a JSON object", id="a list"),
        pytest.param(b'"ok"', "invalid_response", "not a JSON object", id="a text"),
        pytest.param(b"{}", "invalid_response", "without choices", id="an empty object"),
        pytest.param(b'{"choices":[]}', "invalid_response", "without choices", id="no choices"),
        pytest.param(b'{"choices":null}', "invalid_response", "without choices", id="null choices"),
        pytest.param(b'{"choices":{"0":{}}}', "invalid_response", "without choices", id="choices that are no list"),
        pytest.param(b'{"choices":["a"]}', "invalid_response", "without choices", id="a choice that is a text"),
        pytest.param(b'{"choices":[{}]}', "invalid_response", "without a message", id="a choice without a message"),
        pytest.param(b'{"choices":[{"message":[]}]}', "invalid_response", "without a message", id="a message list"),
        pytest.param(b'{"choices":[{"message":{}}]}]', "malformed_json", "malformed", id="one bracket too many"),
        pytest.param(b'{"choices":[{"message":{"a":NaN}}]}', "malformed_json", "malformed", id="NaN is no JSON"),
        pytest.param(b"[" * 5000 + b"]" * 5000, "not_json", "something else", id="5,000 lists in each other"),
        pytest.param(b'{"a":' * 5000 + b"1" + b"}" * 5000, "malformed_json", "", id="5,000 objects in each other"),
        pytest.param(
            b'{"error":{"message":"Overloaded","code":"queue_exceeded"}}',
            "queue_exceeded",
            "without choices: Overloaded",
            id="a wrapped error with status 200 keeps its code",
        ),
        pytest.param(
            b'{"message":"Overloaded","type":"t","param":"queue","code":"queue_exceeded"}',
            "queue_exceeded",
            "without choices: Overloaded",
            id="a flat error with status 200 keeps its code",
        ),
        pytest.param(b'{"error":"no"}', "invalid_response", '{"error":"no"}', id="an error that is a text"),
        pytest.param(b'{"error":{"code":500}}', "invalid_response", "500", id="an error code that is a number"),
    ],
)
def test_a_200_that_is_no_completion_is_a_response_error_that_says_why(body: bytes, code: str, words: str) -> None:
    with pytest.raises(APIResponseError) as caught:
        read_completion(reply(body))
    assert caught.value.code == code
    assert words in str(caught.value)


def test_tool_calls_too_deep_to_store_fail_their_row_and_not_the_run() -> None:
    """orjson reads 1,024 levels and writes 254."""
    calls = b"[" * 300 + b"]" * 300
    body = orjson.dumps({"choices": [{"message": {"tool_calls": "HERE"}}]}).replace(b'"HERE"', calls)
    with pytest.raises(APIResponseError, match="nested too deeply"):
        read_completion(reply(body))


def test_of_an_unexpected_body_only_an_excerpt_is_quoted() -> None:
    with pytest.raises(APIResponseError) as caught:
        read_completion(reply(b"<html>\n\n\t" + b"x" * 1_000_000))
    assert len(str(caught.value)) < EXCERPT + 60
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.sampled_from([200, 200, 400, 429, 500]))
def test_any_json_is_a_completion_or_an_api_error(value: object, status: int) -> None:
    with suppress(APIError):
        assert isinstance(read_completion(reply(value, status)), Completion)


PATHS = [
    ("choices",),
    ("choices", 0),
    ("choices", 0, "message"),
    ("choices", 0, "message", "content"),
    ("choices", 0, "message", "tool_calls"),
    ("choices", 0, "finish_reason"),
    ("usage",),
    ("usage", "prompt_tokens"),
    ("usage", "prompt_tokens_details"),
    ("usage", "prompt_tokens_details", "cached_tokens"),
    ("time_info",),
    ("time_info", "queue_time"),
    ("id",),
]


@given(st.sampled_from(PATHS), JSON)
def test_the_recorded_answer_with_anything_in_any_place_is_a_completion_or_an_api_error(
    path: tuple[Any, ...], value: object
) -> None:
    """And what is read from it fits the columns."""
    body = orjson.loads(orjson.dumps(RECORDED))
    place = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    try:
        completion = read_completion(reply(body))
    except APIError:
        return
    assert isinstance(completion.text, str | None)
    assert isinstance(completion.finish_reason, str | None)
    assert isinstance(completion.tool_calls, list | None)
    assert isinstance(completion.usage.cached_tokens, int | None)
    assert isinstance(completion.time_info.queue_s, float | None)


@given(st.binary(max_size=200), st.sampled_from([200, 404, 500]))
def test_any_bytes_are_an_api_error(body: bytes, status: int) -> None:
    with pytest.raises(APIError):
        read_completion(reply(body, status))


def test_the_recorded_answer_with_a_byte_changed_never_raises_anything_untyped() -> None:
    rng = random.Random(7)
    recorded = orjson.dumps(RECORDED)
    for _ in range(3_000):
        body = bytearray(recorded)
        body[rng.randrange(len(body))] = rng.randrange(256)
        with suppress(APIResponseError):
            read_completion(reply(bytes(body)))


# -- error statuses ---------------------------------------------------------------------------

# The bodies seen on the wire (API sheet, sections 5.7 and 6.3).
ON_THE_WIRE = [
    pytest.param(
        401,
        b'{"message":"Wrong API Key","type":"invalid_request_error","param":"api_key","code":"wrong_api_key"}',
        (AuthenticationError, "Wrong API Key", "wrong_api_key", "invalid_request_error", "api_key"),
        id="401 wrong key",
    ),
    pytest.param(
        402,
        b'{"message":"Payment required to access this resource. Visit your billing tab.",'
        b'"type":"payment_required_error","param":"quota","code":"payment_required"}',
        (
            APIStatusError,
            "Payment required to access this resource. Visit your billing tab.",
            "payment_required",
            "payment_required_error",
            "quota",
        ),
        id="402 no credit",
    ),
    pytest.param(
        403,
        b'{"detail":"Not authenticated"}',
        (PermissionDeniedError, "Not authenticated", None, None, None),
        id="403 no key, under detail",
    ),
    pytest.param(
        404,
        b'{"message":"Model llama3.1-8b does not exist or you do not have access to it.",'
        b'"type":"not_found_error","param":"model","code":"model_not_found"}',
        (
            NotFoundError,
            "Model llama3.1-8b does not exist or you do not have access to it.",
            "model_not_found",
            "not_found_error",
            "model",
        ),
        id="404 no such model",
    ),
    pytest.param(404, b"", (NotFoundError, "no body", None, None, None), id="404 no such path, without a body"),
    pytest.param(
        400,
        b'{"message":"Please reduce the length of the messages or completion. Current length is 196699 while limit is '
        b'131072","type":"invalid_request_error","param":"messages","code":"context_length_exceeded","id":""}',
        (
            BadRequestError,
            "Please reduce the length of the messages or completion. Current length is 196699 while limit is 131072",
            "context_length_exceeded",
            "invalid_request_error",
            "messages",
        ),
        id="400 too long, with an empty id",
    ),
    pytest.param(
        400,
        b'{"message":"\'NoneType\' object is not iterable","type":"invalid_request_error","param":"messages",'
        b'"code":"wrong_api_format"}',
        (
            BadRequestError,
            "'NoneType' object is not iterable",
            "wrong_api_format",
            "invalid_request_error",
            "messages",
        ),
        id="400 wrong format",
    ),
    pytest.param(
        429,
        b'{"message":"Requests per minute limit exceeded - too many requests sent.","type":"too_many_requests_error",'
        b'"param":"quota","code":"request_quota_exceeded"}',
        (
            RateLimitError,
            "Requests per minute limit exceeded - too many requests sent.",
            "request_quota_exceeded",
            "too_many_requests_error",
            "quota",
        ),
        id="429 requests",
    ),
    pytest.param(
        429,
        b'{"message":"Tokens per minute limit exceeded - too many tokens processed.","type":"too_many_tokens_error",'
        b'"param":"quota","code":"token_quota_exceeded"}',
        (
            RateLimitError,
            "Tokens per minute limit exceeded - too many tokens processed.",
            "token_quota_exceeded",
            "too_many_tokens_error",
            "quota",
        ),
        id="429 tokens",
    ),
    pytest.param(
        429,
        b'{"message":"We\'re experiencing high traffic right now! Please try again soon.",'
        b'"type":"too_many_requests_error","param":"queue","code":"queue_exceeded"}',
        (
            RateLimitError,
            "We're experiencing high traffic right now! Please try again soon.",
            "queue_exceeded",
            "too_many_requests_error",
            "queue",
        ),
        id="429 the server's queue",
    ),
]
NOT_SEEN = [
    pytest.param(
        500,
        b'{"error":{"message":"m","type":"t","param":"p","code":"c"},"status_code":503}',
        (InternalServerError, "m", "c", "t", "p"),
        id="wrapped in error, as in a stream",
    ),
    pytest.param(500, b'{"error":"m"}', (InternalServerError, "m", None, None, None), id="error as a text"),
    pytest.param(409, b'{"message":"m"}', (ConflictError, "m", None, None, None), id="409"),
    pytest.param(
        422, b'{"message":"m"}', (UnprocessableEntityError, "m", None, None, None), id="422 known only by its message"
    ),
    pytest.param(
        422,
        b'{"detail":[{"loc":["body"],"msg":"m"}]}',
        (UnprocessableEntityError, '{"detail":[{"loc":["body"],"msg":"m"}]}', None, None, None),
        id="422 with a list under detail quotes the body",
    ),
    pytest.param(408, b"", (APIStatusError, "no body", None, None, None), id="408"),
    pytest.param(413, b"{}", (APIStatusError, "{}", None, None, None), id="413, an empty object"),
    pytest.param(
        400,
        b'{"message":null,"type":1,"param":null,"code":400}',
        (BadRequestError, '{"message":null,"type":1,"param":null,"code":400}', None, None, None),
        id="fields that are no text are as if not sent",
    ),
    pytest.param(
        500,
        b'{"message":"","detail":""}',
        (InternalServerError, '{"message":"","detail":""}', None, None, None),
        id="an empty message says nothing, so the body is quoted",
    ),
    pytest.param(
        502,
        b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n</html>",
        (
            InternalServerError,
            "<html> <head><title>502 Bad Gateway</title></head> </html>",
            None,
            None,
            None,
        ),
        id="HTML from the edge",
    ),
    pytest.param(503, b"upstream down", (InternalServerError, "upstream down", None, None, None), id="plain text"),
    pytest.param(504, b"\xff\xfe", (InternalServerError, "��", None, None, None), id="no text at all"),
    pytest.param(599, b"[1]", (InternalServerError, "[1]", None, None, None), id="a list"),
    pytest.param(307, b"", (APIStatusError, "no body", None, None, None), id="a redirect"),
    pytest.param(500, b'{"message":"cut of', (InternalServerError, '{"message":"cut of', None, None, None), id="cut"),
]


@pytest.mark.parametrize(("status", "body", "expected"), [*ON_THE_WIRE, *NOT_SEEN])
def test_an_error_status_is_its_own_type_with_the_servers_words(
    status: int, body: bytes, expected: tuple[type[APIStatusError], str, str | None, str | None, str | None]
) -> None:
    headers = {"x-should-retry": "false"}
    error = read_error(Reply(status, headers, body))
    error_type, words, code, kind, param = expected
    assert type(error) is error_type
    assert str(error) == f"HTTP {status}: {words}"
    assert (error.status, error.code, error.type, error.param) == (status, code, kind, param)
    assert error.headers is headers
    with pytest.raises(error_type):
        read_completion(Reply(status, headers, body))


def test_an_error_status_with_a_completion_in_it_is_an_error() -> None:
    with pytest.raises(InternalServerError):
        read_completion(Reply(500, {}, orjson.dumps(RECORDED)))


# -- addresses and keys -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_as", "base"),
    [
        pytest.param("https://api.cerebras.ai", "https://api.cerebras.ai/v1", id="as the official SDK has it"),
        pytest.param("https://api.cerebras.ai/v1", "https://api.cerebras.ai/v1", id="as OpenAI clients have it"),
        pytest.param("https://api.cerebras.ai/v1/", "https://api.cerebras.ai/v1", id="with a slash at the end"),
        pytest.param("https://api.cerebras.ai///", "https://api.cerebras.ai/v1", id="with three"),
        pytest.param("  https://api.cerebras.ai\n", "https://api.cerebras.ai/v1", id="pasted with white space"),
        pytest.param("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1", id="a port"),
        pytest.param("http://[::1]:8080/v1", "http://[::1]:8080/v1", id="IPv6"),
        pytest.param("https://gateway.example/cerebras", "https://gateway.example/cerebras/v1", id="behind a prefix"),
        pytest.param("https://gateway.example/myv1", "https://gateway.example/myv1/v1", id="a name that ends in v1"),
        pytest.param("https://h/v1beta", "https://h/v1beta/v1", id="a name that starts with v1"),
        pytest.param("https://h/v1?x=1#f", "https://h/v1", id="a query and a fragment mean nothing here"),
        pytest.param("HTTPS://H/V1/v1", "https://H/V1/v1", id="the scheme in capitals"),
    ],
)
def test_an_address_ends_in_one_v1_however_it_was_given(given_as: str, base: str) -> None:
    assert normalise_base_url(given_as) == base
    assert normalise_base_url(base) == base


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("", id="nothing"),
        pytest.param("api.cerebras.ai", id="no scheme"),
        pytest.param("//api.cerebras.ai", id="half a scheme"),
        pytest.param("ftp://api.cerebras.ai", id="another scheme"),
        pytest.param("https://", id="no host"),
        pytest.param("https:///v1", id="no host, a path"),
        pytest.param("https://:443", id="no host, a port"),
        pytest.param("http://[::1", id="half an IPv6 address"),
        pytest.param("http://h:99999", id="a port above 65535"),
        pytest.param("http://h:0", id="port 0"),
        pytest.param("http://h:abc", id="a port that is no number"),
        pytest.param("http://h:-1", id="a port below 0"),
        pytest.param("http://a b", id="a space in the host"),
        pytest.param("http://h\\x", id="a backslash in the host"),
        pytest.param("http://a..b", id="an empty label"),
        pytest.param("http://" + "a" * 64 + ".example", id="a label of 64 letters"),
        pytest.param("http://" + "ä" * 60 + ".example", id="a label too long once it is spelled in ASCII"),
        pytest.param("https://user@h", id="a user"),
        pytest.param("https://:pw@h", id="a password"),
        pytest.param("https://@h", id="an empty user"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        normalise_base_url(url)


@pytest.mark.parametrize("scheme", ["https", "ftp", "x"])
def test_a_password_in_an_address_is_not_repeated_in_the_message(scheme: str) -> None:
    with pytest.raises(ValueError, match="user name or password") as caught:
        normalise_base_url(f"{scheme}://user:s3cret@h")
    assert "s3cret" not in str(caught.value)


@given(st.text(alphabet="ahtps:/.[]@1v?#\\ ä%\t", max_size=20))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    for url in (text, "http://" + text):
        try:
            base = normalise_base_url(url)
        except ValueError:
            continue
        assert base.endswith("/v1")


async def test_every_accepted_address_makes_a_client() -> None:
    """What `normalise_base_url` lets through, the HTTP library takes."""
    for host in (
        "h",
        "h:1",
        "[::1]",
        "xn--4ca.example",
        "ä.example",
        "1.2.3.4:65535",
        "h%2e",
        "h_x",
        "a b",
        "h:",
        "[v1.a]",
    ):
        try:
            base = normalise_base_url(f"http://{host}")
        except ValueError:
            continue
        async with connect(Endpoint(base_url=base)):
            pass


def test_no_key_is_ever_in_the_words_for_an_endpoint() -> None:
    endpoint = Endpoint(base_url="https://h/v1", key=KEY, proxy="http://user:s3cret@proxy")
    for words in (str(endpoint), repr(endpoint), f"{endpoint}", repr([endpoint])):
        assert KEY not in words
        assert "s3cret" not in words
    assert repr(endpoint) == "Endpoint('https://h/v1', key=…)"
    assert repr(Endpoint(base_url="https://h/v1")) == "Endpoint('https://h/v1', key=None)"


# -- errors of the HTTP library ---------------------------------------------------------------

WHERE = ConnectionKey("h", 443, True, True, None, None, None)
HEADERS = CIMultiDictProxy(CIMultiDict(Authorization=f"Bearer {KEY}"))
REQUEST = aiohttp.RequestInfo(url=URL("https://h/v1"), method="POST", headers=HEADERS, real_url=URL("https://h/v1"))


@pytest.mark.parametrize(
    ("raised", "error", "words"),
    [
        pytest.param(
            aiohttp.ConnectionTimeoutError(), APIUnreachableError, "no connection within 10 s", id="the connect timeout"
        ),
        pytest.param(
            aiohttp.ClientPayloadError("cut"), APIResponseError, "stopped before its end: cut", id="a cut answer"
        ),
        pytest.param(
            aiohttp.ServerDisconnectedError(), APIConnectionError, "closed the connection", id="no answer at all"
        ),
        pytest.param(
            aiohttp.ClientConnectorError(WHERE, ConnectionRefusedError(111, "refused")),
            APIUnreachableError,
            "refused",
            id="refused",
        ),
        pytest.param(aiohttp.ClientConnectionResetError("reset"), APIConnectionError, "reset", id="reset"),
        pytest.param(ConnectionResetError(104, "reset"), APIConnectionError, "reset", id="reset, below the library"),
        pytest.param(aiohttp.ClientOSError(32, "broken pipe"), APIConnectionError, "broken pipe", id="a broken pipe"),
        pytest.param(OSError(24, "too many open files"), APIConnectionError, "too many open files", id="no files"),
        pytest.param(
            aiohttp.ClientResponseError(REQUEST, (), status=400, message="bad header"),
            APIResponseError,
            "not valid HTTP: bad header",
            id="an answer that cannot be parsed",
        ),
        pytest.param(
            aiohttp.ClientHttpProxyError(REQUEST, (), status=407, message="who are you"),
            APIUnreachableError,
            "the proxy refused the tunnel: HTTP 407 who are you",
            id="a proxy that wants a password",
        ),
        pytest.param(UnicodeError("label empty"), APIConnectionError, "label empty", id="a host name that cannot be"),
    ],
)
async def test_every_error_of_the_http_library_is_an_api_error_without_the_key(
    http: aioresponses, raised: Exception, error: type[APIError], words: str
) -> None:
    http.post("https://h/v1/chat/completions", exception=raised)
    async with connect(Endpoint(base_url="https://h/v1", key=KEY)) as api:
        with pytest.raises(error) as caught:
            await api.complete(b"{}")
    assert type(caught.value) is error
    assert words in str(caught.value)
    assert KEY not in f"{caught.value!s} {caught.value!r} {vars(caught.value)!r}"
    assert caught.value.__suppress_context__  # the library's error knows the request's headers


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>", id="HTML"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'"data"', id="a text"),
        pytest.param(b"{}", id="no data"),
        pytest.param(b'{"data":null}', id="null data"),
        pytest.param(b'{"data":5}', id="a number"),
        pytest.param(b'{"data":"abc"}', id="data as a text"),
        pytest.param(b'{"data":{"id":"m"}}', id="data as an object"),
    ],
)
@pytest.mark.parametrize("public", [False, True])
async def test_what_is_no_list_of_models_is_a_response_error(http: aioresponses, body: bytes, public: bool) -> None:
    http.get("https://h/public/v1/models" if public else "https://h/v1/models", body=body)
    async with connect(Endpoint(base_url="https://h/v1")) as api:
        ask: Callable[[], Any] = api.public_models if public else api.models
        with pytest.raises(APIResponseError, match="not a list of models"):
            await ask()


async def test_an_error_status_instead_of_a_list_of_models_is_that_error(http: aioresponses) -> None:
    http.get("https://h/v1/models", status=401, body=b'{"message":"Wrong API Key"}')
    async with connect(Endpoint(base_url="https://h/v1")) as api:
        with pytest.raises(AuthenticationError):
            await api.models()
