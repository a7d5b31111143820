"""Scripted answers over a socket: everything else about the simulated service stays true."""

from __future__ import annotations

import asyncio
import json
import math
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from cbatch.sim import SimConfig, create_app, read_script
from tests.integration.conftest import Sim

CHAT = "/v1/chat/completions"
KEY = {"Authorization": "Bearer key"}
EXAMPLE = Path(__file__).resolve().parents[1] / "data" / "sim-script.json"
TOOL = {"type": "function", "function": {"name": "exec_command", "parameters": {"type": "object"}}}
Client = TestClient[web.Request, web.Application]


def _server(*rules: dict[str, Any], **config: Any) -> Client:
    settings: dict[str, Any] = {"speed": math.inf, "tier": "unlimited", "script": rules} | config
    return TestClient(TestServer(create_app(SimConfig(**settings)), handler_cancellation=True))


def _body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-oss-120b", "messages": [{"role": "user", "content": text}], "tools": [TOOL]} | fields


async def _ask(client: Client, text: str, **fields: Any) -> tuple[int, Any, dict[str, str]]:
    async with client.post(CHAT, json=_body(text, **fields), headers=KEY) as response:
        return response.status, await response.json(), {k.lower(): v for k, v in response.headers.items()}


async def _stream(client: Client, text: str, **fields: Any) -> list[str]:
    async with client.post(CHAT, json=_body(text, stream=True, **fields), headers=KEY) as response:
        assert response.status == 200
        return (await response.text()).split("\n\n")[:-1]


async def _stats(client: Client) -> dict[str, Any]:
    async with client.get("/_sim/stats") as response:
        found: dict[str, Any] = await response.json()
        return found


# -- the example -----------------------------------------------------------------------------------------------


