"""What is not the same as the official SDK: every line of DIFFERENCES.md that a socket can show, with both sides."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import cbatch.sdk as ours
from tests.integration.conftest import Sim, wait_for
from tests.integration.sdk_sides import ASK, KEY, Side, chunk, events, http, scripted

real = pytest.importorskip("cerebras.cloud.sdk", reason="cerebras-cloud-sdk is not installed (pip install --group dev)")

BEGUN = chunk({"content": "a"})
SIDES = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])

# name -> (the server's answer, whether a stream is asked for, type of the SDK's error or result, of ours)
ANSWERS: dict[str, tuple[bytes, bool, str, str]] = {
    "a stream that ends too early": (events(BEGUN), True, "list", "APIConnectionError"),
    "a stream that is cut off": (events(BEGUN, end=b""), True, "RemoteProtocolError", "APIConnectionError"),
    "a chunk that is not JSON": (events(BEGUN, "{oops"), True, "JSONDecodeError", "APIResponseValidationError"),
    "a flat error in a stream": (events(BEGUN, {"message": "no", "code": "x"}), True, "list", "APIStatusError"),
    "HTML with status 200": (http(b"<html>", "Content-Type: text/html"), False, "str", "APIResponseValidationError"),
    "half a JSON": (http(b'{"id":'), False, "JSONDecodeError", "APIResponseValidationError"),
    "an empty body": (http(b""), False, "JSONDecodeError", "APIResponseValidationError"),
    "JSON as text/plain": (http(b'{"id":"a","choices":[]}', "Content-Type: text/plain"), False, "str",
                           "ChatCompletionResponse"),
}  # fmt: skip


def outcome(sdk: Any, url: str, scenario: Callable[[Side], Any], *, is_async: bool = False) -> Any:
    """The type of what a user gets: of the result, or of the exception."""
    side = Side(sdk, url, is_async=is_async)
    seen: list[Any] = []

    def kept(side: Side) -> None:
        try:
            seen.append(scenario(side))
        except Exception as exc:  # noqa: BLE001  that is what is compared
            seen.append(exc)

    side.seen(kept)
    return seen[0]


def name_of(value: Any) -> str:
    return type(value).__name__


@SIDES
@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_no_answer_is_an_error_of_the_sdk(name: str, is_async: bool) -> None:
    """A CerebrasError, and never an exception of an HTTP library or half an answer that looks whole."""
    answer, streamed, theirs, mine = ANSWERS[name]

    def scenario(side: Side) -> Any:
        found = side.create(side.client(max_retries=0), stream=streamed)
        return side.chunks(found) if streamed else found

    with scripted(answer) as (url, _):
        assert name_of(outcome(real, url, scenario, is_async=is_async)) == theirs
        found = outcome(ours, url, scenario, is_async=is_async)
    assert name_of(found) == mine
    assert isinstance(found, ours.CerebrasError) or "Error" not in mine


@SIDES
def test_a_silent_stream_is_a_timeout(is_async: bool) -> None:
    with scripted(events(BEGUN, end=b""), hold=True) as (url, _):

        def scenario(side: Side) -> Any:
            return side.chunks(side.create(side.client(timeout=0.3), stream=True))

        assert name_of(outcome(real, url, scenario, is_async=is_async)) == "ReadTimeout"
        assert name_of(outcome(ours, url, scenario, is_async=is_async)) == "APITimeoutError"


@SIDES
def test_a_chunk_that_lacks_a_field_is_a_chunk(is_async: bool) -> None:
    lacking = {
        k: v for k, v in chunk({"content": "a"}, finish="stop").items() if k not in ("system_fingerprint", "object")
    }
    with scripted(events(lacking, "[DONE]")) as (url, _):

        def scenario(side: Side) -> Any:
            return side.chunks(side.create(stream=True))[0]

        theirs, mine = (outcome(sdk, url, scenario, is_async=is_async) for sdk in (real, ours))
    assert name_of(theirs) == "ChatCompletionResponse"  # whose choices have no delta
    assert mine.choices[0].delta.content == "a"


@SIDES
def test_an_address_may_end_in_v1(sim: Sim, is_async: bool) -> None:
    def scenario(side: Side) -> Any:
        return side.create()

    assert name_of(outcome(real, sim.url + "/v1", scenario, is_async=is_async)) == "NotFoundError"
    assert name_of(outcome(ours, sim.url + "/v1", scenario, is_async=is_async)) == "ChatCompletionResponse"


def test_errors_carry_no_key_say_the_code_and_can_be_pickled(sim: Sim) -> None:
    def scenario(side: Side) -> Any:
        return side.create(model="no-such-model")

    theirs, mine = (outcome(sdk, sim.url, scenario) for sdk in (real, ours))
    assert KEY in theirs.request.headers["authorization"]
    assert KEY not in str(mine.request.headers)
    assert not hasattr(theirs, "code")
    assert (mine.code, mine.type, mine.param) == ("model_not_found", "not_found_error", "model")
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(theirs))
    again = pickle.loads(pickle.dumps(mine))
    assert (str(again), again.body, again.status_code, again.response.text) == (
        str(mine), mine.body, mine.status_code, mine.response.text
    )  # fmt: skip


def test_a_long_wait_is_not_tried_in_vain() -> None:
    """The same error, without two more requests that cannot succeed."""
    quota = b'{"message":"Requests per day limit exceeded","code":"request_quota_exceeded"}'
    answer = http(quota, "retry-after: 3600", status="429 Too Many Requests")
    for sdk, requests in ((real, 2), (ours, 1)):
        with scripted(answer) as (url, asked):
            assert name_of(outcome(sdk, url, lambda side: side.create(side.client(max_retries=1)))) == "RateLimitError"
            assert len(asked) == requests


def test_redirects_are_not_followed(sim: Sim) -> None:
    moved = http(b"", f"Location: {sim.url}/v1/models", status="307 Temporary Redirect")
    with scripted(moved) as (url, _):
        followed = outcome(real, url, lambda side: side.do(side.client().models.list()))
        assert name_of(followed) == "PermissionDeniedError"  # of the other server, which got no key
        found = outcome(ours, url, lambda side: side.do(side.client().models.list()))
    assert (name_of(found), found.status_code) == ("APIStatusError", 307)


def test_one_async_client_serves_several_loops(sim: Sim) -> None:
    def rounds(sdk: Any) -> list[str]:
        client = sdk.AsyncCerebras(api_key=KEY, base_url=sim.url, warm_tcp_connection=False, max_retries=0)

        async def once() -> str:
            return name_of(await client.models.list())

        try:
            return [asyncio.run(once()) for _ in range(3)]
        finally:
            asyncio.run(client.close())

    assert rounds(ours) == ["ModelMetadataList"] * 3


def test_a_copy_that_is_closed_leaves_the_client_open(sim: Sim) -> None:
    def scenario(side: Side) -> Any:
        client = side.client(max_retries=0)
        with client.with_options(timeout=5.0, warm_tcp_connection=False) as copy:
            side.create(copy)
        return side.create(client)

    assert name_of(outcome(real, sim.url, scenario)) == "APIConnectionError"
    assert name_of(outcome(ours, sim.url, scenario)) == "ChatCompletionResponse"


@SIDES
def test_a_closed_client_says_so_at_once(sim: Sim, is_async: bool) -> None:
    def scenario(side: Side) -> Any:
        client = side.client()
        side.do(client.close())
        return side.create(client)

    found = outcome(ours, sim.url, scenario, is_async=is_async)
    assert name_of(found) == "APIConnectionError"
    assert "closed" in str(found.__cause__)
    assert sim.requests == 0


def test_headers_that_no_request_can_have_are_refused(sim: Sim) -> None:
    def scenario(side: Side) -> Any:
        return side.create(side.client(max_retries=0), extra_headers={"X-A": "1\r\nX-B: 2"})

    assert name_of(outcome(real, sim.url, scenario)) == "APIConnectionError"
    assert name_of(outcome(ours, sim.url, scenario)) == "ValueError"


@pytest.mark.parametrize("name", ["Cerebras", "AsyncCerebras"])
def test_what_the_constructor_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make = getattr(ours, name)
    with pytest.raises(TypeError, match="http_client is not supported"):
        make(api_key=KEY, http_client=object())
    for key in ("", "two words", "new\nline", "schlüssel"):
        with pytest.raises(ours.CerebrasError):
            make(api_key=key)
    for url in ("ftp://host", "no address", "http://user:secret@host"):
        with pytest.raises(ours.CerebrasError, match="base_url"):
            make(api_key=KEY, base_url=url)
    client = make(api_key=KEY, max_retries=math.inf, warm_tcp_connection=False)
    with pytest.raises(AttributeError):
        client.api_key = "another"
    with pytest.raises(AttributeError):
        client.base_url = "another"


def test_one_connection_is_warmed_and_not_waited_for(sim: Sim) -> None:
    """One request per client, none for its copies."""
    client = ours.Cerebras(api_key=KEY, base_url=sim.url)
    client.with_options(timeout=3.0).models.list()
    client.models.list()
    wait_for(lambda: sim.stats()["requests"].get("GET /v1/tcp_warming") == 1, "the connection to be warmed")
    client.close()
    assert sim.stats()["requests"] == {"GET /v1/tcp_warming": 1, "GET /v1/models": 2}


def test_an_unknown_argument_is_named(sim: Sim) -> None:
    client: Any = ours.Cerebras(api_key=KEY, base_url=sim.url, warm_tcp_connection=False)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_completion_token'"):
        client.chat.completions.create(**ASK, max_completion_token=3)
    client.close()


def test_strict_validation_raises_what_does_not_fit() -> None:
    with scripted(http(json.dumps({"id": "a"}).encode())) as (url, _):
        client = ours.Cerebras(api_key=KEY, base_url=url, _strict_response_validation=True, warm_tcp_connection=False)
        with pytest.raises(ours.APIResponseValidationError):
            client.chat.completions.create(**ASK)
        client.close()
