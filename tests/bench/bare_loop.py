"""The yardstick: a tuned aiohttp loop that sends pre-built bytes and parses the answers, and does nothing else.

    python bare_loop.py URL BODIES WORKERS      BODIES has one request body a line; prints how many were answered

asyncio's own loop, the collector's own thresholds: what a careful user writes in 30 lines.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import orjson
from yarl import URL


async def main(url: URL, pending: Iterator[bytes], workers: int) -> int:
    answered = 0

    async def worker() -> None:
        nonlocal answered
        for body in pending:
            async with session.post(url, data=body) as response:
                answered += "choices" in orjson.loads(await response.read())

    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json"},
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(workers):
            group.create_task(worker())
    return answered


if __name__ == "__main__":
    with Path(sys.argv[2]).open("rb") as bodies:
        print(asyncio.run(main(URL(sys.argv[1]), bodies, int(sys.argv[3]))))
