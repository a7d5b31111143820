"""Two loops that stream chat completions and write down when the first token came: what a client can be held against.

    python reference_loops.py protocol|aiohttp URL IN_FLIGHT REQUESTS      one JSON line an answer

`protocol` is a plain asyncio protocol (on uvloop where it is installed): for every read of the socket it keeps the
bytes and one stamp, and looks at them when the answer has ended. `aiohttp` is the library as one would use it. Both
count the tokens of the first read by its share of the characters, and give no speed where fewer than three reads
carried text: the definitions of cbatch, in code of their own.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import cast
from urllib.parse import urlsplit

import aiohttp
import orjson

BODY = (
    b'{"model":"gpt-oss-120b","messages":[{"content":"What is the capital of this country?","role":"user"}],'
    b'"stream":true}'
)
MIN_READS = 3  # with text: fewer are no window to measure a speed in
END = b"\r\n0\r\n\r\n"
_EVENT = re.compile(rb"data: (\{.*?\})\r?\n")

Reads = list[tuple[float, bytes]]


def evaluate(sent: float, reads: Reads) -> bytes:
    """One line: the answer's id, TTFT in seconds, tokens/s or null."""
    name, completion_tokens, position = "", 0, 0
    characters = [0] * len(reads)
    ends = []
    for _, data in reads:
        position += len(data)
        ends.append(position)
    at = 0
    for found in _EVENT.finditer(b"".join(data for _, data in reads)):
        event = orjson.loads(found[1])
        name = event["id"]
        completion_tokens = event.get("usage", {}).get("completion_tokens", completion_tokens)
        for choice in event["choices"]:
            while ends[at] < found.end():  # the read that made the event whole
                at += 1
            characters[at] += len(choice["delta"].get("content", ""))
    with_text = [number for number, count in enumerate(characters) if count]
    first, last = with_text[0], with_text[-1]
    speed = None
    if len(with_text) >= MIN_READS:
        later = completion_tokens * (1 - characters[first] / sum(characters))
        speed = later / (reads[last][0] - reads[first][0])
    return orjson.dumps({"id": name, "ttft_s": reads[first][0] - sent, "tokens_per_s": speed})


class Loop(asyncio.Protocol):
    """One connection that sends the next request when an answer has ended."""

    def __init__(self, request: bytes, pending: Iterator[int], lines: list[bytes], ended: asyncio.Future[None]) -> None:
        self._request, self._pending, self._lines, self._ended = request, pending, lines, ended
        self._loop = ended.get_loop()
        self._reads: Reads = []
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it
        self._fd: int = transport.get_extra_info("socket").fileno()
        self._send()

    def _send(self) -> None:
        if next(self._pending, None) is None:
            self._transport.close()
            return
        self._reads = []
        self._sent = time.perf_counter()
        # Not by the transport: uvloop's keeps it until it has called everybody else, which would be our fault.
        if os.write(self._fd, self._request) < len(self._request):
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reads.append((time.perf_counter(), data))
        if data.endswith(END):
            sent, reads = self._sent, self._reads
            self._send()
            self._loop.call_soon(lambda: self._lines.append(evaluate(sent, reads)))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


async def protocol(url: str, in_flight: int, requests: int) -> list[bytes]:
    """Run the plain loop to its end; one line an answer."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    request = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    loop = asyncio.get_running_loop()
    pending = iter(range(requests))
    lines: list[bytes] = []
    ended = [loop.create_future() for _ in range(in_flight)]
    for end in ended:
        await loop.create_connection(
            lambda end=end: Loop(request, pending, lines, end),  # type: ignore[misc]
            parts.hostname,
            parts.port,
        )
    for end in ended:
        await end
    await asyncio.sleep(0)  # the last answer is looked at
    return lines


async def with_aiohttp(url: str, in_flight: int, requests: int) -> list[bytes]:
    """Run the loop with aiohttp's session to its end; one line an answer."""
    pending = iter(range(requests))
    lines: list[bytes] = []

    async def worker() -> None:
        for _ in pending:
            reads: Reads = []
            sent = time.perf_counter()
            async with session.post(url, data=BODY) as response:
                async for data in response.content.iter_any():
                    reads.append((time.perf_counter(), data))
            lines.append(evaluate(sent, reads))

    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json"},
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(in_flight):
            group.create_task(worker())
    return lines


def main(kind: str, url: str, in_flight: str, requests: str) -> None:
    """Run one of them and print its lines."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if kind == "protocol":
        with suppress(ImportError):
            import uvloop

            loop_factory = uvloop.new_event_loop
    loop = {"protocol": protocol, "aiohttp": with_aiohttp}[kind]
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        for line in runner.run(loop(url, int(in_flight), int(requests))):
            print(line.decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
