"""One streamed answer: the chunks of the upstream to the client, in its protocol, as they come.

The head is held back until the first chunk, so that what fails before it has its own status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson
from aiohttp import web

from cbatch.client import OnChunk, Reply
from cbatch.gateway.exchange import Exchange
from cbatch.gateway.faults import Refused
from cbatch.gateway.shapes import Shape
from cbatch.library import Answer
from cbatch.responses import as_chunk

KEEP_ALIVE_S = 15.0  # of silence; Codex waits for 5 minutes, proxies between often for 60 s
CHUNK_BYTES = 300  # of one that makes no event
STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

Ask = Callable[[OnChunk | None, Callable[[Reply], None] | None], Awaitable[Answer]]


async def streamed(
    request: web.Request,
    exchange: Exchange,
    shape: Shape,
    headers: Mapping[str, str],
    ask: Ask,
) -> web.StreamResponse:
    """Send what the upstream says as it comes. Ends with the client, or with the upstream.

    A client that goes away cancels this handler, and with it the request to the upstream.
    """
    pieces: list[bytes] = []
    news = asyncio.Event()
    whole: list[Reply] = []
    chunks = told = 0

    def on_chunk(chunk: dict[str, Any]) -> None:
        nonlocal chunks
        if not chunks:
            pieces.append(shape.begin())
        chunks += 1
        data = shape.chunk(chunk)
        if exchange.keeps:
            exchange.keep(exchange.upstream, chunk, len(data) or CHUNK_BYTES)
        pieces.append(data)
        news.set()

    response: web.StreamResponse | None = None

    async def say(data: bytes) -> None:
        nonlocal response, told
        told += len(data)
        if response is None:
            response = web.StreamResponse(headers={**STREAM, **headers})
            await response.prepare(request)
            exchange.first_out = time.perf_counter()
        if data:
            await response.write(data)

    loop = asyncio.get_running_loop()
    asking = asyncio.ensure_future(ask(on_chunk, whole.append))
    asking.add_done_callback(lambda _: news.set())

    def on_silence() -> None:
        if response is not None:
            pieces.append(shape.keep_alive())
            news.set()

    silence = _Silence(loop, lambda: told, on_silence)
    try:
        while not (asking.done() and not pieces):
            await news.wait()
            news.clear()
            if pieces:
                data = b"".join(pieces)
                pieces.clear()
                await say(data)
        try:
            exchange.answer = asking.result()
            if not chunks:  # an upstream that does not stream
                on_chunk(as_chunk(orjson.loads(whole[-1].body)))
            await say(b"".join(pieces) + shape.end())
        except Refused as refused:
            problem = refused.problem
            # Codex loses the message of most statuses, or repeats the request up to thirty times.
            if response is None and not (exchange.is_codex and exchange.route == "/responses"):
                raise
            exchange.problem, exchange.outcome, exchange.status = problem, "failed", problem.status
            await say((b"" if chunks else shape.begin()) + shape.fail(problem))
    finally:
        silence.end()
        if not asking.done():
            asking.cancel()
            with suppress(asyncio.CancelledError, Refused):
                await asking
    assert response is not None
    await response.write_eof()
    return response


class _Silence:
    """Calls `on_silence` every KEEP_ALIVE_S in which `told()` has not grown: one timer a stream, and none a chunk.

    A class, because a function that sets itself as a timer is a circle, which keeps a whole request in memory
    until the collector comes.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, told: Callable[[], int], on_silence: Callable[[], None]
    ) -> None:
        self._loop, self._told, self._on_silence = loop, told, on_silence
        self._before = told()
        self._timer: asyncio.TimerHandle | None = loop.call_later(KEEP_ALIVE_S, self._look)

    def _look(self) -> None:
        told = self._told()
        if told == self._before:  # not by chunks: a long patch is many of them, and nothing to tell
            self._on_silence()
        self._before = told
        self._timer = self._loop.call_later(KEEP_ALIVE_S, self._look)

    def end(self) -> None:
        """No more of it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
