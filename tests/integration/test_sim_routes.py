"""The simulator over a socket: routes, order of checks, error bodies, answers."""

import asyncio
import gzip
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from cbatch.sim import SimConfig, create_app, serve

Client = TestClient[web.Request, web.Application]
Start = Callable[..., Awaitable[Client]]

CHAT = "/v1/chat/completions"
KEY = {"Authorization": "Bearer key"}
HELLO = {"model": "gpt-oss-120b", "messages": [{"role": "user", "content": "Test message"}]}


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a simulator; infinitely fast unless told otherwise."""
    clients: list[Client] = []

    async def begin(*, clock: Callable[[], float] | None = None, **config: Any) -> Client:
        app = create_app(SimConfig(**{"speed": math.inf} | config), clock=clock)
        client = TestClient(TestServer(app))
        await client.start_server()
        clients.append(client)
        return client

    yield begin
    for client in clients:
        await client.close()


async def _stats(client: Client) -> dict[str, Any]:
    async with client.get("/_sim/stats") as response:
        found: dict[str, Any] = await response.json()
        return found


async def test_an_answer_has_the_shape_of_the_recordings(start: Start) -> None:
    """200, JSON, keys in wire order, 69 prompt tokens for the two-word message that was recorded with 69."""
    client = await start()
    async with client.post(CHAT, json=HELLO, headers=KEY) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/json"
        answer = await response.json()
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}", answer["id"])
    assert re.fullmatch(r"fp_[0-9a-f]{20}", answer["system_fingerprint"])
    assert answer["usage"]["prompt_tokens"] == 69
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_two_simulators_with_one_seed_say_the_same(start: Start) -> None:
    """Answers depend on seed and request, not on the process, the order or the clock."""
    texts = []
    for seed in (4, 4, 5):
        client = await start(seed=seed)
        async with client.post(CHAT, json=HELLO, headers=KEY) as response:
            texts.append((await response.json())["choices"])
    assert texts[0] == texts[1] != texts[2]


async def test_several_choices_differ_and_are_all_counted(start: Start) -> None:
    client = await start()
    async with client.post(CHAT, json=HELLO | {"n": 3}, headers=KEY) as response:
        answer = await response.json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 3
    characters = sum(len(c["message"]["content"] + c["message"]["reasoning"]) for c in answer["choices"])
    assert answer["usage"]["completion_tokens"] >= characters / 4


async def test_log_probabilities_come_on_request(start: Start) -> None:
    client = await start()
    async with client.post(CHAT, json=HELLO | {"logprobs": True, "top_logprobs": 2}, headers=KEY) as response:
        (choice,) = (await response.json())["choices"]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


@pytest.mark.parametrize(
    ("tier", "used"),
    [pytest.param("auto", "default", id="auto says which"), pytest.param("flex", None, id="others do not")],
)
async def test_service_tier(start: Start, tier: str, used: str | None) -> None:
    client = await start()
    async with client.post(CHAT, json=HELLO | {"service_tier": tier}, headers=KEY) as response:
        assert (await response.json()).get("service_tier_used") == used


async def test_gemma_reports_images_at_the_top_of_usage(start: Start) -> None:
    client = await start()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    content = [{"type": "text", "text": "What is this?"}, image]
    body = {"model": "gemma-4-31b", "messages": [{"role": "user", "content": content}]}
    async with client.post(CHAT, json=body, headers=KEY) as response:
        usage = (await response.json())["usage"]
    assert usage["image_tokens"] == 280
    assert "accepted_prediction_tokens" not in usage["completion_tokens_details"]


@pytest.mark.parametrize(
    ("config", "headers", "body", "status", "expected"),
    [
        pytest.param({}, {}, HELLO, 403, {"detail": "Not authenticated"}, id="no key"),
        pytest.param({}, {"Authorization": "Basic x"}, HELLO, 403, {"detail": "Not authenticated"}, id="no bearer"),
        pytest.param(
            {},
            {"Authorization": "Bearer wrong-key"},
            HELLO,
            401,
            {"message": "Wrong API Key", "type": "invalid_request_error", "param": "api_key", "code": "wrong_api_key"},
            id="a wrong key",
        ),
        pytest.param(
            {"api_key": "right"},
            KEY,
            HELLO,
            401,
            {"message": "Wrong API Key", "type": "invalid_request_error", "param": "api_key", "code": "wrong_api_key"},
            id="not the only key",
        ),
        pytest.param(
            {"payment_required": True},
            KEY,
            {"broken": True},
            402,
            {
                "message": "Payment required to access this resource. Visit your billing tab.",
                "type": "payment_required_error",
                "param": "quota",
                "code": "payment_required",
            },
            id="no payment, looked at before the body",
        ),
        pytest.param(
            {},
            KEY,
            HELLO | {"model": "llama3.1-8b"},
            404,
            {
                "message": "Model llama3.1-8b does not exist or you do not have access to it.",
                "type": "not_found_error",
                "param": "model",
                "code": "model_not_found",
            },
            id="a removed model",
        ),
        pytest.param(
            {"faults": {"503": 1.0}},
            KEY,
            {"model": "gpt-oss-120b", "messages": [{"role": "user", "content": "x" * (196_633 * 4)}]},
            400,
            {
                "message": "Please reduce the length of the messages or completion. "
                "Current length is 196699 while limit is 131072",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
                "id": "",
            },
            id="a prompt longer than the context, looked at before faults",
        ),
        pytest.param(
            {"tier": "free-trial"},
            KEY,
            {"model": "gpt-oss-120b", "messages": [{"role": "user", "content": "x" * (70_000 * 4)}]},
            400,
            {
                "message": "Please reduce the length of the messages or completion. "
                "Current length is 70066 while limit is 65536",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
                "id": "",
            },
            id="the context of a trial is shorter",
        ),
    ],
)
async def test_error_bodies(
    start: Start,
    config: dict[str, Any],
    headers: dict[str, str],
    body: Any,
    status: int,
    expected: dict[str, str],
) -> None:
    client = await start(**config)
    async with client.post(CHAT, json=body, headers=headers) as response:
        assert response.status == status
        assert response.headers["Content-Type"] == "application/json"
        assert await response.json() == expected
        assert response.headers.get("x-should-retry") == ("false" if status == 402 else None)
        assert not [name for name in response.headers if name.lower().startswith("x-ratelimit")]


async def test_the_only_key_is_accepted(start: Start) -> None:
    client = await start(api_key="right")
    async with client.post(CHAT, json=HELLO, headers={"Authorization": "Bearer right"}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        pytest.param(b"{", {}, 400, id="JSON that ends too early"),
        pytest.param(b"\xff", {}, 400, id="no UTF-8"),
        pytest.param(b"", {}, 400, id="no body"),
        pytest.param(b"[]", {}, 400, id="no object"),
        pytest.param(b'{"a":' + b"[" * 400 + b"]" * 400 + b"}", {}, 400, id="nested too deeply"),
        pytest.param(gzip.compress(json.dumps(HELLO).encode()), {"Content-Encoding": "gzip"}, 200, id="gzip"),
        pytest.param(b"not gzip at all", {"Content-Encoding": "gzip"}, 400, id="gzip that is none"),
        pytest.param(b"\x80", {"Content-Type": "application/vnd.msgpack"}, 400, id="msgpack is refused"),
    ],
)
async def test_bodies(start: Start, data: bytes, headers: dict[str, str], status: int) -> None:
    client = await start()
    async with client.post(CHAT, data=data, headers=KEY | headers) as response:
        assert response.status == status


async def test_a_deep_schema_is_refused_and_not_a_crash(start: Start) -> None:
    client = await start()
    deep = b'{"model":"gpt-oss-120b","messages":[{"role":"user","content":"x"}],"response_format":'
    deep += b'{"type":"json_schema","json_schema":{"name":"a","schema":' + b'{"a":' * 300 + b"1" + b"}" * 303
    async with client.post(CHAT, data=deep, headers=KEY) as response:
        assert response.status == 400


async def test_the_models(start: Start) -> None:
    """The account's list needs a key and has no prices; no rate-limit headers on it."""
    client = await start(payment_required=True)
    async with client.get("/v1/models", headers=KEY) as response:
        listed = await response.json()
        assert not [name for name in response.headers if name.lower().startswith("x-ratelimit")]
    assert listed["object"] == "list"
    assert {"id": "gpt-oss-120b", "object": "model", "created": 0, "owned_by": "Cerebras"} in listed["data"]
    async with client.get("/v1/models/zai-glm-4.7", headers=KEY) as response:
        assert (await response.json())["id"] == "zai-glm-4.7"
    async with client.get("/v1/models/gone", headers=KEY) as response:
        assert response.status == 404
        assert (await response.json())["code"] == "model_not_found"
    for path in ("/v1/models", "/v1/models/gpt-oss-120b", "/v1/tcp_warming"):
        async with client.get(path) as response:
            assert response.status == 403


