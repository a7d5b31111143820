"""The simulator's rate limits over a socket, with a clock the test drives."""

import asyncio
import json
import math
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from cbatch.sim import SimConfig, create_app

CHAT = "/v1/chat/completions"
KEY = {"Authorization": "Bearer key"}
Answer = tuple[int, dict[str, Any], dict[str, str]]


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def _ask(
    client: TestClient[web.Request, web.Application], headers: dict[str, str] = KEY, **fields: Any
) -> Answer:
    body = {"model": "gpt-oss-120b", "messages": [{"role": "user", "content": "Test message"}]} | fields
    async with client.post(CHAT, json=body, headers=headers) as response:
        text = await response.text()
        found = {name.lower(): value for name, value in response.headers.items()}
        return response.status, {} if body.get("stream") else json.loads(text), found


def _server(clock: Clock, **config: Any) -> TestClient[web.Request, web.Application]:
    return TestClient(TestServer(create_app(SimConfig(**{"speed": math.inf} | config), clock=clock)))


async def test_requests_per_minute() -> None:
    """The free trial's five requests pass, the sixth is refused, and twelve seconds buy one more."""
    clock = Clock()
    async with _server(clock, tier="free-trial") as client:
        statuses = [(await _ask(client, max_completion_tokens=10))[0] for _ in range(6)]
        assert statuses == [200] * 5 + [429]
        _, error, _ = await _ask(client)
        assert error == {
            "message": "Requests per minute limit exceeded - too many requests sent.",
            "type": "too_many_requests_error",
            "param": "quota",
            "code": "request_quota_exceeded",
        }
        clock.now += 11.9
        assert (await _ask(client))[0] == 429
        clock.now += 0.1
        assert (await _ask(client))[0] == 200


async def test_an_unsaid_limit_reserves_16384_tokens() -> None:
    """On the trial's 30,000 tokens the second request in flight without max_completion_tokens is refused."""
    clock = Clock()
    async with _server(clock, tier="free-trial", refund=False) as client:
        status, _, headers = await _ask(client)
        assert status == 200
        assert headers["x-ratelimit-remaining-tokens-minute"] == str(30_000 - 69 - 16_384)
        status, error, _ = await _ask(client)
        assert status == 429
        assert error == {
            "message": "Tokens per minute limit exceeded - too many tokens processed.",
            "type": "too_many_tokens_error",
            "param": "quota",
            "code": "token_quota_exceeded",
        }
        assert (await _ask(client, max_completion_tokens=100))[0] == 200


async def test_a_reservation_becomes_what_was_used() -> None:
    """With refund on, a short answer costs a short answer, already in its own headers."""
    clock = Clock()
    async with _server(clock, tpm=20_000) as client:
        for _ in range(5):
            clock.now += 60
            _, answer, headers = await _ask(client)
            left = int(headers["x-ratelimit-remaining-tokens-minute"])
            assert left == 20_000 - answer["usage"]["total_tokens"]


async def test_a_streamed_answer_shows_its_reservation_and_is_settled_at_its_end() -> None:
    clock = Clock()
    async with _server(clock, tpm=20_000) as client:
        _, _, headers = await _ask(client, stream=True, max_completion_tokens=5000)
        assert int(headers["x-ratelimit-remaining-tokens-minute"]) == 20_000 - 69 - 5000
        _, answer, headers = await _ask(client)
        used = 2 * answer["usage"]["total_tokens"]
        assert int(headers["x-ratelimit-remaining-tokens-minute"]) == 20_000 - used


async def test_more_than_a_bucket_is_refused_for_ever() -> None:
    clock = Clock()
    async with _server(clock, tier="free-trial", retry_after=True) as client:
        for _ in range(3):
            status, error, headers = await _ask(client, max_completion_tokens=40_000)
            assert (status, error["code"]) == (429, "token_quota_exceeded")
            assert headers["retry-after"] == "60"
            clock.now += 3600
        assert (await _ask(client, max_completion_tokens=1000))[0] == 200


async def test_several_choices_reserve_for_each() -> None:
    clock = Clock()
    async with _server(clock, tpm=10_000, refund=False) as client:
        _, _, headers = await _ask(client, n=3, max_completion_tokens=1000)
        assert headers["x-ratelimit-remaining-tokens-minute"] == str(10_000 - 69 - 3000)


async def test_the_reserve_can_be_capped_or_be_the_whole_context() -> None:
    clock = Clock()
    async with _server(clock, tpm=200_000, refund=False, reserve_cap=100) as client:
        _, _, headers = await _ask(client, max_completion_tokens=5000)
        assert headers["x-ratelimit-remaining-tokens-minute"] == str(200_000 - 69 - 100)
    async with _server(clock, tpm=200_000, refund=False, default_reserve=None) as client:
        _, _, headers = await _ask(client)
        assert headers["x-ratelimit-remaining-tokens-minute"] == str(200_000 - 131_072)


