"""Every fault over a socket, as a client meets it; and the grammar of a stream without one."""

import asyncio
import json
import math
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from cbatch.sim import FAULTS, SimConfig, create_app

CHAT = "/v1/chat/completions"
KEY = {"Authorization": "Bearer key"}
HELLO: dict[str, Any] = {"model": "gpt-oss-120b", "messages": [{"role": "user", "content": "Test message"}]}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
}

BROKEN = (aiohttp.ClientError, ConnectionError)
Client = TestClient[web.Request, web.Application]


def _server(fault: str | None = None, **config: Any) -> Client:
    faults = {fault: 1.0} if fault else {}
    config = {"speed": math.inf, "stall_s": 0.2, "slow_s": 0.2} | config
    return TestClient(TestServer(create_app(SimConfig(faults=faults, **config))))


async def _ask(client: Client, **fields: Any) -> tuple[int, str, dict[str, str]]:
    async with client.post(CHAT, json=HELLO | fields, headers=KEY) as response:
        return response.status, await response.text(), {k.lower(): v for k, v in response.headers.items()}


async def _stream(client: Client, **fields: Any) -> list[str]:
    """The `data:` and `event:` lines of a stream that ends properly."""
    status, text, headers = await _ask(client, stream=True, **fields)
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = text.split("\n\n")
    assert blocks[-1] == ""
    return blocks[:-1]


def _chunks(blocks: list[str]) -> list[dict[str, Any]]:
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


