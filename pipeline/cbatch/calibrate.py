"""How late this client is: its stamps against a built-in echo that knows when it wrote.

The echo lives in the same process and on the same clock, and tells each answer how long it took
itself; the rest of the time to first token is the client's. It answers as fast as the run's server
did, to as many requests at a time, so that the client is as busy as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Any

from cbatch.client import Client, Endpoint, connect
from cbatch.errors import APIError

CHUNKS = 10  # of an answer
ROUNDS, LEAST, MOST = 4, 100, 4_000  # answers of a calibration: so many rounds of the concurrency, between these
TIME_S = 2.0  # and no longer than this
ANSWER_S = TIME_S / (ROUNDS + 3)  # so an answer of the echo takes no longer, however slow the server was
OTHER_FILES = 100  # that may be open: the journal, parts, the standard streams
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_TEXT = b'data: {"choices":[{"delta":{"content":"echo "},"index":0}],"model":"echo"}\n\n'
_LAST = (
    b'data: {"choices":[{"delta":{},"finish_reason":"stop","index":0}],"usage":{"completion_tokens":40},'
    b'"time_info":{"queue_time":%.9f}}\n\ndata: [DONE]\n\n'
)


async def overhead(in_flight: int, ttft_s: float, generation_s: float) -> dict[str, float] | None:
    """{"p50", "p99", "max", "n"}: the client's part of the time to first token, in seconds.

    `in_flight` requests at a time to an echo whose first token comes after `ttft_s` and whose last one
    `generation_s` later. None where nothing was answered, or so many files may not be open.
    """
    if not _fits(in_flight):
        return None
    late: list[float] = []
    left = min(max(ROUNDS * in_flight, LEAST), MOST) + in_flight
    body = b'{"messages":[{"role":"user","content":"calibrate"}],"model":"echo","stream":true}'

    faster = min(1.0, ANSWER_S / max(ttft_s + generation_s, 1e-9))  # which only makes the client busier

    async def worker(api: Client, place: float) -> None:
        nonlocal left
        # In step, all would be answered in one turn of the loop, and the echo's part of it be called the client's:
        # 1.2 ms for 0.2 with 256 in flight.
        await asyncio.sleep(place * (ttft_s + generation_s) * faster)
        connecting = True
        while left > 0:
            left -= 1
            sent = perf_counter()
            try:
                answer = await api.complete(body)
            except APIError:
                continue
            if answer.stream is not None and answer.time_info.queue_s is not None and not connecting:
                late.append(max(answer.stream.first - sent - answer.time_info.queue_s, 0.0))
            connecting = False

    with suppress(TimeoutError, OSError):
        async with (
            _echo(ttft_s * faster, generation_s * faster) as url,
            connect(Endpoint(base_url=url)) as api,
            asyncio.timeout(TIME_S),
            asyncio.TaskGroup() as group,
        ):
            for number in range(in_flight):
                group.create_task(worker(api, number / in_flight))
    if not late:
        return None
    late.sort()
    return {"p50": late[len(late) // 2], "p99": late[int(0.99 * len(late))], "max": late[-1], "n": len(late)}


def _fits(in_flight: int) -> bool:
    """Whether there may be so many connections with both their ends, beside those of the run."""
    try:
        import resource
    except ImportError:  # not on Windows
        return True
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft == resource.RLIM_INFINITY or 3 * in_flight + OTHER_FILES <= soft


class _Echo(asyncio.Protocol):
    """Answers every request with a stream; one request at a time on a connection."""

    def __init__(self, ttft_s: float, generation_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._ttft_s, self._gap_s = ttft_s, generation_s / CHUNKS
        self._transport: Any = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        read_at = perf_counter()
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        size = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        if end and len(body) >= int(size or 0):
            self._buffer = b""
            self._loop.call_later(self._ttft_s, self._first, read_at)

    def _first(self, read_at: float) -> None:
        wrote_at = perf_counter()
        if self._transport.is_closing():
            return
        self._transport.write(_HEAD + _chunk(_TEXT))
        self._loop.call_later(self._gap_s, self._next, wrote_at - read_at, 1)

    def _next(self, delay_s: float, number: int) -> None:
        if self._transport.is_closing():
            return
        if number < CHUNKS:
            self._transport.write(_chunk(_TEXT))
            self._loop.call_later(self._gap_s, self._next, delay_s, number + 1)
        else:
            self._transport.write(_chunk(_LAST % delay_s) + b"0\r\n\r\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def _echo(ttft_s: float, generation_s: float) -> AsyncIterator[str]:
    server = await asyncio.get_running_loop().create_server(
        lambda: _Echo(ttft_s, generation_s), "127.0.0.1", 0, backlog=4_096
    )
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()  # the client, which lives shorter, has closed its connections