async def test_models_and_organizations_have_their_own_buckets() -> None:
    clock = Clock()
    async with _server(clock, rpm=1) as client:
        assert (await _ask(client))[0] == 200
        assert (await _ask(client))[0] == 429
        assert (await _ask(client, model="zai-glm-4.7"))[0] == 200
        assert (await _ask(client, headers={"Authorization": "Bearer other"}))[0] == 200


async def test_cached_tokens_cost_only_the_total_bucket() -> None:
    """A repeated long prompt reports its cached tokens and is charged without them."""
    clock = Clock()
    messages = [{"role": "user", "content": "word " * 2000}]
    async with _server(clock, tpm=50_000) as client:
        _, first, _ = await _ask(client, messages=messages)
        clock.now += 60
        _, second, headers = await _ask(client, messages=messages)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    usage = second["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached == 2432
    left = int(headers["x-ratelimit-remaining-tokens-minute"])
    assert left == 50_000 - usage["total_tokens"] + cached


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        pytest.param({"rps": 1}, "Requests per second limit exceeded - too many requests sent.", id="second"),
        pytest.param({"rph": 1}, "Requests per hour limit exceeded - too many requests sent.", id="hour"),
        pytest.param({"rpd": 1}, "Requests per day limit exceeded - too many requests sent.", id="day"),
        pytest.param(
            {"tph": 20_000}, "Tokens per hour limit exceeded - too many tokens processed.", id="tokens per hour"
        ),
        pytest.param(
            {"tpd": 20_000}, "Tokens per day limit exceeded - too many tokens processed.", id="tokens per day"
        ),
    ],
)
async def test_every_period_says_its_name(limits: dict[str, int], message: str) -> None:
    async with _server(Clock(), refund=False, **limits) as client:
        assert (await _ask(client))[0] == 200
        status, error, _ = await _ask(client)
        assert (status, error["message"]) == (429, message)


@pytest.mark.parametrize(("style", "count"), [("none", 0), ("classic", 6), ("extended", 18)])
async def test_header_sets_on_200_and_429(style: str, count: int) -> None:
    async with _server(Clock(), rpm=1, headers=style) as client:
        for expected in (200, 429):
            status, _, headers = await _ask(client)
            assert status == expected
            assert sum(name.startswith("x-ratelimit-") for name in headers) == count


@pytest.mark.parametrize(
    ("style", "reset_s"),
    [
        pytest.param("refill", 16_453 / 1000, id="refill: to the full bucket"),
        pytest.param("wall-clock", None, id="wall-clock"),
    ],
)
async def test_reset_style(style: str, reset_s: float | None) -> None:
    """Plain float seconds; by the wall clock never more than the window."""
    async with _server(Clock(), tpm=60_000, reset_style=style, refund=False) as client:
        _, _, headers = await _ask(client)
    reset = float(headers["x-ratelimit-reset-tokens-minute"])
    if reset_s is None:
        day = float(headers["x-ratelimit-reset-requests-day"])
        assert 0 < reset <= 60
        assert (day - reset) % 60 == pytest.approx(0, abs=1e-3) or (day - reset) % 60 == pytest.approx(60, abs=1e-3)
    else:
        assert reset == pytest.approx(reset_s)


@pytest.mark.parametrize("switched_on", [False, True])
async def test_retry_after_is_a_switch(switched_on: bool) -> None:
    """Whole seconds until the request would pass, or no header at all."""
    async with _server(Clock(), rpm=5, retry_after=switched_on) as client:
        for _ in range(5):
            await _ask(client)
        _, _, headers = await _ask(client)
    assert headers.get("retry-after") == ("12" if switched_on else None)


async def test_the_limiter_holds_under_a_burst() -> None:
    """A hundred requests at once: exactly as many pass as the bucket holds, and every 429 is counted by code."""
    clock = Clock()
    async with _server(clock, rpm=30, speed=100.0) as client:
        statuses: list[int] = []

        async def one(number: int) -> None:
            statuses.append((await _ask(client, seed=number, max_completion_tokens=50))[0])

        async with asyncio.TaskGroup() as tasks:
            for number in range(100):
                tasks.create_task(one(number))
        async with client.get("/_sim/stats") as response:
            stats = await response.json()
    assert statuses.count(200) == 30
    assert stats["rate_limited"] == {"request_quota_exceeded": 70}
    assert stats["status"] == {"200": 30, "429": 70}


async def test_prompts_of_a_second_run_meet_full_memory_bounds() -> None:
    """A thousand and more organizations are served; the first is forgotten, not the service."""
    async with _server(Clock(), rpm=1) as client:
        for number in range(1030):
            status, _, _ = await _ask(client, headers={"Authorization": f"Bearer k{number}"}, max_completion_tokens=1)
            assert status == 200
        assert (await _ask(client, headers={"Authorization": "Bearer k0"}))[0] == 200
        assert (await _ask(client, headers={"Authorization": "Bearer k1029"}))[0] == 429


