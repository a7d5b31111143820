"""Many prompts at once with one client: what `parallel.py` measures, each in a process of its own.

    python parallel_clients.py CLIENT URL PROMPTS IN_FLIGHT      prints how many answers had a text

CLIENT: library (cbatch.Client.chat_parallel), dropin-async, dropin-sync (cbatch.AsyncCerebras, Cerebras),
sdk-async, sdk-sync (cerebras-cloud-sdk). Synchronous clients have IN_FLIGHT threads, asynchronous ones a
semaphore. The official client gets as many connections as requests; sdk-default keeps its own 100, and
sdk-aiohttp is what its README advises for many requests.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MODEL = "gpt-oss-120b"
KEY = "csk-bench-0123456789"


def prompts(count: int) -> list[str]:
    return [
        f"What is the capital of country number {number}, and on which river does it lie?" for number in range(count)
    ]


def fields(prompt: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "model": MODEL, "max_completion_tokens": 500}


async def library(url: str, count: int, in_flight: int) -> int:
    from cbatch import Client

    async with Client(api_key=KEY, base_url=url, concurrency=in_flight) as api:
        answers = await api.chat_parallel(prompts(count), max_completion_tokens=500)
    return sum(bool(answer.text) for answer in answers)


async def asynchronous(client: Any, count: int, in_flight: int) -> int:
    semaphore = asyncio.Semaphore(in_flight)

    async def ask(prompt: str) -> Any:
        async with semaphore:
            return await client.chat.completions.create(**fields(prompt))

    async with client:
        answers = await asyncio.gather(*[ask(prompt) for prompt in prompts(count)])
    return sum(bool(answer.choices[0].message.content) for answer in answers)


def synchronous(client: Any, count: int, threads: int) -> int:
    with client, ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(lambda prompt: client.chat.completions.create(**fields(prompt)), prompts(count)))
    return sum(bool(answer.choices[0].message.content) for answer in answers)


def main(name: str, url: str, count: int, in_flight: int) -> int:
    if name == "library":
        return run(library(url, count, in_flight))
    side, kind = name.split("-")
    sdk = importlib.import_module("cbatch.sdk" if side == "dropin" else "cerebras.cloud.sdk")
    options: dict[str, Any] = {"api_key": KEY, "base_url": url, "warm_tcp_connection": False}
    if side == "sdk":
        import httpx

        http = sdk.DefaultAsyncHttpxClient if kind == "async" else sdk.DefaultHttpxClient
        options["http_client"] = http(
            limits=httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
        )
    if kind == "async":
        return run(asynchronous(sdk.AsyncCerebras(**options), count, in_flight))
    return synchronous(sdk.Cerebras(**options), count, in_flight)


def run(work: Any) -> int:
    """Every asynchronous client on the same loop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found: int = runner.run(work)
    return found


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