async def test_the_public_models(start: Start) -> None:
    """No key, prices as strings in USD per token."""
    client = await start()
    async with client.get("/public/v1/models") as response:
        data = (await response.json())["data"]
    assert {item["id"] for item in data} >= {"gpt-oss-120b", "qwen-3.8-27b", "gemma-4-31b", "zai-glm-4.7"}
    async with client.get("/public/v1/models/gpt-oss-120b") as response:
        item = await response.json()
    assert item["pricing"] == {"prompt": "0.00000035", "completion": "0.00000075"}
    assert item["limits"]["max_context_length"] == 131_072
    async with client.get("/public/v1/models/gone") as response:
        assert response.status == 404
        assert await response.json() == {"detail": "Model 'gone' not found or not publicly available"}


async def test_warming_costs_nothing(start: Start) -> None:
    client = await start(rpm=1)
    for _ in range(5):
        async with client.get("/v1/tcp_warming", headers=KEY) as response:
            assert response.status == 200
    async with client.post(CHAT, json=HELLO, headers=KEY) as response:
        assert response.status == 200


@pytest.mark.parametrize("path", ["/", "/v1/responses", "/v1/chat/completions/", "/v1/completions"])
async def test_an_unrouted_path_is_an_empty_404(start: Start, path: str) -> None:
    client = await start()
    async with client.post(path, json=HELLO) as response:
        assert response.status == 404
        assert response.headers["Content-Type"].startswith("text/plain")
        assert await response.read() == b""