async def test_an_agent_s_loop_by_the_example() -> None:
    """A call, its output, an answer; prompt tokens grow with the history, and its beginning is cached."""
    system = {"role": "system", "content": "You are an agent. " * 100}
    messages = [system, {"role": "user", "content": "Please make a file."}]
    async with _server(script=read_script(EXAMPLE)) as client:
        _, first, _ = await _ask(client, "", messages=messages)
        said = first["choices"][0]["message"]
        (call,) = said["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"cmd": "echo hello > made.txt"}
        assert (said["reasoning"], said["content"]) == ("A shell will do.", "I will make it.")
        result = {"role": "tool", "tool_call_id": call["id"], "content": "exit code 0"}
        _, second, _ = await _ask(client, "", messages=[*messages, said, result])
    assert second["choices"] == [
        {
            "finish_reason": "stop",
            "index": 0,
            "message": {"content": "made.txt is there.", "role": "assistant"},
        }
    ]
    usage, later = first["usage"], second["usage"]
    assert usage["completion_tokens"] == usage["total_tokens"] - usage["prompt_tokens"] == 4 + 4 + 19
    assert later["prompt_tokens"] > usage["prompt_tokens"] > 450
    assert later["prompt_tokens_details"]["cached_tokens"] >= 384


async def test_a_request_that_no_rule_fits_gets_its_usual_answer() -> None:
    async with _server(script=read_script(EXAMPLE)) as client, _server() as plain:
        _, answer, _ = await _ask(client, "something else")
        _, usual, _ = await _ask(plain, "something else")
        assert answer["choices"] == usual["choices"]
        assert "usage" in answer
        assert (await _stats(client))["script"] == [0] * 8


async def test_a_shape_holds_for_a_stream() -> None:
    async with _server({"answer": {"content": "x"}, "omit": ["usage", "done"]}, {"answer": {}}) as client:
        last = json.loads((await _stream(client, "a"))[-1].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in last


async def test_an_example_s_429_then_an_answer() -> None:
    """The scripted status, headers and body, as often as `times` says, and counted like any 429."""
    async with _server(script=read_script(EXAMPLE)) as client:
        found = [await _ask(client, "busy at first") for _ in range(3)]
        stats = await _stats(client)
    assert [status for status, *_ in found] == [429, 429, 200]
    assert found[0][1]["message"] == "Wait."
    assert found[0][2]["retry-after"] == "0.1"
    assert "x-ratelimit-limit-tokens-minute" in found[0][2]
    assert stats["rate_limited"] == {"request_quota_exceeded": 2}


async def test_an_example_s_answer_that_is_cut_off_once() -> None:
    async with _server(script=read_script(EXAMPLE)) as client:
        with pytest.raises(aiohttp.ClientPayloadError):
            await _stream(client, "cut off")
        assert (await _stream(client, "cut off"))[-1] == "data: [DONE]"
        assert (await _stats(client))["faults"] == {"drop_mid": 1}


def test_the_command_serves_a_script(sims: Callable[..., Sim]) -> None:
    """`cbatch sim --script --record --refuse`: rules are used, requests shown, and a reset starts over."""
    sim = sims("--speed", "inf", "--record", "--refuse", "tools_with_schema", "--script", str(EXAMPLE))
    body = json.dumps(_body("no usage")).encode()
    request = urllib.request.Request(sim.url + CHAT, body, KEY | {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        assert "usage" not in json.load(response)
    with urllib.request.urlopen(f"{sim.url}/_sim/requests?last=1", timeout=30) as response:
        (seen,) = json.load(response)
    assert seen["body"].encode() == body
    assert "authorization" not in seen["headers"]
    assert sim.stats()["script"] == [0, 0, 0, 0, 0, 0, 0, 1]
    sim.reset()
    assert sim.stats()["script"] == [0] * 8
    with urllib.request.urlopen(f"{sim.url}/_sim/requests", timeout=30) as response:
        assert json.load(response) == []


# -- limits and time -------------------------------------------------------------------------------------------


async def test_a_scripted_answer_is_paid_from_the_quota() -> None:
    """Buckets are charged with what it used, and a request they refuse leaves the rule unused."""
    rule = {"answer": {"content": "x", "completion_tokens": 600}, "times": 2}
    async with _server(rule, tpm=1000, default_reserve=100) as client:
        status, answer, headers = await _ask(client, "a")
        assert (status, answer["usage"]["completion_tokens"]) == (200, 600)
        assert 1000 - answer["usage"]["total_tokens"] <= float(headers["x-ratelimit-remaining-tokens-minute"]) < 1000
        status, _, _ = await _ask(client, "b", max_completion_tokens=900)
        assert status == 429
        stats = await _stats(client)
        assert stats["script"] == [1]
        assert stats["models"]["gpt-oss-120b"]["total_tokens"] == answer["usage"]["total_tokens"]


async def test_a_scripted_answer_takes_as_long_as_its_tokens() -> None:
    async with _server({"answer": {"content": "x" * 400, "completion_tokens": 540}}, speed=1.0) as client:
        begin = asyncio.get_running_loop().time()
        _, answer, _ = await _ask(client, "a")
        waited = asyncio.get_running_loop().time() - begin
    assert 1400 < 540 / answer["time_info"]["completion_time"] < 2400
    assert waited >= answer["time_info"]["total_time"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("rule", [{"answer": {}}, {"status": 503}, {"fault": "server_error"}, {}])
async def test_a_delay_is_before_the_first_byte(rule: dict[str, Any], stream: bool) -> None:
    """Of answers, scripted or not, and of refusals, at any speed."""
    async with _server(rule | {"delay_s": 0.15}) as client:
        begin = asyncio.get_running_loop().time()
        async with client.post(CHAT, json=_body("a", stream=stream), headers=KEY):
            assert asyncio.get_running_loop().time() - begin >= 0.15


async def test_chunks_come_one_by_one_with_a_chunk_delay() -> None:
    """Every chunk is sent for itself, also the last ones, which otherwise go together."""
    async with _server({"answer": {"content": "short"}, "chunk_delay_s": 0.05}) as client:
        begin = asyncio.get_running_loop().time()
        async with client.post(CHAT, json=_body("a", stream=True), headers=KEY) as response:
            assert (await response.text()).count("data: ") == 4  # role, content, finish, [DONE]
        assert asyncio.get_running_loop().time() - begin >= 3 * 0.05


async def test_a_caller_that_leaves_in_the_middle_is_counted() -> None:
    async with _server({"answer": {"content": "short"}, "chunk_delay_s": 30}) as client:
        async with client.post(CHAT, json=_body("a", stream=True), headers=KEY) as response:
            await response.content.readline()
            assert ((await _stats(client))["in_flight"], (await _stats(client))["disconnected"]) == (1, 0)
            response.close()
        for _ in range(1000):  # the server's task sees the closed socket a little later
            if not (await _stats(client))["in_flight"]:
                break
            await asyncio.sleep(0.01)
        assert ((await _stats(client))["in_flight"], (await _stats(client))["disconnected"]) == (0, 1)


# -- faults ----------------------------------------------------------------------------------------------------


async def test_a_scripted_fault_replaces_a_drawn_one() -> None:
    async with _server({"when": {"user": "b"}, "fault": "empty", "times": 1}, faults={"503": 1.0}) as client:
        assert (await _ask(client, "a"))[0] == 503
        status, answer, _ = await _ask(client, "b")
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "")
        assert (await _ask(client, "b"))[0] == 503
        assert (await _stats(client))["faults"] == {"unavailable": 2, "empty_answer": 1}


async def test_a_fault_beside_an_answer_breaks_that_answer() -> None:
    async with _server({"answer": {"content": "Half of this."}, "fault": "error_in_stream"}) as client:
        blocks = await _stream(client, "a")
        assert '"error"' in blocks[-1]
        assert (await _ask(client, "a"))[0] == 500


async def test_a_refusal_is_verbatim() -> None:
    """Any status and body, its own headers instead of the usual ones, no drawn fault and no use of the quota."""
    page = {"status": 502, "error": "<html>Bad gateway</html>", "headers": {"content-type": "text/html", "X-A": "1"}}
    async with _server(page, {"answer": {}}, faults={"503": 1.0}) as client:
        async with client.post(CHAT, json=_body("a"), headers=KEY) as response:
            assert (response.status, await response.text()) == (502, "<html>Bad gateway</html>")
            assert response.headers.getall("Content-Type") == ["text/html"]
            assert response.headers["X-A"] == "1"
        stats = await _stats(client)
        assert (stats["status"], stats["models"], stats["faults"]) == ({"502": 1}, {}, {})


async def test_rules_come_after_the_request_s_own_mistakes() -> None:
    """A script does not make a broken request good."""
    async with _server({"answer": {}}, refuse=["reasoning_in_history"], max_in_flight=1) as client:
        assert (await _ask(client, "a", store=True))[0] == 400
        assert (await _ask(client, "a", model="gone"))[0] == 404
        assert (await _ask(client, "x" * 600_000))[1]["code"] == "context_length_exceeded"
        thought = {"role": "assistant", "content": "x", "reasoning": "y"}
        status, answer, _ = await _ask(client, "", messages=[*_body("a")["messages"], thought])
        assert (status, answer["code"]) == (400, "wrong_api_format")
        assert (await _stats(client))["script"] == [0]


# -- the simulator's own routes --------------------------------------------------------------------------------


async def test_a_script_is_replaced_at_run_time() -> None:
    """By a list or by lines; a wrong one changes nothing; a reset brings back the one of the start."""

    async def said() -> str | None:
        _, answer, _ = await _ask(client, "a")
        found: str | None = answer["choices"][0]["message"].get("content")
        return found

    async def load(text: str) -> tuple[int, str]:
        async with client.post("/_sim/script", data=text) as response:
            return response.status, await response.text()

    async with _server({"answer": {"content": "first"}}) as client:
        assert await said() == "first"
        assert await load('[{"answer": {"content": "second"}, "times": 1}, {"answer": {"content": "third"}}]') == (
            204,
            "",
        )
        assert [await said(), await said()] == ["second", "third"]
        status, message = await load('{"answer": {}}\n{"answers": {}}')
        assert status == 400
        assert json.loads(message)["message"].startswith("body:2: rule 2.answers: is no key here\ndid you mean answer?")
        assert (await load("\xff"))[0] == 400
        assert await said() == "third"
        assert (await load('{"answer": {"content": "fourth"}}'))[0] == 204
        assert await said() == "fourth"
        async with client.post("/_sim/reset"):
            pass
        assert await said() == "first"


async def test_recorded_requests_are_shown_as_they_were_received() -> None:
    """Byte for byte, refused ones too, headers but no key."""
    async with _server({"status": 400, "times": 1}, record=True) as client:
        bodies = [json.dumps(_body(text), indent=indent).encode() for text, indent in (("ü", 1), ("b", None))]
        for number, body in enumerate(bodies):
            async with client.post(CHAT, data=body, headers=KEY | {"X-Request": str(number)}) as response:
                assert response.status == (200 if number else 400)
        async with client.get("/_sim/requests") as response:
            seen = await response.json()
            assert b"Bearer" not in await response.read()
        assert [one["body"].encode() for one in seen] == bodies
        assert [one["headers"]["x-request"] for one in seen] == ["0", "1"]
        async with client.get("/_sim/requests?last=1") as response:
            assert await response.json() == seen[1:]
        async with client.get("/_sim/requests?last=-1") as response:
            assert response.status == 400


async def test_nothing_is_recorded_unless_it_is_asked_for() -> None:
    async with _server() as client:
        await _ask(client, "a")
        async with client.get("/_sim/requests") as response:
            assert response.status == 404
            assert "--record" in (await response.json())["message"]
