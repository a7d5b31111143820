"""Raw servers that do exactly what a test says, and tests that run on both event loops."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from cbatch.plain import PlainTransport, plain_transport
from cbatch.replies import Reply
from cbatch.transport import Endpoint

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}
SOON_S = 0.1  # a deadline that a test waits for
LONG_S = 30.0  # one that it must never come to


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Any:
    """Run a test on asyncio's loop and on uvloop; it must leave no task and no open file behind."""

    @pytest.mark.parametrize("loop", LOOPS)
    @functools.wraps(test)
    def run(loop: str, **given: Any) -> None:
        async def main() -> None:
            await test(**given)
            await turns(20)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(asyncio.sleep(0))  # the first loop of its kind opens files for good
        before = len(list(Path("/dev/fd").iterdir()))
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(main())
        gc.collect()
        assert len(list(Path("/dev/fd").iterdir())) == before

    signature = inspect.signature(test)
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), loop])
    return run


@contextmanager
def few_objects() -> Iterator[None]:
    """What is there by now is not looked at again by every collection inside."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


async def turns(count: int) -> None:
    """Let the loop look at its sockets a few times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(LONG_S):
        while not true():  # noqa: ASYNC110  what is waited for knows no event
            await asyncio.sleep(0.001)


# -- servers ----------------------------------------------------------------------------------------


@dataclass
class Server:
    """Where it listens, and what reached it."""

    url: str = ""
    connections: int = 0
    bodies: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(
    talk: Talk, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", name: str | None = None
) -> AsyncIterator[Server]:
    """A server that gives every connection to `talk`, and drops what is left of them in the end."""
    seen = Server()
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, ssl.SSLError):
                await talk(reader, writer)
        finally:
            tasks.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(serve, host, 0, ssl=tls, backlog=1_024)
    shown = name or (f"[{host}]" if ":" in host else host)
    seen.url = f"http{'s' if tls else ''}://{shown}:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield seen
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        while tasks:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await turns(5)


@asynccontextmanager
async def serving(script: Script, **options: Any) -> AsyncIterator[Server]:
    """A server that reads whole requests and answers each by `script`."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            body = await reader.readexactly(length)
            seen.heads.append(head)
            seen.bodies.append(body)
            await script(body, writer)

    async with listening(talk, **options) as seen:
        yield seen


def http(body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """One answer; `length` overrides the true Content-Length, -1 leaves it out."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if length != -1:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n", headers: tuple[str, ...] = ()) -> bytes:
    """One answer in chunks."""
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return http(framed + end, "Transfer-Encoding: chunked", *headers, length=-1)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST instead of a FIN."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def echo(body: bytes, writer: asyncio.StreamWriter) -> None:
    """The answer is what was asked."""
    writer.write(http(body))


def says(data: bytes, then: str = "stay") -> Script:
    """Answer with these bytes, then stay, close, reset, or fall silent."""

    async def script(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if then == "close":
            writer.close()
        elif then == "reset":
            await turns(5)  # let the client read what was sent: a reset overtakes it
            reset(writer)
        elif then == "silence":
            await asyncio.sleep(LONG_S)

    return script


@asynccontextmanager
async def sending(url: str, **endpoint: Any) -> AsyncIterator[PlainTransport]:
    async with plain_transport(Endpoint(**{"base_url": url, "total_s": 5.0, **endpoint}), {}) as transport:
        yield transport


async def ask(transport: PlainTransport, body: bytes = b"{}", deadline_s: float = LONG_S) -> Reply:
    return await transport.exchange("POST", transport.endpoint.base_url + "/chat", body, deadline_s)


async def ask_once(url: str, body: bytes = b"{}", **endpoint: Any) -> Reply:
    async with sending(url, **endpoint) as transport:
        reply = await ask(transport, body)
        assert not transport._busy
        return reply