async def test_stats_tell_prompts_from_requests(start: Start) -> None:
    """Distinct bodies, requests and answers are counted apart, so a test can see a prompt paid twice."""
    client = await start(faults={"bad_request": 0.3})
    answered: list[int] = []
    for number in (*range(20), *range(5)):
        body = HELLO | {"messages": [{"role": "user", "content": f"q{number}"}]}
        async with client.post(CHAT, json=body, headers=KEY) as response:
            if response.status == 200:
                answered.append(number)
    async with client.get("/v1/models") as response:
        assert response.status == 403
    stats = await _stats(client)
    assert stats["requests"] == {"POST /v1/chat/completions": 25, "GET /v1/models": 1}
    assert stats["chat_requests"] == 25
    assert stats["prompts_seen"] == {
        "total": 25,
        "distinct": 20,
        "answered": len(answered),
        "answered_distinct": len(set(answered)),
        "exact": True,
    }
    assert stats["faults"] == {"bad_request": 25 - len(answered)}
    assert stats["status"] == {"200": len(answered), "400": 25 - len(answered), "403": 1}
    assert (stats["in_flight"], stats["max_in_flight"]) == (0, 1)
    assert stats["completion_tokens"] > stats["reasoning_tokens"] > 0


async def test_reset_starts_over(start: Start) -> None:
    client = await start(rpm=1)
    statuses = []
    for _ in range(2):
        for _ in range(2):
            async with client.post(CHAT, json=HELLO, headers=KEY) as response:
                statuses.append(response.status)
        async with client.post("/_sim/reset") as response:
            assert response.status == 204
    assert statuses == [200, 429, 200, 429]
    assert (await _stats(client))["chat_requests"] == 0


async def test_an_answer_takes_as_long_as_it_says(start: Start) -> None:
    """The server's own total_time is what the caller waited, give or take the network."""
    client = await start(speed=1.0, answer_tokens=180)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    async with client.post(CHAT, json=HELLO, headers=KEY) as response:
        times = (await response.json())["time_info"]
    waited = loop.time() - begin
    assert times["total_time"] <= waited < times["total_time"] + 1.0
    assert 1400 < 180 / times["completion_time"] < 2400


async def test_a_caller_that_hangs_up_is_counted_and_leaves_nothing_running(start: Start) -> None:
    client = await start(speed=0.001)
    request = asyncio.create_task(client.post(CHAT, json=HELLO, headers=KEY))
    await asyncio.sleep(0.1)
    assert (await _stats(client))["in_flight"] == 1
    request.cancel()
    await asyncio.sleep(0.1)
    stats = await _stats(client)
    assert (stats["in_flight"], stats["disconnected"]) == (0, 1)


async def test_serve_says_where_it_listens_and_stops_at_once() -> None:
    """Port 0 is a free port; cancelling ends even an answer that would take minutes."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(SimConfig(speed=0.001), "127.0.0.1", 0, ready.set_result))
    address = await ready
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
    async with ClientSession() as session:
        async with session.get(f"{address}/public/v1/models") as response:
            assert response.status == 200
        request = asyncio.create_task(session.post(f"{address}{CHAT}", json=HELLO, headers=KEY))
        await asyncio.sleep(0.1)
        begin = asyncio.get_running_loop().time()
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server
        assert asyncio.get_running_loop().time() - begin < 1.5
        with pytest.raises(ClientError):
            await request


async def test_a_taken_port_is_an_error() -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(SimConfig(), "127.0.0.1", 0, ready.set_result))
    port = int((await ready).rpartition(":")[2])
    with pytest.raises(OSError, match="address already in use"):
        await serve(SimConfig(), "127.0.0.1", port, lambda _: None)
    server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server