@pytest.mark.parametrize("speed", [math.inf, 5.0])
async def test_the_grammar_of_a_stream(speed: float) -> None:
    """Role first; no finish reason until the last chunk, which has usage and time_info; then one [DONE]."""
    async with _server(speed=speed) as client:
        blocks = await _stream(client)
        _, whole, _ = await _ask(client)
    chunks = _chunks(blocks)
    assert sum(block == "data: [DONE]" for block in blocks) == 1
    for chunk in chunks[:-1]:
        assert list(chunk) == ["id", "choices", "created", "model", "system_fingerprint", "object"]
        assert list(chunk["choices"][0]) == ["delta", "index"]
        assert chunk["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
    last = chunks[-1]
    assert list(last)[-2:] == ["usage", "time_info"]
    assert last["choices"] == [{"delta": {}, "finish_reason": "stop", "index": 0}]
    assert len({chunk["id"] for chunk in chunks}) == 1
    expected = json.loads(whole)
    assert last["usage"] == expected["usage"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == expected["choices"][0]["message"]["content"]


async def test_a_stream_takes_its_time_and_at_most_200_events_per_second() -> None:
    """The first token comes after queue and prompt, the last after the whole completion."""
    async with _server(speed=1.0, answer_tokens=540) as client:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with client.post(CHAT, json=HELLO | {"stream": True}, headers=KEY) as response:
            first = await response.content.readline()
            first_s = loop.time() - begin
            rest = await response.text()
        whole_s = loop.time() - begin
    assert json.loads(first.removeprefix(b"data: "))["choices"][0]["delta"] == {"role": "assistant"}
    times = json.loads(rest.split("\n\n")[-3].removeprefix("data: "))["time_info"]
    assert first_s >= times["queue_time"] + times["prompt_time"]
    assert first_s < whole_s - times["completion_time"] / 2
    assert whole_s >= times["queue_time"] + times["prompt_time"] + times["completion_time"]
    assert rest.count("data: ") < 200 * times["completion_time"] + 4


async def test_hidden_reasoning_is_silence_before_the_first_text() -> None:
    """The role comes at once, then nothing for as long as the model thinks."""
    async with _server(speed=0.2, answer_tokens=100) as client:
        body = HELLO | {"stream": True, "reasoning_effort": "high", "reasoning_format": "hidden"}
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with client.post(CHAT, json=body, headers=KEY) as response:
            await response.content.readline()
            role_s = loop.time() - begin
            await response.content.readline()
            await response.content.readline()
            first_s = loop.time() - begin
            rest = await response.text()
    times = json.loads(rest.split("\n\n")[-3].removeprefix("data: "))["time_info"]
    assert first_s - role_s > 0.4 * times["completion_time"]
    assert 'reasoning":"' not in rest


async def test_a_streamed_tool_call() -> None:
    async with _server() as client:
        chunks = _chunks(await _stream(client, tools=[TOOL], tool_choice="required"))
    calls = [c["choices"][0]["delta"]["tool_calls"][0] for c in chunks if "tool_calls" in c["choices"][0]["delta"]]
    assert calls[0]["function"] == {"name": "f", "arguments": ""}
    assert "a" in json.loads("".join(call["function"]["arguments"] for call in calls))
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_several_choices_share_a_stream() -> None:
    async with _server() as client:
        chunks = _chunks(await _stream(client, n=2))
    finished = [c["choices"][0]["index"] for c in chunks if "finish_reason" in c["choices"][0]]
    assert finished == [0, 1]
    assert sum("usage" in chunk for chunk in chunks) == 1


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("rate_limited_requests", 429, "request_quota_exceeded"),
        ("rate_limited_tokens", 429, "token_quota_exceeded"),
        ("queue_exceeded", 429, "queue_exceeded"),
        ("payment_required", 402, "payment_required"),
        ("server_error", 500, "internal_server_error"),
        ("unavailable", 503, "service_unavailable"),
        ("timeout_408", 408, "request_timeout"),
        ("bad_request", 400, "wrong_api_format"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_are_flat_json(fault: str, status: int, code: str, stream: bool) -> None:
    """Before the first byte an error is an ordinary status, also for a stream."""
    async with _server(fault) as client:
        found, text, headers = await _ask(client, stream=stream)
    assert found == status
    assert headers["content-type"] == "application/json"
    error = json.loads(text)
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == code
    assert ("x-ratelimit-limit-tokens-minute" in headers) is (status == 429)
    assert headers.get("x-should-retry") == ("false" if status == 402 else None)


async def test_the_queue_is_not_the_quota() -> None:
    async with _server("queue_exceeded") as client:
        _, text, _ = await _ask(client)
    assert json.loads(text) == {
        "message": "We're experiencing high traffic right now! Please try again soon.",
        "type": "too_many_requests_error",
        "param": "queue",
        "code": "queue_exceeded",
    }


@pytest.mark.parametrize(("fault", "status"), [("bad_gateway_html", 502), ("html_200", 200)])
async def test_html_instead_of_an_answer(fault: str, status: int) -> None:
    async with _server(fault) as client:
        found, text, headers = await _ask(client)
    assert (found, headers["content-type"]) == (status, "text/html")
    assert text.startswith("<html>")


async def test_an_empty_body() -> None:
    async with _server("empty_body_200") as client:
        assert (await _ask(client))[:2] == (200, "")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_drop_before_the_answer_sends_nothing(stream: bool) -> None:
    async with _server("drop_before") as client:
        with pytest.raises(BROKEN):
            await _ask(client, stream=stream)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_drop_in_the_middle_sends_status_and_part(stream: bool) -> None:
    """The status line and half of the answer arrive, then the connection breaks."""
    async with _server("drop_mid") as client:
        async with client.post(CHAT, json=HELLO | {"stream": stream}, headers=KEY) as response:
            assert response.status == 200
            begun = await response.content.read(20)
            with pytest.raises(BROKEN):
                await response.content.read()
        assert begun.startswith(b"data: " if stream else b'{"id":')


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stall_is_silence_in_the_middle(stream: bool) -> None:
    """Half arrives at once, the rest after stall_s; nothing is lost."""
    async with _server("stall") as client:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with client.post(CHAT, json=HELLO | {"stream": stream}, headers=KEY) as response:
            first = await response.content.readany()
            first_s = loop.time() - begin
            rest = await response.read()
        # On a busy machine both may be late, but not the first part as late as the last.
        assert loop.time() - begin >= max(0.2, first_s + 0.1)
        text = (first + rest).decode()
        if stream:
            assert _chunks(text.split("\n\n")[:-1])[-1]["choices"][0]["finish_reason"] == "stop"
        else:
            assert json.loads(text)["choices"]


async def test_a_caller_that_gives_up_on_a_stall_ends_it() -> None:
    """No handler outlives its caller, and closing the server does not wait for the stall."""
    async with _server("stall", stall_s=600.0) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await _ask(client)
        await asyncio.sleep(0.05)
        async with client.get("/_sim/stats") as response:
            assert (await response.json())["in_flight"] == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_slow_first_byte(stream: bool) -> None:
    async with _server("slow_first_byte") as client:
        begin = asyncio.get_running_loop().time()
        async with client.post(CHAT, json=HELLO | {"stream": stream}, headers=KEY) as response:
            assert asyncio.get_running_loop().time() - begin >= 0.2
            assert response.status == 200


async def test_malformed_json_in_a_body() -> None:
    async with _server("malformed_json") as client:
        status, text, _ = await _ask(client)
    assert status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


async def test_a_malformed_chunk_is_one_chunk() -> None:
    async with _server("malformed_json") as client:
        blocks = await _stream(client)
    broken = 0
    for block in blocks[:-1]:
        try:
            json.loads(block.removeprefix("data: "))
        except json.JSONDecodeError:
            broken += 1
    assert broken == 1
    assert blocks[-1] == "data: [DONE]"


async def test_missing_done_ends_after_the_finish_chunk() -> None:
    async with _server("missing_done") as client:
        blocks = await _stream(client)
        assert json.loads((await _ask(client))[1])["choices"]
    assert "data: [DONE]" not in blocks
    assert json.loads(blocks[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"


async def test_missing_usage() -> None:
    async with _server("missing_usage") as client:
        chunks = _chunks(await _stream(client))
        whole = json.loads((await _ask(client))[1])
    for answer in (whole, *chunks):
        assert not {"usage", "time_info"} & answer.keys()


@pytest.mark.parametrize(
    ("fault", "lines"),
    [
        pytest.param("error_in_stream", 1, id="wrapped, with a status code"),
        pytest.param("event_error_in_stream", 2, id="as an event named error, without one"),
    ],
)
async def test_an_error_inside_a_stream_ends_it(fault: str, lines: int) -> None:
    async with _server(fault) as client:
        blocks = await _stream(client)
        status, _, _ = await _ask(client)
    assert status == 500
    assert json.loads(blocks[0].removeprefix("data: "))["choices"]
    last = blocks[-1].splitlines()
    assert len(last) == lines
    if lines == 2:
        assert last[0] == "event: error"
    error = json.loads(last[-1].removeprefix("data: "))
    assert error["error"]["message"]
    assert error.get("status_code") == (503 if lines == 1 else None)


async def test_an_empty_answer_is_an_empty_string() -> None:
    async with _server("empty_answer") as client:
        (choice,) = json.loads((await _ask(client))[1])["choices"]
        chunks = _chunks(await _stream(client))
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == ""


async def test_another_model_answers() -> None:
    async with _server("wrong_model") as client:
        whole = json.loads((await _ask(client))[1])
        chunks = _chunks(await _stream(client))
    assert whole["model"] != "gpt-oss-120b"
    assert {chunk["model"] for chunk in chunks} == {whole["model"]}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_connection_is_closed_after_a_good_answer(stream: bool) -> None:
    async with _server("close_connection") as client:
        status, text, headers = await _ask(client, stream=stream)
    assert status == 200
    assert headers["connection"] == "close"
    assert text.endswith("data: [DONE]\n\n") if stream else json.loads(text)["choices"]


async def test_invalid_output_breaks_structured_answers_only() -> None:
    async with _server("invalid_output") as client:
        (plain,) = json.loads((await _ask(client))[1])["choices"]
        (choice,) = json.loads((await _ask(client, response_format={"type": "json_object"}))[1])["choices"]
    assert plain["message"]["content"].startswith("[prompt ")
    with pytest.raises(json.JSONDecodeError):
        json.loads(choice["message"]["content"])


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_retry_gets_through_every_fault_but_a_bad_prompt(fault: str) -> None:
    """At a probability of one half every prompt is answered after some attempts; a bad one never is."""
    config = SimConfig(stall_s=0.01, slow_s=0.01, speed=math.inf, faults={fault: 0.5})
    async with TestClient(TestServer(create_app(config))) as client:
        for number in range(6):
            answered = [await _arrives(client, f"q{number}") for _ in range(16)]
            if fault == "bad_request":
                assert len(set(answered)) == 1
            else:
                assert any(answered)


async def _arrives(client: Client, prompt: str) -> bool:
    try:
        status, text, _ = await _ask(client, messages=[{"role": "user", "content": prompt}])
        return status == 200 and bool(json.loads(text)["choices"][0]["message"]["content"])
    except (*BROKEN, ValueError):
        return False


async def test_a_fault_before_the_quota_costs_no_quota() -> None:
    """Injected errors come before the buckets; broken answers are charged like whole ones."""
    async with _server("server_error", rpm=3, refund=False) as client:
        assert [(await _ask(client))[0] for _ in range(5)] == [500] * 5
    async with _server("missing_usage", rpm=3, refund=False) as client:
        assert [(await _ask(client))[0] for _ in range(5)] == [200] * 3 + [429] * 2


@pytest.mark.parametrize("kind", ["refuse", "503"])
async def test_an_outage_happens_once(kind: str) -> None:
    """What is in flight is cut off, everything is refused for a while, and then it is over until a reset."""
    async with _server(outage_after_s=0.1, outage_for_s=0.2, outage_kind=kind, speed=1.0, answer_tokens=3000) as client:
        async with client.get("/v1/models", headers=KEY) as response:
            assert response.status == 200
        with pytest.raises(BROKEN):  # takes a second
            await _ask(client)
        for path in ("/v1/models", "/public/v1/models"):
            if kind == "503":
                async with client.get(path, headers=KEY) as response:
                    assert (response.status, (await response.json())["code"]) == (503, "service_unavailable")
            else:
                with pytest.raises(BROKEN):
                    await client.get(path, headers=KEY)
        async with client.get("/_sim/stats") as response:
            assert (await response.json())["outage_refused"] >= 2
        await asyncio.sleep(0.3)
        assert (await _ask(client, max_completion_tokens=5))[0] == 200
        assert (await _ask(client))[0] == 200
        async with client.post("/_sim/reset"):
            pass
        with pytest.raises(BROKEN):
            await _ask(client)


async def test_an_outage_closes_connections_on_which_nothing_happens() -> None:
    """A kept-alive connection is gone too: the server says so before anything is asked."""
    async with _server(outage_after_s=0.05, outage_for_s=0.01) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(b"GET /public/v1/models/x HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        await _ask(client)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(5):
                await reader.readuntil(b"never")
        writer.close()