@pytest.mark.parametrize(
    ("window", "elapsed_s", "passes"),
    [
        pytest.param("bucket", 30, 3, id="a bucket is half full after half a minute"),
        pytest.param("fixed", 19.9, 0, id="a fixed window has nothing before its boundary"),
        pytest.param("fixed", 20.1, 6, id="a fixed window has everything after it"),
        pytest.param("sliding", 59.9, 0, id="a sliding window remembers a whole minute"),
        pytest.param("sliding", 60.1, 6, id="a sliding window forgets after it"),
    ],
)
async def test_three_readings_of_a_minute(window: str, elapsed_s: float, passes: int) -> None:
    """Six requests at 40 s of a wall-clock minute; how many pass after a while depends on how they are counted."""
    clock = Clock()
    async with _server(clock, rpm=6, quota_window=window) as client:
        # The first request ties this clock to the wall clock; another account's does it here.
        await _ask(client, headers={"Authorization": "Bearer other"})
        _, _, headers = await _ask(client, headers={"Authorization": "Bearer other"})
        clock.now += float(headers["x-ratelimit-reset-tokens-minute"]) + 40
        assert [(await _ask(client))[0] for _ in range(7)] == [200] * 6 + [429]
        clock.now += elapsed_s
        assert [(await _ask(client))[0] for _ in range(7)] == [200] * passes + [429] * (7 - passes)


async def test_accelerated_time() -> None:
    """At 60 times the rate a minute's quota is back after a second, and what the caller is told is in its seconds."""
    clock = Clock()
    async with _server(clock, rpm=5, clock_rate=60.0, retry_after=True, headers="extended") as client:
        assert [(await _ask(client))[0] for _ in range(6)] == [200] * 5 + [429]
        _, _, headers = await _ask(client)
        assert headers["retry-after"] == "0.2"
        assert float(headers["x-ratelimit-reset-requests-minute"]) <= 1.0
        clock.now += 0.2
        assert (await _ask(client))[0] == 200
        clock.now += 1.0
        assert [(await _ask(client))[0] for _ in range(6)] == [200] * 5 + [429]


async def test_a_busy_server_refuses_above_its_capacity() -> None:
    """Two at once are served; the others hear queue_exceeded, which costs no quota, until one of the two is done."""
    async with _server(Clock(), max_in_flight=2, speed=1.0, rpm=100, headers="extended", answer_tokens=900) as client:
        answers: list[Answer] = []

        async def one(number: int) -> None:
            answers.append(await _ask(client, seed=number))

        async with asyncio.TaskGroup() as tasks:
            for number in range(10):
                tasks.create_task(one(number))
        status, _, headers = await _ask(client)
        assert status == 200
        assert headers["x-ratelimit-remaining-requests-minute"] == "97"
        stats = await _stats(client)
    assert sorted(status for status, _, _ in answers) == [200] * 2 + [429] * 8
    assert {error["code"] for status, error, _ in answers if status == 429} == {"queue_exceeded"}
    assert stats["models"]["gpt-oss-120b"]["max_in_flight"] == 2


async def _stats(client: TestClient[web.Request, web.Application]) -> dict[str, Any]:
    async with client.get("/_sim/stats") as response:
        found: dict[str, Any] = await response.json()
        return found


async def test_what_a_quota_test_needs_is_counted_per_model() -> None:
    """Admitted requests and used tokens, 429s by code, and a timeline by the second of the limits' clock."""
    clock = Clock()
    async with _server(clock, rpm=2) as client:
        used = 0
        for number in range(3):
            status, answer, _ = await _ask(client, seed=number)
            used += answer["usage"]["total_tokens"] if status == 200 else 0
        clock.now += 30
        _, answer, _ = await _ask(client)
        await _ask(client, model="zai-glm-4.7")
        models = (await _stats(client))["models"]
        clock.now += 601
        await _ask(client, model="zai-glm-4.7")
        later = (await _stats(client))["models"]
        async with client.post("/_sim/reset"):
            pass
        assert (await _stats(client))["models"] == {}
    first = models["gpt-oss-120b"]
    assert (first["admitted"], first["rate_limited"]) == (3, {"request_quota_exceeded": 1})
    assert first["total_tokens"] == first["uncached_tokens"] == used + answer["usage"]["total_tokens"]
    assert (first["in_flight"], first["max_in_flight"]) == (0, 1)
    assert first["timeline"] == [
        [1000, 2, used, used, 1],
        [1030, 1, answer["usage"]["total_tokens"], answer["usage"]["total_tokens"], 0],
    ]
    assert models["zai-glm-4.7"]["admitted"] == 1
    assert later["gpt-oss-120b"]["timeline"] == []  # older than ten minutes
    assert [second for second, *_ in later["zai-glm-4.7"]["timeline"]] == [1631]
